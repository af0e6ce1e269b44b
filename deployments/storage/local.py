"""Objects as files of one folder, with links that cannot be guessed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import io
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, TypeVar

from deployments.storage.key import checked_key, checked_prefix
from deployments.storage.store import ObjectNotFound, StorageUnavailable

T = TypeVar("T")

# No key can hold a `~`, so neither file can be read or replaced through one.
_SECRET_NAME = "~url-secret"  # noqa: S105 - a file's name
_TEMPORARY = "~"
_NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)
_COPY_BYTES = 2**20
_STALE_S = 3600.0
"""A temporary file older than this belongs to a process that died while writing."""


class LocalStore:
    """An ObjectStore in a folder; several processes may share it.

    A URL is `<url_base>/files/<token>/<key>`; the token is an HMAC of the key under a secret kept
    in the folder (mode 0600), so URLs survive a restart and nobody can make one.
    """

    def __init__(self, root: Path, url_base: str) -> None:
        self._root = root.absolute()
        self._url_base = url_base.rstrip("/")

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        await self._put(key, lambda: io.BytesIO(data))

    async def put_file(self, key: str, path: Path, content_type: str) -> None:
        await self._put(key, lambda: path.open("rb"))

    async def get(self, key: str) -> bytes:
        path = self._path(key)
        try:
            return await _in_thread("read", lambda: self._read(path))
        except _NO_SUCH_FILE:
            raise ObjectNotFound(key) from None

    async def fetch(self, key: str, path: Path) -> None:
        source = self._path(key)
        if not await self.exists(key):
            raise ObjectNotFound(key)
        await _in_thread("read", lambda: shutil.copyfile(self._inside(source), path))

    async def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(*_NO_SUCH_FILE):
            await _in_thread("deleted from", lambda: self._remove(path))

    async def exists(self, key: str) -> bool:
        path = self._path(key)
        return await _in_thread("read", lambda: self._inside(path).is_file())

    async def url(self, key: str) -> str:
        checked_key(key)
        token = await _in_thread("read", lambda: self._token(key))
        return f"{self._url_base}/files/{token}/{key}"

    def verify(self, token: str, key: str) -> bool:
        """Whether `url` made this token for this key; takes the same time for any wrong one."""
        with _failures("read"):
            expected = self._token(key)
        return hmac.compare_digest(expected.encode(), token.encode("utf-8", "replace"))

    async def sweep(self, prefix: str, older_than_s: float) -> int:
        checked_prefix(prefix)
        return await _in_thread("swept", lambda: self._sweep(prefix, older_than_s))

    async def close(self) -> None:
        """Nothing is held open."""

    async def _put(self, key: str, source: Callable[[], IO[bytes]]) -> None:
        path = self._path(key)
        try:
            await _in_thread("written", lambda: self._write(path, source))
        except _NO_SUCH_FILE:
            raise ValueError(f"{key} lies above or below another object") from None

    # Below here: in a thread.

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _inside(self, path: Path) -> Path:
        """The path, unless links on its way or at its end lead out of the folder: ValueError."""
        folder, root = path.parent.resolve(), self._root.resolve()
        if folder != root and root not in folder.parents:
            raise ValueError("a link leads out of the object store")
        if path.is_symlink():
            raise ValueError("a link is not an object")
        return path

    def _write(self, path: Path, source: Callable[[], IO[bytes]]) -> None:
        self._inside(path)
        for _ in range(10):
            self._make_folder(path.parent)
            # Between these two lines another process may remove the folder, empty as it is.
            with contextlib.suppress(FileNotFoundError):
                _replace(path, source)
                return
        raise OSError("its folder disappears again and again")

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        _sync_folder(folder.parent)

    def _read(self, path: Path) -> bytes:
        with open(self._inside(path), "rb") as file:
            return file.read()

    def _remove(self, path: Path) -> None:
        self._inside(path).unlink()
        self._prune(path.parent)

    def _prune(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # not empty, or already gone
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent

    def _sweep(self, prefix: str, older_than_s: float) -> int:
        now, swept = time.time(), 0
        for path, age_s in self._files(prefix, now):
            ours = path.name.startswith(_TEMPORARY)
            if path.name == _SECRET_NAME or age_s <= (_STALE_S if ours else older_than_s):
                continue
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                swept += not ours
                self._prune(path.parent)
        return swept

    def _files(self, prefix: str, now: float) -> Iterator[tuple[Path, float]]:
        top = self._root / prefix.rpartition("/")[0]
        for folder, _, names in os.walk(top):  # follows no links
            for name in names:
                path = Path(folder, name)
                if not path.relative_to(self._root).as_posix().startswith(prefix):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    yield path, now - path.lstat().st_mtime

    def _token(self, key: str) -> str:
        digest = hmac.digest(self._secret, key.encode("utf-8", "replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:24]).decode()

    @cached_property
    def _secret(self) -> bytes:
        path = self._root / _SECRET_NAME
        if not path.exists():
            self._make_folder(self._root)
            # Of several processes that start at once one wins; a link never replaces.
            with contextlib.suppress(FileExistsError):
                _replace(path, lambda: io.BytesIO(secrets.token_bytes(32)), place=os.link)
        return path.read_bytes()


def _replace(
    path: Path,
    source: Callable[[], IO[bytes]],
    *,
    place: Callable[[Path, Path], None] = os.replace,
) -> None:
    """All of the source at `path`, or nothing changed and nothing left behind."""
    temporary = path.with_name(_TEMPORARY + secrets.token_hex(8))
    try:
        with open(temporary, "xb", opener=_private) as file, source() as data:
            shutil.copyfileobj(data, file, _COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    """A new name survives a power cut only when its folder is synced, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _in_thread(verb: str, work: Callable[[], T]) -> T:
    with _failures(verb):
        return await asyncio.to_thread(work)


@contextlib.contextmanager
def _failures(verb: str) -> Iterator[None]:
    try:
        yield
    except _NO_SUCH_FILE:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageUnavailable(f"the object store cannot be {verb}: {reason}") from error
