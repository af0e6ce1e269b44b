"""What txt2img and img2img draw for themselves; scripts call it again and again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deployments.api.sdapi.drawing import ALL, Drawing, Drawn, Part, Span, drawn_pixels
from deployments.api.sdapi.face import FACE_SHARE, face_units, with_faces
from deployments.api.sdapi.hires import apart
from deployments.api.sdapi.second import drawn_apart
from deployments.api.sdapi.submission import NOTHING, Sent
from deployments.api.sdapi.wanted import Wanted
from pipelines.webui.seed import image_seeds


async def generated(
    drawing: Drawing, wanted: Wanted, sent: Sent = NOTHING, span: Span = ALL
) -> list[Drawn]:
    """All pictures of a request that `Drawing.wanted` has judged. Raises as `Drawing.task`."""
    units = face_units(wanted)
    first = Span(span.begin, span.end - (span.end - span.begin) * FACE_SHARE) if units else span
    if len(sent.inits) > 1:
        drawn = await _batch(drawing, wanted, sent, first)
    elif apart(wanted, drawing.settings):
        drawn = await drawn_apart(drawing, wanted, first)
    else:
        drawn = await drawing.task(wanted, sent, first)
    if not units:
        return drawn
    rest = Span(first.end, span.end)
    faces = [
        with_faces(drawing, one, units, rest.part(index, len(drawn)))
        for index, one in enumerate(drawn)
    ]
    return await drawing.each(faces)


async def _batch(drawing: Drawing, wanted: Wanted, sent: Sent, span: Span) -> list[Drawn]:
    """`n_iter` times one picture of each initial one, whatever `batch_size` says."""
    times, plain = int(wanted.given("n_iter")), drawn_pixels(wanted)
    count = len(sent.inits) * times
    drawing.check_size("init_images", count)
    pixels = [max(plain, pasted) for pasted in await drawing.pasted_pixels(wanted, sent)]
    drawing.check_size("init_images", count, times * sum(pixels))
    wanted = replace(wanted, body=drawing.fixed(wanted.body))
    body = wanted.body
    seeds = image_seeds(
        body.given("seed"), body.given("subseed"), body.given("subseed_strength"), count
    )
    parts: list[Part] = []
    for index, (seed, subseed) in enumerate(seeds):
        own: dict[str, Any] = {"seed": seed, "subseed": subseed, "batch_size": 1, "n_iter": 1}
        init = sent.inits[index % len(sent.inits)]
        one = replace(wanted, body=body.model_copy(update=own))
        parts.append((one, replace(sent, inits=(init,))))
    drawn = await drawing.each(
        [drawing.task(*part, span.part(index, count)) for index, part in enumerate(parts)]
    )
    return [picture for pictures in drawn for picture in pictures]
