"""Fields that change the picture and cannot be honoured: each is refused by name."""

from __future__ import annotations

from collections.abc import Iterator

from configs.settings import Settings
from deployments.api.errors import shown
from deployments.api.sdapi.hires import hires_body, hires_refusals
from deployments.api.sdapi.options import RESTORER
from deployments.api.sdapi.schema import Img2ImgBody
from deployments.api.sdapi.wanted import Refusal, Wanted
from pipelines.errors import InvalidRequest
from pipelines.webui.mask import FILL, LATENT_NOTHING
from pipelines.webui.resize import LATENT, STRETCH


def check_supported(wanted: Wanted, settings: Settings) -> None:
    """Raises InvalidRequest for the first field that cannot be honoured."""
    for field, must, given in _refusals(wanted, settings):
        raise InvalidRequest(field, f"{field} must be {must}, given {shown(given)}")


def _refusals(wanted: Wanted, settings: Settings) -> Iterator[Refusal]:
    body = wanted.body
    for field in ("batch_size", "n_iter"):
        if wanted.given(field) < 1:
            yield field, "at least 1", wanted.given(field)
    if body.refiner_checkpoint and body.refiner_switch_at:
        yield "refiner_checkpoint", "null: this server has no refiner", body.refiner_checkpoint
    named = (body.override_settings or {}).get(RESTORER)
    if wanted.restores_faces and named and named not in wanted.restorers:
        known = ", ".join(wanted.restorers) or "none"
        must = f"one of those that the setting face_restorers names ({known})"
        yield RESTORER, must, named
    if hires := hires_body(wanted):
        if body.firstpass_image:
            yield "firstpass_image", "null where enable_hr is true", "a picture"
        yield from hires_refusals(wanted, hires, settings)
    if isinstance(body, Img2ImgBody):
        yield from _of_picture(wanted, body)


def _of_picture(wanted: Wanted, body: Img2ImgBody) -> Iterator[Refusal]:
    mode = wanted.given("resize_mode")
    if not STRETCH <= mode <= LATENT:
        yield "resize_mode", f"{STRETCH} to {LATENT}", mode
    if body.latent_mask and body.mask:
        yield "latent_mask", "null where there is a mask", "a picture"
    fill = wanted.given("inpainting_fill")
    if not FILL <= fill <= LATENT_NOTHING:
        yield "inpainting_fill", f"{FILL} to {LATENT_NOTHING}", fill
