"""Cron expressions: what is taken, and when it comes."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from deployments.schedules.cron import checked_cron, checked_timezone, next_time
from pipelines.errors import InvalidRequest


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "timezone", "expected"),
    [
        ("*/15 * * * *", "UTC", "2026-03-01T12:15"),
        ("30 8 * * mon-fri", "UTC", "2026-03-02T08:30"),
        ("30 8 * * mon-fri", "Asia/Shanghai", "2026-03-02T00:30"),
        ("0 0 1 * *", "America/New_York", "2026-04-01T04:00"),
        ("0 9 29 2 *", "UTC", "2028-02-29T09:00"),
        ("0 12 * * 0", "UTC", "2026-03-08T12:00"),
        ("@daily", "Europe/Berlin", "2026-03-01T23:00"),
        ("@hourly", "UTC", "2026-03-01T13:00"),
    ],
)
def test_the_next_time_is_the_first_one_after_on_the_clocks_of_its_timezone(
    cron, timezone, expected
):
    assert next_time(checked_cron(cron), timezone, at("2026-03-01T12:00")) == at(expected)


def test_a_time_of_its_own_is_not_its_next():
    assert next_time("0 12 * * *", "UTC", at("2026-03-01T12:00")) == at("2026-03-02T12:00")


@pytest.mark.parametrize("cron", ["30 2 * * *", "0 * * * *", "*/20 1-3 * * *"])
def test_times_rise_through_both_changes_of_the_clocks(cron):
    for begin in ("2026-03-28T12:00", "2026-10-24T12:00"):
        times = [at(begin)]
        while times[-1] < at(begin) + timedelta(days=2):
            times.append(next_time(cron, "Europe/Berlin", times[-1]))
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert all(timedelta(0) < gap < timedelta(hours=26) for gap in gaps)


@pytest.mark.parametrize(
    ("cron", "runs"), [("30 2 * * *", 1), ("*/30 2 * * *", 2), ("30 * * * *", 25), ("@daily", 1)]
)
def test_an_hour_that_comes_twice_counts_twice_for_those_of_every_hour_alone(cron, runs):
    time, times = at("2026-10-24T22:00") - timedelta(seconds=1), []
    while (time := next_time(cron, "Europe/Berlin", time)) < at("2026-10-25T23:00"):
        times.append(time)
    assert len(times) == runs


def test_a_day_that_comes_every_forty_years_has_a_next_time():
    leap = at("2028-02-29T00:00")
    assert next_time("0 0 * 2 tue#5", "UTC", leap) == at("2056-02-29T00:00")
    assert next_time("0 0 * 2 mon#5", "UTC", at("2072-02-29T00:00")) == at("2112-02-29T00:00")


@pytest.mark.parametrize(
    "cron",
    [
        "l" * 200, f"{'l' * 198} *",
        "", "* * * *", "* * * * * *", "60 * * * *", "* * * * funday", "@reboot", "@every 5m",
        "R * * * *", "H * * * *", "* * 30 2 *", "*/0 * * * *", "5-1-2 * * * *", "a b c d e",
        "\u0660 * * * *", "1,,2 * * * *",
    ],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_refused(cron):
    with pytest.raises(InvalidRequest, match="cron must be") as refusal:
        checked_cron(cron)
    assert refusal.value.field == "cron"


def test_timezones_are_iana_names():
    assert checked_timezone("Asia/Shanghai") == "Asia/Shanghai"
    for name in ("Mars/Olympus", "../etc/passwd", "", "Europe", "\0"):
        with pytest.raises(InvalidRequest, match="timezone must be"):
            checked_timezone(name)
