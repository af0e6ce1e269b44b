import asyncio
import re

import pytest
from redis import exceptions

from configs.settings import TaskSettings
from deployments.tasks.errors import StoreUnavailable, TaskNotFound
from deployments.tasks.model import PAUSABLE, SCHEMA_VERSION, TERMINAL, TRANSITIONS, Kind, Status
from deployments.tasks.script import (
    Script,
    block_ms,
    blocking_client,
    command_client,
    script_text,
    store_errors,
)


def lua_words(text):
    return set(re.findall(r"(\w+) = true", text))


def test_the_scripts_table_of_transitions_is_the_models():
    line = next(line for line in script_text().splitlines() if line.startswith("local TRANSITIONS"))
    ways = re.findall(r"(\w+) = \{([^{}]*)\}", line)
    assert {Status(old): {Status(new) for new in lua_words(news)} for old, news in ways} == {
        old: set(news) for old, news in TRANSITIONS.items()
    }


def test_the_scripts_other_tables_are_the_models():
    names = "TERMINAL|KINDS|PAUSABLE|VERSION"
    lines = dict(re.findall(rf"^local ({names}) = (.*)$", script_text(), re.M))
    assert lua_words(lines["TERMINAL"]) == set(TERMINAL)
    assert lua_words(lines["KINDS"]) == set(Kind)
    assert lua_words(lines["PAUSABLE"]) == PAUSABLE
    assert int(lines["VERSION"]) == SCHEMA_VERSION


def test_every_process_has_the_same_script_text():
    """Sets are in another order in every process; the script's digest must not be."""
    for line in script_text().splitlines()[:4]:
        for group in re.findall(r"\{([^{}]*)\}", line):
            words = re.findall(r"(\w+) = true", group)
            assert words == sorted(words)


def test_the_script_changes_a_status_in_one_place_only():
    text = script_text()
    assert len(re.findall(r"changes\.status = ", text)) == 1
    assert "KEYS *" not in text
    assert not re.search(r"call\('(KEYS|SCAN|BLPOP|LPOP|RPOP|ZPOPMIN|SPOP)'", text)


def test_ended_states_have_no_way_out():
    assert set(TRANSITIONS) == set(Status)
    assert {status for status in Status if not TRANSITIONS[status]} == TERMINAL


def test_a_block_is_never_for_ever_and_always_shorter_than_the_sockets_patience():
    assert block_ms(0) == 1
    assert block_ms(2.5) == 2500
    client = blocking_client("unix:///none", TaskSettings())
    patience_s = client.connection_pool.connection_kwargs["socket_timeout"]
    assert block_ms(1e9) / 1000 < patience_s


def test_the_clients_time_outs_and_retries_are_their_own():
    url, settings = "redis://127.0.0.1:1/0", TaskSettings(deadline_s=6)
    commands = command_client(url, settings).connection_pool.connection_kwargs
    blocking = blocking_client(url, settings).connection_pool.connection_kwargs
    assert commands["socket_timeout"] == pytest.approx(4)
    assert commands["socket_connect_timeout"] == pytest.approx(2)
    assert blocking["socket_connect_timeout"] == pytest.approx(2)
    assert commands["retry"].get_retries() == 5
    assert blocking["retry"].get_retries() == 0


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("refused"),
        exceptions.TimeoutError("late"),
        exceptions.BusyLoadingError("LOADING"),
        exceptions.OutOfMemoryError("OOM"),
        exceptions.ReadOnlyError("READONLY"),
        exceptions.ResponseError("MISCONF"),
        exceptions.AuthenticationError("WRONGPASS"),
        ConnectionResetError("reset"),
        TimeoutError("late"),
    ],
)
async def test_what_goes_wrong_with_redis_is_one_error_with_its_cause(error):
    with pytest.raises(StoreUnavailable) as raised:
        async with store_errors(1.5):
            raise error
    assert raised.value.__cause__ is error


async def test_other_errors_pass_unchanged():
    for error in (TaskNotFound("t"), KeyError("bug")):
        with pytest.raises(type(error)):
            async with store_errors(1.5):
                raise error


async def test_a_command_that_takes_longer_than_the_deadline_is_one_error_with_it():
    script = Script(command_client("unix:///none", s := TaskSettings(deadline_s=0.01)), s, "")
    with pytest.raises(StoreUnavailable, match=r"did not answer in 0\.01 s"):
        async with script.errors():
            await asyncio.sleep(60)
