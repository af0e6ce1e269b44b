"""Drafts in Redis: every verb is one atomic script call, safe to repeat."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from redis.asyncio import Redis

from configs.settings import TaskSettings
from deployments.drafts.errors import DraftNotFound, Locked, TooManyDrafts
from deployments.drafts.model import Dataset, Draft, Kind, ModelPlan
from deployments.log import get_logger
from deployments.tasks.script import Script, command_client

log = get_logger(__name__)

LOCK_S = 3600.0
"""What a process that died held is free again; longer than any request lasts."""
_EXPIRED_AT_ONCE = 100

# `list` is a method below, so the class body cannot name the type.
Drafts: TypeAlias = list[Draft]


@functools.cache
def script_text() -> str:
    return Path(__file__).with_name("drafts.lua").read_text("utf-8")


class DraftStore:
    """Every method may raise StoreUnavailable, within seconds. Keys lie beside those of tasks."""

    def __init__(self, commands: Redis, settings: TaskSettings) -> None:
        self._commands = commands
        self._script = Script(commands, settings, script_text())
        self._run = self._script.__call__

    @classmethod
    def connect(cls, url: str, settings: TaskSettings) -> DraftStore:
        """Open lazily: nothing is dialled before the first call. One event loop per store."""
        return cls(command_client(url, settings), settings)

    async def close(self) -> None:
        """Release the client's connections."""
        await self._script.settle()
        await self._commands.aclose()

    async def create(self, body: ModelPlan | Dataset, *, owner: str, most: int) -> Draft:
        """Raises TooManyDrafts where the owner has `most` of this kind."""
        kind = Kind.MODEL if isinstance(body, ModelPlan) else Kind.DATASET
        draft_id, text = str(uuid4()), body.model_dump_json()
        word, rest = await self._run(
            "create", kind=kind, id=draft_id, owner=owner, body=text, most=most
        )
        if word == "full":
            raise TooManyDrafts(kind, most)
        return _draft(kind, rest[0])

    async def get(self, kind: Kind, draft_id: str, *, owner: str) -> Draft:
        """Raises DraftNotFound, also for someone else's."""
        return await self._one("get", kind, draft_id, owner)

    async def list(self, kind: Kind, *, owner: str) -> Drafts:
        """All of an owner's, newest first: no more than `create` lets be."""
        _, records = await self._run("list", kind=kind, owner=owner)
        found = []
        for record in records:
            try:
                found.append(_draft(kind, record))
            except (ValueError, OverflowError) as error:
                log.warning("a draft's record is damaged: %r: %r", record[0], error)
        return found

    async def update(self, draft: Draft, body: ModelPlan | Dataset) -> Draft:
        """Raises DraftNotFound, Locked."""
        text = body.model_dump_json()
        return await self._one("update", draft.kind, draft.id, draft.owner, body=text)

    async def delete(self, draft: Draft) -> Draft:
        """Raises DraftNotFound, Locked."""
        return await self._one("delete", draft.kind, draft.id, draft.owner, rid=uuid4().hex)

    @asynccontextmanager
    async def becoming_a_task(self, draft: Draft) -> AsyncIterator[Draft]:
        """The draft, locked; it is gone once the context ends well, and as it was where that
        raises. Raises DraftNotFound, and Locked where another call has it.
        """
        rid = uuid4().hex
        lease = round(LOCK_S * 1e6)
        held = await self._one("lock", draft.kind, draft.id, draft.owner, rid=rid, lease=lease)
        done = False
        try:
            yield held
            done = True
        finally:
            await self._run(
                "unlock", kind=draft.kind, id=draft.id, owner=draft.owner, rid=rid, done=done
            )

    async def sweep(self, older_than_s: float) -> int:
        """Remove what nobody changed for so long; returns how many, not without limit."""
        age = round(max(older_than_s, LOCK_S) * 1e6)
        _, (gone,) = await self._run("expire", age=age, limit=_EXPIRED_AT_ONCE)
        return int(gone)

    async def _one(self, verb: str, kind: Kind, draft_id: str, owner: str, **more: object) -> Draft:
        word, rest = await self._run(verb, kind=kind, id=draft_id, owner=owner, **more)
        if word == "missing":
            raise DraftNotFound(kind, draft_id)
        if word == "locked":
            raise Locked(f"The {kind} {draft_id} is being queued: it cannot be changed now.")
        return _draft(kind, rest[0])


def _draft(kind: Kind, record: Sequence[Any]) -> Draft:
    draft_id, owner, body, created, updated, locked = record
    return Draft(
        id=draft_id.decode(),
        kind=kind,
        owner=owner.decode(),
        locked=bool(locked),
        body=json.loads(body),
        created_at=_time(int(created)),
        updated_at=_time(int(updated)),
    )


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
