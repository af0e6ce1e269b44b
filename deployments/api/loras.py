"""The verbs of LoRAs that every dialect calls."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from configs.settings import Settings
from deployments.loras.errors import LoraNotFound
from deployments.loras.model import (
    Changes,
    Filter,
    Lora,
    LoraPage,
    NewLora,
    StoredVersion,
    TriggerWords,
    Visibility,
    as_name,
)
from deployments.loras.registry import LoraRegistry
from deployments.storage.store import ObjectStore
from pipelines.errors import InvalidRequest, ModelError
from pipelines.images import decode_data_url, decode_image

PREVIEW_PX = 512
_CHUNK_BYTES = 2**18


@dataclass(frozen=True, kw_only=True)
class LoraUpload:
    """A file that a client sent, and what it is to be."""

    file: IO[bytes]
    file_name: str
    name: str | None = None
    """None: the file's."""
    visibility: Visibility | None = None
    trigger_words: TriggerWords | None = None
    base_model: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True)
class LoraDownload:
    """A LoRA's file, read as it is sent; nothing is left of it once `chunks` ends or is dropped."""

    name: str
    size_bytes: int
    chunks: Iterator[bytes]


class LoraService:
    """Each verb may raise StoreUnavailable, and StorageUnavailable where it touches files."""

    def __init__(
        self,
        settings: Settings,
        registry: LoraRegistry,
        objects: ObjectStore,
        decoders: asyncio.Semaphore,
    ) -> None:
        """`decoders`: how many clients' pictures are decoded at once."""
        self._settings = settings
        self.registry = registry
        self._store = registry.store
        self._objects = objects
        self._decoders = decoders

    async def import_file(self, upload: LoraUpload, owner: str) -> Lora:
        """A LoRA, or another version of one, of a file in any format that the engine reads.

        Whether it fits a model shows when that wears it. Raises InvalidRequest, CallConflict,
        TooManyLoras.
        """
        call_id = uuid.uuid4().hex
        if upload.idempotency_key is not None:
            parts = ("lora", owner, upload.idempotency_key)
            call_id = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        new = NewLora(
            name=upload.name or as_name(Path(upload.file_name).stem),
            owner=owner,
            visibility=upload.visibility,
            trigger_words=upload.trigger_words,
            base_model=upload.base_model,
        )
        with tempfile.TemporaryDirectory(prefix="daguerre-") as folder:
            path = Path(folder, "upload")
            await asyncio.to_thread(self._copy, upload.file, path)
            try:
                return await self.registry.publish(
                    path,
                    new,
                    call_id=call_id,
                    file_name=upload.file_name,
                    max_owned=self._settings.limits.max_owned_loras,
                )
            except ModelError as error:
                raise InvalidRequest("file", str(error)) from error

    def _copy(self, file: IO[bytes], path: Path) -> None:
        size, limit = file.seek(0, io.SEEK_END), self._settings.limits.max_lora_bytes
        if size > limit:
            raise InvalidRequest("file", f"file must be at most {limit} bytes, given {size}")
        file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy, _CHUNK_BYTES)

    async def get(self, lora_id: str, owner: str) -> Lora:
        """Raises LoraNotFound, also for another owner's private one."""
        return await self._store.get(lora_id, owner=owner)

    async def list(self, owner: str, chosen: Filter, limit: int, cursor: str | None) -> LoraPage:
        """One page of those an owner may use. Raises InvalidRequest for a foreign cursor."""
        return await self._store.list(owner, chosen, limit=limit, cursor=cursor)

    async def update(self, lora_id: str, changes: Changes, preview: str | None, owner: str) -> Lora:
        """`preview` is a data URL. Raises LoraNotFound, also for another owner's; NameTaken,
        InvalidRequest.
        """
        if preview is not None:
            async with self._decoders:
                jpeg = await asyncio.to_thread(self._preview, preview)
            await self._own(lora_id, owner)
            key = await self.registry.keep_preview(jpeg)
            changes = changes.model_copy(update={"preview_key": key})
        return await self._store.update(lora_id, changes, owner=owner)

    async def _own(self, lora_id: str, owner: str) -> None:
        if (await self._store.get(lora_id, owner=owner)).owner != owner:
            raise LoraNotFound(lora_id)

    def _preview(self, data_url: str) -> bytes:
        limit = self._settings.http.max_body_bytes
        data = decode_data_url(data_url, field="preview", max_bytes=limit)
        pixels = self._settings.limits.max_input_pixels
        image = decode_image(data, field="preview", max_pixels=pixels)
        image.thumbnail((PREVIEW_PX, PREVIEW_PX))
        buffer = io.BytesIO()
        image.save(buffer, "jpeg", quality=90)
        return buffer.getvalue()

    async def delete(self, lora_id: str, owner: str) -> Lora:
        """No new request finds it; its files go when those that use it have ended. Raises
        LoraNotFound, also for another owner's.
        """
        return await self._store.delete(lora_id, owner=owner)

    async def download(self, lora_id: str, version: int | None, owner: str) -> LoraDownload:
        """The file of a version, by default the newest. Raises LoraNotFound."""
        lora = await self._store.get(lora_id, owner=owner)
        found = _version(lora, version)
        with tempfile.TemporaryDirectory(prefix="daguerre-") as folder:
            path = Path(folder, "download")
            await self._objects.fetch(found.key, path)
            # Once its folder is gone, the open file alone keeps it.
            file = await asyncio.to_thread(path.open, "rb")
        return LoraDownload(f"{lora.name}.safetensors", found.size_bytes, _chunks(file))

    async def preview_url(self, lora: Lora, base: str) -> str | None:
        """`base` stands before an address of a local store."""
        if lora.preview_key is None:
            return None
        url = await self._objects.url(lora.preview_key)
        return base + url if url.startswith("/") else url


def _version(lora: Lora, number: int | None) -> StoredVersion:
    for version in lora.versions:
        if number in (None, version.number):
            return version
    raise InvalidRequest("version", f"version must be 1 to {lora.newest.number}, given {number}")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
