"""A request for pictures in no dialect's words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deployments.schedules.model import Recipe
from deployments.tasks.image import ImageFields
from deployments.tasks.webui import NOBODY, Caller
from pipelines.errors import InvalidRequest

MAX_DELAY_S = 7 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One request for pictures, in no dialect's words."""

    fields: ImageFields
    model: str | None = None
    init_image: str | bytes | None = None
    """A data URL, or a file."""
    mask_image: str | bytes | None = None
    """As `init_image`, and only with one."""
    priority: int = 0
    delay_s: float = 0.0
    not_before: datetime | None = None
    """Aware; and no `delay_s` beside it."""
    translate: bool = False
    """Draw what the prompts mean in the language that the settings name."""
    styles: tuple[str, ...] = ()
    """Of the settings' file, by name: put on the prompts one after the other, translated or not."""
    callback_url: str | None = None
    idempotency_key: str | None = None
    caller: Caller = NOBODY
    skips_unknown_loras: bool = False
    """Draw without those that are not there, in place of an error."""

    def fingerprint(self, pictures: Mapping[str, str]) -> str:
        """Equal for equal requests: tells a repeated one from another one under the same key.

        `pictures` are the keys of those the client sent, by field. What was left out does not
        count, so that fields which a later release adds change nothing.
        """
        rest: list[object] = [self.model, self.priority, self.delay_s, self.callback_url]
        if self.not_before is not None:
            rest.append(self.not_before.isoformat())
        if self.translate:
            rest.append("translate")
        if self.styles:
            rest.append(["styles", *self.styles])
        fields = self.fields.model_dump(exclude_defaults=True)
        text = json.dumps([fields, dict(pictures), rest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def of(cls, recipe: Recipe, *, idempotency_key: str | None = None) -> Submission:
        """One run of a schedule."""
        return cls(
            fields=recipe.fields,
            model=recipe.model,
            init_image=recipe.init_image,
            mask_image=recipe.mask_image,
            priority=recipe.priority,
            callback_url=recipe.callback_url,
            translate=recipe.translate,
            styles=recipe.styles,
            idempotency_key=idempotency_key,
        )

    def check_start(self) -> None:
        """Raises InvalidRequest for a `not_before` that cannot be."""
        if self.not_before is None:
            return
        if self.delay_s:
            raise InvalidRequest("not_before", "not_before cannot be given beside delay_s")
        latest = datetime.now(UTC) + timedelta(seconds=MAX_DELAY_S)
        if self.not_before > latest:
            raise InvalidRequest(
                "not_before",
                f"not_before must be at most {MAX_DELAY_S / 86400:g} days from now, given "
                f"{self.not_before.isoformat()}",
            )
