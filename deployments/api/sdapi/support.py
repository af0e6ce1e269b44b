"""Fields that change the picture and cannot be honoured: each is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from deployments.api.errors import shown
from deployments.api.sdapi.schema import Img2ImgBody, Txt2ImgBody
from deployments.api.sdapi.wanted import Wanted
from pipelines.errors import InvalidRequest
from pipelines.webui.mask import FILL, LATENT_NOTHING
from pipelines.webui.resize import LATENT, STRETCH

Refusal = tuple[str, str, Any]
"""Field, what it must be, and what it is."""


def check_supported(wanted: Wanted) -> None:
    """Raises InvalidRequest for the first field that cannot be honoured."""
    for field, must, given in _refusals(wanted):
        raise InvalidRequest(field, f"{field} must be {must}, given {shown(given)}")


def _refusals(wanted: Wanted) -> Iterator[Refusal]:
    body = wanted.body
    for field in ("batch_size", "n_iter"):
        if wanted.given(field) < 1:
            yield field, "at least 1", wanted.given(field)
    if wanted.option("tiling", "tiling"):
        yield "tiling", "false: this server draws no tiles", True
    if body.refiner_checkpoint and body.refiner_switch_at:
        yield "refiner_checkpoint", "null: this server has no refiner", body.refiner_checkpoint
    if isinstance(body, Txt2ImgBody) and body.enable_hr:
        yield "enable_hr", "false: this server has no hires fix", True
    if isinstance(body, Img2ImgBody):
        yield from _of_picture(wanted, body)


def _of_picture(wanted: Wanted, body: Img2ImgBody) -> Iterator[Refusal]:
    count = len(body.init_images or ())
    if count > 1:
        yield "init_images", "a list of one picture", f"{count} pictures"
    mode = wanted.given("resize_mode")
    if not STRETCH <= mode <= LATENT:
        yield "resize_mode", f"{STRETCH} to {LATENT}", mode
    if body.latent_mask:
        yield "latent_mask", "null", "a picture"
    fill = wanted.given("inpainting_fill")
    if not FILL <= fill <= LATENT_NOTHING:
        yield "inpainting_fill", f"{FILL} to {LATENT_NOTHING}", fill
