"""What workers know of a model's files, for those who have none of them: kept beside the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import Field, ValidationError
from redis.asyncio import Redis

from deployments.tasks.model import Frozen
from deployments.tasks.script import Script


class EmbeddingCard(Frozen):
    """A textual inversion embedding."""

    vectors: int | None = Field(None, description="Places in a prompt; None: unreadable.")
    width: int | None = None
    sha256: str | None = Field(None, description="Of the file, hexadecimal.")
    step: int | None = None
    checkpoint: str | None = None
    checkpoint_name: str | None = None
    reason: str | None = Field(None, description="Why it is skipped.")


class ModelCard(Frozen):
    source: str = Field(description="As the settings had it: with another, nothing here holds.")
    sha256: str | None = Field(None, description="Of the checkpoint; None: not computed yet.")
    embeddings: Mapping[str, EmbeddingCard] = Field({}, description="That prompts may name.")
    skipped: Mapping[str, EmbeddingCard] = Field({}, description="That none may.")


class CardStore:
    """Every method may raise StoreUnavailable, within seconds; repeating one is safe."""

    def __init__(self, commands: Redis, script: Script) -> None:
        self._commands = commands
        self._key = script.key("cards")
        self._errors = script.errors

    async def put(self, model: str, card: ModelCard) -> None:
        async with self._errors():
            await self._commands.hset(self._key, model, card.model_dump_json())

    async def of(self, models: Iterable[str]) -> dict[str, ModelCard]:
        """By model; without those that no worker has told of."""
        names = list(models)
        async with self._errors():
            call: Any = self._commands.hmget(self._key, names)
            found = cast("list[bytes | None]", await call)
        cards = {}
        for name, text in zip(names, found, strict=True):
            try:
                cards[name] = ModelCard.model_validate_json(text or b"")
            except ValidationError:  # none, or of another release
                continue
        return cards
