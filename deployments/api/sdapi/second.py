"""Pictures that are drawn on by requests of their own."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from PIL import Image

from deployments.api.sdapi.drawing import Drawing, Drawn, Span
from deployments.api.sdapi.extras import takes_network
from deployments.api.sdapi.hires import (
    apart,
    hires_body,
    hires_enlarged,
    hires_sampler,
    hires_target,
)
from deployments.api.sdapi.options import CHECKPOINT
from deployments.api.sdapi.picture import png_file
from deployments.api.sdapi.schema import GenerationBody, Img2ImgBody, Txt2ImgBody
from deployments.api.sdapi.submission import Sent, metadata_of
from deployments.api.sdapi.wanted import Wanted
from pipelines.enhancement import Enhancement
from pipelines.upscaler.catalogue import RESAMPLERS
from pipelines.upscaler.target import ToSize
from pipelines.webui.resize import LATENT as LATENT_MODE
from pipelines.webui.resize import STRETCH, lanczos
from pipelines.webui.upscale import LATENT, LATENT_UPSCALERS, HiresSize


def drawn_on(wanted: Wanted, drawn: Drawn, **fields: Any) -> Wanted:
    """A request of img2img of the model, prompts and sampler of `wanted` and the seeds of `drawn`,
    but for these fields.
    """
    own = {
        "batch_size": 1,
        "n_iter": 1,
        "seed": drawn.seeds["Seed"],
        "subseed": drawn.subseed,
        "initial_noise_multiplier": 1.0,
    }
    common = {name: getattr(wanted.body, name) for name in GenerationBody.model_fields}
    return replace(wanted, body=Img2ImgBody.model_validate(common | own | fields))


async def drawn_apart(drawing: Drawing, wanted: Wanted, span: Span) -> list[Drawn]:
    """Hires fix whose second pass is a task of its own for each picture."""
    first = replace(
        wanted,
        body=wanted.body.model_copy(update={"enable_hr": False}),
        options=dict(wanted.options) | {"samples_format": "png"},
    )
    drawn = await drawing.task(first, span=span.part(0, 2), metadata=metadata_of(wanted))
    rest = span.part(1, 2)
    works = [_second(drawing, wanted, one, rest.part(i, len(drawn))) for i, one in enumerate(drawn)]
    return await drawing.each(works)


async def _second(drawing: Drawing, wanted: Wanted, first: Drawn, span: Span) -> Drawn:
    body, model = hires_body(wanted), apart(wanted, drawing.settings)
    file = first.file
    if drawing.interrupted or file is None or body is None or model is None:
        return first
    sampler, schedule = hires_sampler(wanted, body)
    (width, height), steps = hires_target(wanted, body), wanted.given("steps")
    latent = (body.hr_upscaler or LATENT) == LATENT
    again = drawn_on(
        wanted,
        first,
        width=width,
        height=height,
        steps=wanted.given("hr_second_pass_steps") or steps,
        denoising_strength=body.denoising_strength,
        resize_mode=LATENT_MODE if latent else STRETCH,
    )
    again = replace(
        again,
        options=dict(wanted.options) | {CHECKPOINT: model, "img2img_fix_steps": True},
        prompt=wanted.hires_prompts[0],
        negative_prompt=wanted.hires_prompts[1],
        sampler=sampler,
        schedule=schedule,
        steps_before=steps,
        guides=wanted.guides.later,
    )
    init, rest = await _enlarged(drawing, wanted, body, file, span)
    if init is None:
        return first
    drawn = await drawing.task(again, Sent((init,)), rest, first.telling())
    return first.drawn_on(drawn[0]) if drawn else first


async def _enlarged(
    drawing: Drawing, wanted: Wanted, body: Txt2ImgBody, file: bytes, span: Span
) -> tuple[bytes | None, Span]:
    """What the second pass begins with, None once the caller has interrupted, and its span."""
    name, size = body.hr_upscaler or LATENT, hires_enlarged(wanted, body)
    work = Enhancement(ToSize(*size.enlarged, crop=False), upscaler=name)
    made: bytes | None = file
    if takes_network(work, drawing.settings):
        made = await drawing.enhanced(file, work, span.part(0, 2))
        span = span.part(1, 2)
    if made is None:
        return None, span
    given = made
    return await drawing.services.decode(lambda: _fitted(given, name, size)), span


def _fitted(file: bytes, name: str, size: HiresSize) -> bytes:
    """Enlarged, if it is not yet, and cut; only cut, where its latents will be enlarged."""
    image: Image.Image = Image.open(io.BytesIO(file))
    width, height = size.enlarged
    if name not in LATENT_UPSCALERS and image.size != size.enlarged:
        image = RESAMPLERS.get(name, lanczos)(image, width, height)
    across, down = image.width * size.width // width, image.height * size.height // height
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return png_file(image.crop((left, top, left + across, top + down)))
