"""Records of LoRAs in Redis: every verb is one atomic script call, safe to repeat."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from redis.asyncio import Redis

from configs.settings import TaskSettings
from deployments.log import get_logger
from deployments.loras.errors import (
    CallConflict,
    ClaimLost,
    LoraNotFound,
    NameTaken,
    TooManyLoras,
    UploadExpired,
)
from deployments.loras.model import (
    Changes,
    Filter,
    Lora,
    LoraPage,
    NewLora,
    StoredVersion,
    Version,
    folded,
    is_id,
    new_id,
)
from deployments.tasks.lora import NamedLora, OrderedLora
from deployments.tasks.model import Claim
from deployments.tasks.record import read_fields
from deployments.tasks.script import Script, command_client
from pipelines.errors import InvalidRequest

log = get_logger(__name__)

MAX_PAGE = 200
ANNOUNCED_S = 3600.0
"""An object that is announced and not registered by then is deleted."""

# `list` is a method below, so the class body cannot name the type.
Names: TypeAlias = list[str]
Holds: TypeAlias = list[tuple[str, float]]


class Unknown(Exception):
    """No LoRA, or no such version of it, for the one at this place of a request."""

    def __init__(self, index: int, newest: int | None = None) -> None:
        super().__init__(index)
        self.index = index
        self.newest = newest
        """The newest version, where the LoRA is there."""


@functools.cache
def script_text() -> str:
    return Path(__file__).with_name("loras.lua").read_text("utf-8")


class LoraStore:
    """Every method may raise StoreUnavailable, within seconds. Keys lie beside those of tasks."""

    def __init__(self, commands: Redis, settings: TaskSettings) -> None:
        self._commands = commands
        self._script = Script(commands, settings, script_text())
        self._run = self._script.__call__

    @classmethod
    def connect(cls, url: str, settings: TaskSettings) -> LoraStore:
        """Open lazily: nothing is dialled before the first call. One event loop per store."""
        return cls(command_client(url, settings), settings)

    async def close(self) -> None:
        """Release the client's connections."""
        await self._script.settle()
        await self._commands.aclose()

    async def announce(self, key: str) -> None:
        """Before an object is written: unless something names it in time, it is deleted."""
        await self._run("announce", key=key, ttl=round(ANNOUNCED_S * 1e6))

    async def register(
        self,
        new: NewLora,
        version: Version,
        *,
        call_id: str,
        claim: Claim | None = None,
        max_owned: int | None = None,
    ) -> Lora:
        """A new LoRA, or another version of the owner's LoRA of this name.

        The same call again registers nothing and answers the same LoRA as it is now. Raises
        CallConflict where that call had another file, LoraNotFound where its LoRA was deleted,
        UploadExpired, ClaimLost where a `claim` is given that is void, and TooManyLoras where the
        owner has `max_owned`.
        """
        word, rest = await self._run(
            "register",
            call=call_id,
            id=new_id(),
            owner=new.owner,
            key=version.key,
            sha256=version.sha256,
            others=[*filter(None, [version.curve_key]), *version.references],
            base=version.base,
            version=version.model_dump_json(),
            task=claim.task_id if claim else None,
            fence=claim.fence if claim else None,
            max_owned=max_owned,
            **_changes(Changes(**new.model_dump(include=set(Changes.model_fields)))),
        )
        if word == "conflict":
            raise CallConflict
        if word == "gone":
            raise LoraNotFound(new.name)
        if word == "late":
            raise UploadExpired
        if word == "stale":
            raise ClaimLost
        if word == "full":
            raise TooManyLoras(max_owned or 0)
        return _lora(rest)

    async def published(self, call_id: str, *, owner: str) -> Lora | None:
        """What that call registered; None where it did not, or where that was deleted."""
        word, rest = await self._run("published", call=call_id, owner=owner)
        return None if word == "missing" else _lora(rest)

    async def trained(self, task_id: str, *, owner: str) -> Lora | None:
        """What that training made, if the owner may use it."""
        word, rest = await self._run("trained", call=task_id, owner=owner)
        return None if word == "missing" else _lora(rest)

    async def count(self, owner: str) -> int:
        """How many LoRAs the owner has."""
        _, (found,) = await self._run("count", owner=owner)
        return int(found)

    async def has_name(self, name: str, *, owner: str) -> bool:
        """Whether the owner has a LoRA of this name, in any case."""
        word, _ = await self._run("has_name", fold=folded(name), owner=owner)
        return word == "yes"

    async def get(self, lora_id: str, *, owner: str) -> Lora:
        """With all its versions. Raises LoraNotFound, also for someone else's own."""
        return await self._one("get", lora_id, owner)

    async def update(self, lora_id: str, changes: Changes, *, owner: str) -> Lora:
        """Raises LoraNotFound, also for someone else's; NameTaken, UploadExpired."""
        return await self._one("update", lora_id, owner, **_changes(changes))

    async def delete(self, lora_id: str, *, owner: str) -> Lora:
        """Hidden at once; its files are trash once no task uses it. Raises LoraNotFound."""
        return await self._one("delete", lora_id, owner, rid=uuid4().hex)

    async def list(
        self, owner: str, chosen: Filter, *, limit: int = 50, cursor: str | None = None
    ) -> LoraPage:
        """The owner's and the public ones, newest first. A page may be short and yet not the last;
        what someone else wrote into a record leaves that one out.

        Raises InvalidRequest for a foreign cursor.
        """
        if cursor is not None and not re.fullmatch(r"\d{1,15}", cursor, re.ASCII):
            raise InvalidRequest("cursor", "cursor must be a next_cursor of this list")
        _, (last, *records) = await self._run(
            "list",
            owner=owner,
            mine=chosen.mine,
            visibility=chosen.visibility,
            base=chosen.base,
            prefix=None if chosen.prefix is None else folded(chosen.prefix),
            limit=min(max(limit, 1), MAX_PAGE),
            before=cursor,
        )
        found = tuple(lora for record in records if (lora := _sound(record)) is not None)
        return LoraPage(loras=found, next_cursor=last.decode() or None)

    async def names(self, owner: str) -> Names:
        """Of LoRAs that an owner may use: some hundred at most."""
        _, found = await self._run("names", owner=owner)
        return [name.decode() for name in found]

    # Use

    async def hold(
        self, wanted: Sequence[NamedLora], *, owner: str, task_id: str
    ) -> tuple[OrderedLora, ...]:
        """Look all of them up; their files stay until `release`. Raises Unknown for the first that
        is not there, and then holds none.
        """
        word, rest = await self._run(
            "hold", owner=owner, task=task_id, wanted=[_wanted(lora) for lora in wanted]
        )
        if word != "ok":
            raise Unknown(int(rest[0]), int(rest[1]) if rest[1:] else None)
        return tuple(_ordered(lora, *found) for lora, found in zip(wanted, rest, strict=True))

    async def holds(self) -> Holds:
        """Tasks that hold LoRAs, and for how many seconds; the oldest first, not without limit."""
        _, found = await self._run("holds")
        return [(task.decode(), int(age_us) / 1e6) for task, age_us in found]

    async def release(self, tasks: Sequence[str]) -> None:
        """They use no LoRA any more."""
        await self._run("release", tasks=list(tasks))

    async def trash(self) -> Names:
        """Keys of some objects that nothing can name any more. Also ends deletions whose LoRA is
        out of use.
        """
        _, keys = await self._run("trash")
        return [key.decode() for key in keys]

    async def forget(self, keys: Sequence[str]) -> None:
        """These objects are deleted."""
        await self._run("forget", keys=list(keys))

    async def _one(self, verb: str, lora_id: str, owner: str, **more: object) -> Lora:
        if not is_id(lora_id):
            raise LoraNotFound(lora_id)
        word, rest = await self._run(verb, id=lora_id, owner=owner, **more)
        if word == "missing":
            raise LoraNotFound(lora_id)
        if word == "taken":
            raise NameTaken(str(more["name"]))
        if word == "late":
            raise UploadExpired
        if (lora := _sound(rest)) is None:
            raise LoraNotFound(lora_id)
        return lora


