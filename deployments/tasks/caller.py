"""What is kept of a caller beside its tasks, and what a caller asks of a running task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from redis.asyncio import Redis

from deployments.tasks.argument import digest
from deployments.tasks.script import Script

HURRY_TTL_S = 60.0
HOLD_TTL_S = 30.0
"""So long a call of a replica that was killed is told of."""


class CallerStore:
    """Every method may raise StoreUnavailable, within seconds; repeating one is safe."""

    def __init__(self, commands: Redis, script: Script) -> None:
        self._commands = commands
        self._key = script.key
        self._errors = script.errors

    async def options(self, owner: str) -> dict[str, Any]:
        """What `set_options` kept of an owner."""
        async with self._errors():
            found = await self._commands.hgetall(self._key(f"options:{owner}"))
        values = cast("dict[bytes, bytes]", found)
        return {name.decode(): json.loads(value) for name, value in values.items()}

    async def set_options(self, owner: str, changes: Mapping[str, Any]) -> None:
        """Keep JSON values by name; those that are not named stay."""
        if not changes:
            return
        values: dict[Any, Any] = {name: json.dumps(value) for name, value in changes.items()}
        async with self._errors():
            await self._commands.hset(self._key(f"options:{owner}"), mapping=values)

    async def hurry(self, task_id: str) -> None:
        """Have whoever runs the task end it with what is there, within HURRY_TTL_S."""
        async with self._errors():
            key = self._key(f"hurry:{task_id}")
            await self._commands.set(key, 1, px=int(HURRY_TTL_S * 1000))

    async def hurried(self, task_id: str) -> bool:
        """Whether `hurry` was asked for within HURRY_TTL_S."""
        async with self._errors():
            return bool(await self._commands.exists(self._key(f"hurry:{task_id}")))

    async def hold(self, owner: str, call: str, share: float) -> None:
        """A call of several tasks goes on, so much of it done; for HOLD_TTL_S, if not repeated."""
        key = self._key(f"calls:{owner}")
        async with self._errors(), self._commands.pipeline() as both:
            both.hset(key, call, repr(share))
            both.pexpire(key, int(HOLD_TTL_S * 1000))
            await both.execute()

    async def stop(self, owner: str, call: str) -> None:
        """A call that is held shall begin nothing more, though it has no task at this moment."""
        async with self._errors():
            await self._commands.set(self._stop(owner, call), 1, px=int(HURRY_TTL_S * 1000))

    async def stopped(self, owner: str, call: str) -> bool:
        """Whether `stop` was asked for since it began, within HURRY_TTL_S."""
        async with self._errors():
            return bool(await self._commands.exists(self._stop(owner, call)))

    async def let_go(self, owner: str, call: str) -> None:
        """It is answered."""
        async with self._errors(), self._commands.pipeline() as both:
            both.hdel(self._key(f"calls:{owner}"), call)
            both.delete(self._stop(owner, call))
            await both.execute()

    def _stop(self, owner: str, call: str) -> str:
        return self._key(f"stop:{digest(owner, call)}")

    async def held(self, owner: str) -> dict[str, float]:
        """Calls that go on, and how much of each is done."""
        async with self._errors():
            found = await self._commands.hgetall(self._key(f"calls:{owner}"))
        shares = cast("dict[bytes, bytes]", found)
        return {call.decode(): float(share) for call, share in shares.items()}

    async def task_id(self, owner: str, idempotency_key: str) -> str | None:
        """The task that was made with the key."""
        task_id, _ = await self.made(owner, idempotency_key)
        return task_id

    async def made(self, owner: str, idempotency_key: str) -> tuple[str | None, str | None]:
        """The task that was made with the key, and its request's fingerprint."""
        name = f"idem:{digest(owner, idempotency_key)}"
        async with self._errors():
            values = await self._commands.hmget(self._key(name), ["task", "fingerprint"])
        found = cast("list[bytes | None]", values)
        task_id, fingerprint = (None if each is None else each.decode() for each in found)
        return task_id, fingerprint
