"""Tells what a worker knows of its model: the checkpoint's hash, and the embeddings of prompts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from pathlib import Path

from huggingface_hub import snapshot_download

from configs.settings import Settings
from deployments.log import get_logger
from deployments.tasks.card import CardStore, EmbeddingCard, ModelCard
from deployments.tasks.errors import StoreUnavailable
from pipelines.components import Components
from pipelines.textual_inversion.file import Embedding

log = get_logger(__name__)

LOOK_EVERY_S = 2.0
"""How often the folder of embeddings is looked at."""


class CardKeeper:
    """Of one worker."""

    def __init__(
        self, store: CardStore, settings: Settings, model: str, components: Components
    ) -> None:
        self._store = store
        self._model = model
        self._source = settings.models[model].source
        self._hashes = FileHashes(settings.data_dir / "cache" / "sha256.json")
        self._embeddings = components.embeddings

    async def keep(self) -> None:
        """Until cancelled. The hash comes when it is computed, the rest at once."""
        hashing = asyncio.create_task(asyncio.to_thread(self._hash))
        told: ModelCard | None = None
        try:
            while True:
                card = self._card(hashing.result() if hashing.done() else None)
                if card != told and await self._put(card):
                    told = card
                if hashing.done():
                    await asyncio.sleep(LOOK_EVERY_S)
                else:
                    await asyncio.wait([hashing], timeout=LOOK_EVERY_S)
                if self._embeddings is not None:
                    await asyncio.to_thread(self._embeddings.refresh)
        finally:
            hashing.cancel()

    async def _put(self, card: ModelCard) -> bool:
        try:
            await self._store.put(self._model, card)
        except StoreUnavailable:
            return False
        return True

    def _hash(self) -> str | None:
        try:
            return self._hashes.of_checkpoint(self._source)
        except OSError as error:
            log.warning("the checkpoint of %s has no hash: %s", self._model, error)
            return None

    def _card(self, sha256: str | None) -> ModelCard:
        if self._embeddings is None:
            return ModelCard(source=self._source, sha256=sha256)
        now = self._embeddings.now
        return ModelCard(
            source=self._source,
            sha256=sha256,
            embeddings={name: _described(each) for name, each in now.loaded.items()},
            skipped={
                name: _described(each.embedding, each.reason) for name, each in now.skipped.items()
            },
        )


def _described(embedding: Embedding | None, reason: str | None = None) -> EmbeddingCard:
    if embedding is None:
        return EmbeddingCard(reason=reason)
    return EmbeddingCard(
        vectors=embedding.length,
        width=embedding.width,
        sha256=embedding.sha256,
        step=embedding.step,
        checkpoint=embedding.checkpoint,
        checkpoint_name=embedding.checkpoint_name,
        reason=reason,
    )


class FileHashes:
    """SHA-256 of files, each computed once for as long as its size and time stay."""

    def __init__(self, kept: Path) -> None:
        """`kept`: the file that remembers them."""
        self._kept = kept

    def of_checkpoint(self, source: str) -> str | None:
        """Of a file its own; of a diffusers folder, that of the lines `<sha256>  <path>` of its
        safetensors files, as sha256sum writes them, in the order of their paths. None for a hub
        id whose files are not here. Raises OSError.
        """
        path = Path(source)
        if path.is_file():
            return self._of_files([path])[0]
        folder = path if path.is_dir() else _snapshot(source)
        files = sorted(folder.rglob("*.safetensors")) if folder else []
        if not files or folder is None:
            return None
        pairs = zip(self._of_files(files), files, strict=True)
        lines = [f"{digest}  {file.relative_to(folder).as_posix()}\n" for digest, file in pairs]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _of_files(self, files: list[Path]) -> list[str]:
        known = self._read()
        found: dict[str, list[object]] = {}
        for file in files:
            stat = file.stat()
            seen = [stat.st_size, stat.st_mtime_ns]
            entry = known.get(str(file.absolute()))
            digest = entry[2] if entry and entry[:2] == seen else _digest(file)
            found[str(file.absolute())] = [*seen, digest]
        if any(known.get(name) != entry for name, entry in found.items()):
            self._write(known | found)
        return [str(entry[2]) for entry in found.values()]

    def _read(self) -> dict[str, list[object]]:
        try:
            kept: dict[str, list[object]] = json.loads(self._kept.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return kept

    def _write(self, entries: dict[str, list[object]]) -> None:
        self._kept.parent.mkdir(0o700, parents=True, exist_ok=True)
        temporary = self._kept.with_name(f"~{secrets.token_hex(8)}")
        temporary.write_text(json.dumps(entries), "utf-8")
        os.replace(temporary, self._kept)


def _snapshot(source: str) -> Path | None:
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except Exception:  # of whatever kind: it is not here as a folder
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
