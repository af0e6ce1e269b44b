"""LoRAs with their files: published, looked up for tasks, and removed when nobody uses them."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from deployments.log import get_logger
from deployments.loras.model import PREFIX, Lora, NewLora, Version, folded
from deployments.loras.store import LoraStore, Unknown
from deployments.storage.store import BINARY, ObjectStore
from deployments.tasks.errors import TaskNotFound
from deployments.tasks.lora import NamedLora, OrderedLora
from deployments.tasks.model import TERMINAL, Claim
from deployments.tasks.store import TaskStore
from pipelines.errors import InvalidRequest
from pipelines.lora.header import PROMPTS, LoraHeader, read_header

log = get_logger(__name__)

HOLD_S = 600.0
"""How long a LoRA is in use by a task that is not there: it is about to be created, or its call
came without a task and fetches the file first.
"""
_ASKED_AT_ONCE = 32
_MAX_METADATA_CHARS = 500
METADATA = (
    "modelspec.title", "modelspec.description", "modelspec.author", "modelspec.license",
    "modelspec.date", "modelspec.architecture", "modelspec.trigger_phrase", "modelspec.tags",
    "ss_output_name", "ss_base_model_version", "ss_sd_model_name", "ss_network_module",
    "ss_network_dim", "ss_network_alpha", "ss_resolution", "ss_steps", "ss_epoch",
    "ss_num_train_images", "ss_learning_rate", "ss_clip_skip", PROMPTS,
)  # fmt: skip
"""What is shown of a file's header; the rest tells of its maker's folders and pictures."""


class LoraRegistry:
    """Holds nothing but clients. Every method may raise StoreUnavailable; those that touch files,
    StorageUnavailable.
    """

    def __init__(self, store: LoraStore, objects: ObjectStore) -> None:
        self.store = store
        self._objects = objects

    async def publish(
        self,
        path: Path,
        new: NewLora,
        *,
        call_id: str,
        file_name: str | None = None,
        claim: Claim | None = None,
        curve: bytes | None = None,
        references: Sequence[bytes] = (),
        max_owned: int | None = None,
    ) -> Lora:
        """Registers a file; a request may name it as soon as this returns.

        The same `call_id` again publishes nothing twice, nor does a `claim` that is void. `curve`
        is the JSON of its training's loss, `references` are JPEG files of the person whom it shows,
        the best first. Raises ModelError, which calls the file by `file_name`, where it is no LoRA;
        CallConflict, LoraNotFound, UploadExpired, ClaimLost, TooManyLoras as the store.
        """
        header = await asyncio.to_thread(read_header, path, file_name)
        # A key of this call alone: nothing that is registered is ever overwritten.
        key = f"{PREFIX}{uuid4().hex}.safetensors"
        version = await asyncio.to_thread(_described, path, header, key, new)
        await self.store.announce(key)
        await self._objects.put_file(key, path, BINARY)
        if curve is not None:
            curve_key = await self._keep(curve, "json", "application/json")
            version = version.model_copy(update={"curve_key": curve_key})
        photos = [await self._keep(jpeg, "jpg", "image/jpeg") for jpeg in references]
        version = version.model_copy(update={"references": tuple(photos)})
        lora = await self.store.register(
            _with_trigger(new, header),
            version,
            call_id=call_id,
            claim=claim,
            max_owned=max_owned,
        )
        log.info("LoRA %s has version %d", lora.id, lora.newest.number)
        return lora

    async def keep_preview(self, jpeg: bytes) -> str:
        """The key of a picture that a LoRA may be given now."""
        return await self._keep(jpeg, "jpg", "image/jpeg")

    async def _keep(self, data: bytes, extension: str, content_type: str) -> str:
        key = f"{PREFIX}{uuid4().hex}.{extension}"
        await self.store.announce(key)
        await self._objects.put(key, data, content_type)
        return key

    async def order(
        self,
        wanted: Sequence[NamedLora],
        *,
        owner: str,
        task_id: str,
        skips_unknown: bool = False,
    ) -> tuple[OrderedLora, ...]:
        """What a task about to be created wears; its files stay until the task has ended.

        Raises InvalidRequest for one that is not there, or is someone else's own, unless it
        `skips_unknown`.
        """
        if not wanted:
            return ()
        try:
            return await self.store.hold(wanted, owner=owner, task_id=task_id)
        except Unknown as unknown:
            index, newest = unknown.index, unknown.newest
        if skips_unknown:
            rest = [*wanted[:index], *wanted[index + 1 :]]
            return await self.order(rest, owner=owner, task_id=task_id, skips_unknown=True)
        lora = wanted[index]
        if newest is not None:
            raise InvalidRequest(
                "lora", f"lora {_shown(lora)} has versions 1 to {newest}, given {lora.version}"
            )
        message = f"lora must name a LoRA that you may use, given {_shown(lora)}"
        if near := _nearest(lora, await self.store.names(owner)):
            message += f"; near it: {', '.join(near)}"
        raise InvalidRequest("lora", message)

    async def sweep(self, tasks: TaskStore) -> None:
        """Ends the use by tasks that have ended, then deletes the files nobody can name any more.

        Several processes may do so at once, and each goes on where another died.
        """
        holds = await self.store.holds()
        for start in range(0, len(holds), _ASKED_AT_ONCE):
            some = holds[start : start + _ASKED_AT_ONCE]
            over = await asyncio.gather(*(_over(tasks, task, age_s) for task, age_s in some))
            ended = [task for (task, _), is_over in zip(some, over, strict=True) if is_over]
            if ended:
                await self.store.release(ended)
        while keys := await self.store.trash():
            for key in keys:
                await self._objects.delete(key)
            await self.store.forget(keys)
            log.info("%d objects of deleted LoRAs removed", len(keys))


async def _over(tasks: TaskStore, task_id: str, age_s: float) -> bool:
    try:
        return (await tasks.get(task_id)).status in TERMINAL
    except TaskNotFound:
        return age_s > HOLD_S


def _described(path: Path, header: LoraHeader, key: str, new: NewLora) -> Version:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        data_digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Version(
        key=key,
        sha256=digest,
        data_sha256=data_digest,
        size_bytes=path.stat().st_size,
        kind=header.kind,
        rank=header.rank,
        base=new.base or header.base,
        base_model=new.base_model,
        metadata=shown_metadata(header.metadata),
        task_id=new.task_id,
    )


def _with_trigger(new: NewLora, header: LoraHeader) -> NewLora:
    """With the trigger phrase of the file where nobody said another."""
    phrase = " ".join(header.metadata.get("modelspec.trigger_phrase", "").split())
    if new.trigger_words is not None or not phrase or not phrase.isprintable():
        return new
    return new.model_copy(update={"trigger_words": (phrase[:200],)})


def shown_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: metadata[name][:_MAX_METADATA_CHARS] for name in METADATA if metadata.get(name)}


def _nearest(lora: NamedLora, names: Sequence[str]) -> list[str]:
    if not lora.name:
        return []
    by_fold = {folded(name): name for name in names}
    found = difflib.get_close_matches(folded(lora.name), by_fold, n=3, cutoff=0.5)
    return [repr(by_fold[fold]) for fold in found]


def _shown(lora: NamedLora) -> str:
    return ascii(str(lora))[:80] if not str(lora).isprintable() else repr(str(lora)[:80])
