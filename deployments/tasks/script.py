"""Runs Lua files on a Redis server: time-outs, retries and error classes are all decided here."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import NoScriptError, RedisError

from configs.settings import TaskSettings
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.model import PAUSABLE, SCHEMA_VERSION, TERMINAL, TRANSITIONS, Kind

_ANSWER_SHARE, _CONNECT_SHARE = 2 / 3, 1 / 3
"""Time-outs of one try, of the deadline of a command with all its retries."""
_RETRIES = 5  # 0.05 ... 0.4 s apart: rides out an embedded server's restart, within 1.5 s
_MAX_BLOCK_S = 30.0
_MAX_CONNECTIONS = 512
_MAX_CALLS = 48
"""Script calls at once; a burst waits its turn within the deadline. The pool would refuse it, and
redis-py's blocking pool loses connections of callers that are cancelled under contention."""


def command_client(url: str, settings: TaskSettings) -> Redis:
    """For commands that answer at once. Repeats are safe: the scripts are idempotent."""
    backoff = ExponentialBackoff(cap=0.4, base=0.05)
    deadline_s = settings.deadline_s
    return _client(url, Retry(backoff, _RETRIES), _ANSWER_SHARE * deadline_s, deadline_s)


def blocking_client(url: str, settings: TaskSettings) -> Redis:
    """For reads that wait: the socket outwaits the block, and nothing is repeated."""
    deadline_s = settings.deadline_s
    return _client(url, Retry(NoBackoff(), 0), _MAX_BLOCK_S + 5.0 + deadline_s, deadline_s)


def _client(url: str, retry: Retry, answer_s: float, deadline_s: float) -> Redis:
    return Redis.from_url(
        url,
        retry=retry,
        socket_timeout=answer_s,
        socket_connect_timeout=_CONNECT_SHARE * deadline_s,
        max_connections=_MAX_CONNECTIONS,
        health_check_interval=0,
        decode_responses=False,
        protocol=2,
    )


@asynccontextmanager
async def store_errors(deadline_s: float) -> AsyncIterator[None]:
    """Everything that Redis or the way to it can do wrong becomes StoreUnavailable, in time."""
    task = asyncio.current_task()
    assert task is not None
    canceled_before = task.cancelling()
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError as error:
        raise StoreUnavailable(f"The task store did not answer in {deadline_s:g} s.") from error
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"The task store is unavailable: {error}") from error
    finally:
        # redis-py sends under asyncio.wait_for, which before Python 3.12 loses a cancellation that
        # comes while it ends: an endless loop over the store could not be stopped then.
        if task.cancelling() > canceled_before:
            raise asyncio.CancelledError


def block_ms(block_s: float) -> int:
    """Within what the blocking client's socket outwaits; 0 would mean for ever."""
    return max(1, int(min(block_s, _MAX_BLOCK_S) * 1000))


@functools.cache
def script_text() -> str:
    """tasks.lua with the tables of model.py before it, the same text in every process."""
    return _tables() + Path(__file__).with_name("tasks.lua").read_text("utf-8")


def _tables() -> str:
    ways = ", ".join(
        f"{status} = {_lua_set(TRANSITIONS[status])}" for status in sorted(TRANSITIONS)
    )
    return (
        f"local TRANSITIONS = {{{ways}}}\n"
        f"local TERMINAL = {_lua_set(TERMINAL)}\n"
        f"local KINDS = {_lua_set(Kind)}\n"
        f"local PAUSABLE = {_lua_set(PAUSABLE)}\n"
        f"local VERSION = {SCHEMA_VERSION}\n"
    )


def _lua_set(words: Any) -> str:
    return "{" + ", ".join(f"{word} = true" for word in sorted(words)) + "}"


class Script:
    """One loaded script under one key prefix."""

    def __init__(self, redis: Redis, settings: TaskSettings, text: str) -> None:
        self._redis = redis
        self._text = text
        self._deadline_s = settings.deadline_s
        self._prefix = f"{{{settings.key_prefix}}}:"
        self._room = asyncio.Semaphore(_MAX_CALLS)
        self._calls: set[asyncio.Task[list[Any]]] = set()
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def key(self, name: str) -> str:
        return self._prefix + name

    def errors(self, block_s: float = 0.0) -> AbstractAsyncContextManager[None]:
        """`store_errors` for a command that may wait so long before it answers."""
        return store_errors(block_s + self._deadline_s)

    async def __call__(self, verb: str, **arguments: object) -> tuple[str, list[Any]]:
        """Run a verb: its word and the rest of its answer. Raises StoreUnavailable."""
        given = {name: value for name, value in arguments.items() if value is not None}
        payload = json.dumps(given, ensure_ascii=False).encode("utf-8", "replace")
        async with self.errors(), self._room:
            # A call goes on to its end even where its caller is cancelled: redis-py, cut off while
            # it dials, leaves a connection open that nobody owns.
            call = asyncio.create_task(self._evaluate(verb, payload))
            self._calls.add(call)
            call.add_done_callback(self._settled)
            answer = await asyncio.shield(call)
        return answer[0].decode(), answer[1:]

    async def settle(self) -> None:
        """Wait for calls that outlived their callers; they end within the client's time-outs."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._deadline_s)

    def _settled(self, call: asyncio.Task[list[Any]]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # retrieved, so that asyncio does not report it once more

    async def _evaluate(self, verb: str, payload: bytes) -> list[Any]:
        arguments = (self._prefix, verb, payload)
        try:
            answer = await self._redis.evalsha(self._sha, 1, *arguments)
        except NoScriptError:  # a new server, or its script cache was flushed
            answer = await self._redis.eval(self._text, 1, *arguments)
        return cast("list[Any]", answer)
