"""LoRA files on a worker's own disk: fetched once, named by what they hold, removed when room is
short.

Workers of one machine share the folder. Whoever uses a file holds a shared lock on it, which dies
with its process; only a file that can be locked alone is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from deployments.log import get_logger
from deployments.storage.store import ObjectNotFound
from deployments.tasks.lora import OrderedLora
from pipelines.engine.request import LoraUse
from pipelines.errors import InvalidRequest

log = get_logger(__name__)

Fetch = Callable[[str, Path], Awaitable[None]]

_TEMPORARY = "~"
_STALE_S = 3600.0
"""A temporary file older than this belongs to a process that died while it fetched."""
_MTIME_NS = 10**9
"""Of every file: a file that is fetched anew is the same to all who remember it by its time."""


class LoraFiles:
    """The LoRA files of a worker. Belongs to one event loop."""

    def __init__(self, folder: Path, fetch: Fetch, *, max_bytes: int) -> None:
        """`fetch` writes the object of a key to a path; ObjectNotFound where there is none.

        Files that nobody uses are removed, the longest unused first, while all of the folder's are
        more than `max_bytes`.
        """
        self._folder = folder.absolute()
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def worn(self, loras: Sequence[OrderedLora]) -> AsyncIterator[tuple[LoraUse, ...]]:
        """The files of these, here for as long as the context lasts.

        Raises InvalidRequest for one that is gone or damaged, and names the LoRA instead of its
        file in those that come from within.
        """
        with ExitStack() as held:
            uses = [await self._use(lora, held) for lora in loras]
            try:
                yield tuple(uses)
            except InvalidRequest as error:
                message = str(error)
                for lora, use in zip(loras, uses, strict=True):
                    message = message.replace(str(use.path), lora.name)
                raise InvalidRequest(error.field, message) from error

    async def _use(self, lora: OrderedLora, held: ExitStack) -> LoraUse:
        path = self._folder / f"{lora.sha256}.safetensors"
        async with self._fetching.setdefault(lora.sha256, asyncio.Lock()):
            while not await asyncio.to_thread(_hold, path, held):
                await self._bring(lora, path)
        return LoraUse(path, lora.weight, lora.text_weight, lora.rank)

    async def _bring(self, lora: OrderedLora, path: Path) -> None:
        temporary = path.with_name(_TEMPORARY + secrets.token_hex(8))
        try:
            await asyncio.to_thread(self._folder.mkdir, 0o700, parents=True, exist_ok=True)
            await self._fetch(lora.key, temporary)
            if await asyncio.to_thread(_digest, temporary) != lora.sha256:
                raise InvalidRequest("lora", f"the stored file of LoRA {lora.name} is damaged")
            await asyncio.to_thread(_place, temporary, path)
            log.info("LoRA %s version %s is here", lora.id, lora.version)
        except ObjectNotFound:
            raise InvalidRequest("lora", f"the LoRA {lora.name} was deleted") from None
        finally:
            temporary.unlink(missing_ok=True)
        await asyncio.to_thread(self._make_room, path)

    def _make_room(self, newest: Path) -> None:
        files = sorted(self._files(), key=lambda found: found[1].st_atime_ns)
        excess = sum(stat.st_size for _, stat in files) - self._max_bytes
        for path, stat in files:
            stale = path.name.startswith(_TEMPORARY) and time.time() - stat.st_mtime > _STALE_S
            whole = path.suffix == ".safetensors" and path != newest
            if (stale or (whole and excess > 0)) and _removed(path):
                excess -= stat.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat()


def _hold(path: Path, held: ExitStack) -> bool:
    """Lock the file for as long as the stack lasts; False where it is not there."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with ExitStack() as mine:
        mine.enter_context(file)
        fcntl.flock(file, fcntl.LOCK_SH)
        # It may have been removed, and even fetched anew, before it was locked.
        if not _is_at(file.fileno(), path):
            return False
        os.utime(path, ns=(time.time_ns(), _MTIME_NS))
        held.push(mine.pop_all())
    return True


def _removed(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except OSError:  # in use, or already gone
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _place(temporary: Path, path: Path) -> None:
    """Never in the place of another: that one may be in use, and its lock would tell nothing."""
    os.utime(temporary, ns=(time.time_ns(), _MTIME_NS))
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
