"""Which pictures are taken, as far as that needs no model. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.errors import InvalidImage, InvalidRequest
from pipelines.images import MIN_SIDE_PX, decode_image
from training.lora.job import LoraJob
from training.lora.source import MAX_CAPTION_CHARS, MAX_PICTURES, Example

MAX_PIXELS = 64_000_000
"""Of a picture as it comes."""
_FIT_PHOTOS = 2


class RefusedPictures(InvalidImage):
    """Pictures that cannot be trained with: `reasons` has each by name."""

    def __init__(self, reasons: Sequence[tuple[str, str]], count: int) -> None:
        listed = "; ".join(reason for _, reason in reasons[:20])
        more = f"; and {len(reasons) - 20} more" if len(reasons) > 20 else ""
        super().__init__(
            "pictures", f"{len(reasons)} of {count} pictures are refused: {listed}{more}"
        )
        self.reasons = tuple(reasons)


@dataclass(frozen=True)
class Fit:
    """A picture that can be decoded, is large enough and has a caption."""

    name: str
    """Printable."""
    caption: str
    size: tuple[int, int]
    """Width and height, pixels."""


def check_examples(
    examples: Sequence[Example],
    job: LoraJob,
    *,
    min_side_px: int = MIN_SIDE_PX,
    max_pictures: int = MAX_PICTURES,
    max_pixels: int = MAX_PIXELS,
    enough: int | None = None,
) -> list[Fit]:
    """Decodes every picture once; those that are fit. Raises RefusedPictures with all that are not
    where there are some, or with `enough` where fewer than that are fit; InvalidRequest where there
    are none or too many."""
    if not 1 <= len(examples) <= max_pictures:
        raise InvalidRequest(
            "pictures", f"pictures must be 1..{max_pictures} in number, given {len(examples)}"
        )
    fit, refused = [], []
    for example in examples:
        name = shown_name(example.name)
        try:
            fit.append(_checked(name, example, job, min_side_px, max_pixels))
        except InvalidImage as error:
            refused.append((name, str(error)))
    if len(fit) < (len(examples) if enough is None else enough):
        raise RefusedPictures(refused, len(examples))
    if job.validation_pictures >= len(fit):
        raise InvalidRequest(
            "validation_pictures",
            f"validation_pictures must be fewer than the {len(fit)} pictures, "
            f"given {job.validation_pictures}",
        )
    return fit


def shown_name(name: str) -> str:
    """Printable."""
    return "".join(c if c.isprintable() else "?" for c in name)[:200]


def fit_photos_needed(count: int) -> int:
    """Of so many photos of a person. Where two differ, nobody can say who it is."""
    return min(_FIT_PHOTOS, count)


def _checked(name: str, example: Example, job: LoraJob, min_side_px: int, max_pixels: int) -> Fit:
    image = decode_image(example.data, max_pixels=max_pixels, field=name, min_side_px=min_side_px)
    caption = job.caption_of(example.caption)
    if not caption:
        raise InvalidImage(name, f"{name} has no caption, which kind {job.kind} needs")
    if len(caption) > MAX_CAPTION_CHARS:
        raise InvalidImage(
            name, f"{name}: its caption has {len(caption)} characters, of {MAX_CAPTION_CHARS}"
        )
    return Fit(name, caption, image.size)