def _sound(record: Sequence[Any]) -> Lora | None:
    try:
        return _lora(record)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        log.warning("a LoRA's record is damaged: %r: %r", record[0][:4], error)
        return None


def _changes(changes: Changes) -> dict[str, object]:
    words = changes.trigger_words
    return {
        "name": changes.name,
        "fold": None if changes.name is None else folded(changes.name),
        "visibility": changes.visibility,
        "trigger_words": None if words is None else json.dumps(words),
        "preview": changes.preview_key,
    }


def _wanted(lora: NamedLora) -> dict[str, object]:
    found: dict[str, object] = {}
    if lora.version is not None:
        found["version"] = lora.version
    name = (lora.name or "").strip()
    if lora.id is not None or is_id(name):
        return found | {"id": lora.id or name}
    return found | {"fold": folded(name)}


def _lora(record: Sequence[Any]) -> Lora:
    fields = read_fields(record[0])
    return Lora(
        id=fields["id"],
        name=fields["name"],
        owner=fields["owner"],
        visibility=fields["visibility"],
        trigger_words=json.loads(fields["trigger_words"]),
        preview_key=fields.get("preview"),
        trained_by=fields.get("task"),
        created_at=_time(int(fields["created"])),
        updated_at=_time(int(fields["updated"])),
        versions=tuple(map(_version, record[1:])),
    )


def _version(text: bytes) -> StoredVersion:
    stored = json.loads(text)
    created = _time(stored["created"])
    return StoredVersion(number=stored["number"], created_at=created, **stored["version"])


def _ordered(lora: NamedLora, lora_id: bytes, name: bytes, text: bytes) -> OrderedLora:
    version = _version(text)
    return OrderedLora(
        id=lora_id.decode(),
        name=name.decode(),
        version=version.number,
        key=version.key,
        sha256=version.sha256,
        data_sha256=version.data_sha256,
        weight=lora.weight,
        text_weight=lora.text_weight,
        rank=lora.rank,
        tagged=lora.tagged,
    )


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)
