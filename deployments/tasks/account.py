"""Accounts of dialects that number their jobs and count their calls."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from configs.settings import TaskSettings
from deployments.tasks.errors import TaskNotFound
from deployments.tasks.script import Script

MAX_NUMBER = 2**31 - 1
KEPT_S = 30 * 86400
"""A number that nobody asks for is forgotten so long after its task's record would be."""


@functools.cache
def script_text() -> str:
    return Path(__file__).with_name("account.lua").read_text("utf-8")


@dataclass(frozen=True)
class NumberedJob:
    task_id: str
    about: dict[str, Any]
    """What `number` was told."""


class AccountStore:
    """Every method may raise StoreUnavailable, within seconds; repeating one is safe."""

    def __init__(self, commands: Redis, settings: TaskSettings) -> None:
        self._script = Script(commands, settings, script_text())
        self._run = self._script.__call__
        self._ttl = round(settings.retention_s) + KEPT_S

    async def settle(self) -> None:
        """As `Script.settle`."""
        await self._script.settle()

    async def number(self, task_id: str, owner: str, about: Mapping[str, Any]) -> int:
        """A task's number, 1 to MAX_NUMBER, the same for every call; the task may come later."""
        text = json.dumps(dict(about))
        _, (number,) = await self._run(
            "number", task=task_id, owner=owner, about=text, ttl=self._ttl
        )
        return int(number)

    async def job(self, number: int, owner: str) -> NumberedJob:
        """Raises TaskNotFound, also for another owner's."""
        word, rest = await self._run("job", number=str(number), owner=owner, ttl=self._ttl)
        if word == "missing":
            raise TaskNotFound(str(number))
        return NumberedJob(rest[0].decode(), json.loads(rest[1]))

    async def use(self, owner: str, most: int) -> bool:
        """Count a call; False, and nothing counted, where `most` were."""
        word, _ = await self._run("use", owner=owner, most=most, rid=uuid4().hex)
        return word == "ok"

    async def give_back(self, owner: str) -> None:
        """One call is as if it had not been."""
        await self._run("give_back", owner=owner, rid=uuid4().hex)
