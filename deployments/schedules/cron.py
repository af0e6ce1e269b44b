"""Times of cron expressions, on the clocks of a timezone."""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from typing import cast
from zoneinfo import ZoneInfo, available_timezones

from croniter import CroniterError, croniter

from pipelines.errors import InvalidRequest

WORDS = frozenset({"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"})
MAX_YEARS = 50
"""To the next time: a fifth Monday of February may be 40 years away, 30 February never is."""

# no seconds, and nothing that is random or hashed: a time must be the same for every replica
# possessive: else the ways to read many letters are tried, whose number has no end
_FIELD = r"(?:[0-9*,/#-]|[A-Za-z]{3}|[lL])++"
_CRON = re.compile(rf"{_FIELD}(?: +{_FIELD}){{4}}", re.ASCII)


def checked_cron(text: str) -> str:
    """The expression. Raises InvalidRequest for what is none of five fields or one of WORDS, and
    for one that never comes.
    """
    text = text.strip()
    if text not in WORDS and not _CRON.fullmatch(text):
        raise _bad(text)
    try:
        next_time(text, "UTC", datetime.now(UTC))
    except CroniterError as error:
        raise _bad(text) from error
    return text


def checked_timezone(name: str) -> str:
    """Raises InvalidRequest for what is no IANA name."""
    if name not in _timezones():
        raise InvalidRequest(
            "timezone", f"timezone must be a name such as Europe/Berlin or UTC, given {name[:80]!r}"
        )
    return name


def next_time(cron: str, timezone: str, after: datetime) -> datetime:
    """The first time after that one; UTC.

    Of an hour that clocks go through twice, the second counts for expressions of any hour alone.
    """
    zone = ZoneInfo(timezone)
    times = croniter(
        cron, after.astimezone(zone), ret_type=datetime, max_years_between_matches=MAX_YEARS
    )
    while True:
        found = cast("datetime", times.get_next()).astimezone(UTC)
        if _any_hour(cron) or not found.astimezone(zone).fold:
            return found


def _any_hour(cron: str) -> bool:
    return cron == "@hourly" or (" " in cron and cron.split()[1].startswith("*"))


def _bad(text: str) -> InvalidRequest:
    return InvalidRequest(
        "cron",
        "cron must be five fields (minute, hour, day of month, month, day of week) such as "
        f"'30 8 * * mon-fri', or a word such as @daily, given {text[:80]!r}",
    )


@functools.cache
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones())
