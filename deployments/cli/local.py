"""`generate --local`: the engine in this process, with no server and the server's own rules."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from deployments.cli.fault import CliFault, ExitCode
from deployments.cli.options import field_lines, load_settings
from deployments.cli.progress import ProgressLine
from deployments.tasks.image import ImageFields, ImageJob, ImageOrder
from pipelines.engine.request import EngineEvent, ImageRequest, ImageResult
from pipelines.errors import DaguerreError, InvalidRequest, ModelError
from pipelines.images import decode_image, encode_image, fit_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from configs.settings import ModelSettings, Settings
    from pipelines.components import Components

STOP_S = 3.0
"""Ctrl-C is answered within this, though a step of a large picture may take longer."""
START_KEY = "init_image"
"""Stands where a server would name the initial picture's object."""


def draw(fields: Mapping[str, Any], start: bytes | None, config: Path | None) -> list[bytes]:
    """Encoded pictures of the native API's fields."""
    settings = load_settings(config)
    asked = dict(fields)
    asked.pop("priority", None)  # nobody else is waiting
    name = asked.pop("model", settings.default_model)
    if name not in settings.models:
        known = ", ".join(settings.models)
        raise CliFault(f"there is no model {name!r}; configured: {known}", ExitCode.USAGE)
    try:
        return _draw(asked, start, settings, name)
    except ValidationError as error:
        message = "the request was refused"
        raise CliFault(message, ExitCode.USAGE, details=field_lines(error)) from None
    except InvalidRequest as error:
        raise CliFault(str(error), ExitCode.USAGE) from None
    except ModelError as error:
        raise CliFault(f"the model {name} cannot be loaded: {error}", ExitCode.FAILED) from None
    except DaguerreError as error:
        raise CliFault(f"generation failed: {error}", ExitCode.FAILED) from None


def _draw(
    fields: Mapping[str, Any], start: bytes | None, settings: Settings, name: str
) -> list[bytes]:
    image = _start_image(start, settings) if start is not None else None
    order = ImageFields.model_validate(fields).resolve(
        settings, model=name, init_image=(START_KEY, image.size) if image else None
    )
    with ProgressLine() as line:
        line.doing(f"loading model {name}")
        components = load(settings.models[name])
        job = job_of(order, components.default_size)
        init = np.asarray(fit_image(image, job.width, job.height)) if image else None
        max_rows = settings.models[name].max_rows
        results = run(components, job.requests("local", init_image=init), line, max_rows=max_rows)
    return [
        encode_image(result.picture, job.output_format, job.parameters(index))[0]
        for index, result in enumerate(results)
    ]


def load(preset: ModelSettings) -> Components:
    """The configured model on its device. Raises ModelError."""
    import diffusers
    import transformers

    from pipelines.components import load_components

    # their bars and advice would stand among our own lines
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    if preset.num_threads is not None:
        import torch

        torch.set_num_threads(preset.num_threads)
    return load_components(
        preset.source, config=preset.config, device=preset.device, dtype=preset.dtype
    )


def job_of(order: ImageOrder, default_size: int) -> ImageJob:
    """The order, sized by the model that is loaded now."""
    return ImageJob.from_input(order.model_dump(), default_size=default_size)


def run(
    components: Components, requests: list[ImageRequest], line: ProgressLine, *, max_rows: int
) -> list[ImageResult]:
    """All pictures in one batch; Ctrl-C ends it at the next step."""
    from pipelines.engine.worker import EngineWorker

    worker = EngineWorker(components, max_rows=max_rows)
    done = [0] * len(requests)

    def on_event(index: int, event: EngineEvent) -> None:
        done[index] = max(done[index], event.step)
        if event.steps:
            line.step(sum(done), event.steps * len(done))

    worker.start()
    try:
        futures = [
            worker.submit(request, functools.partial(on_event, index))
            for index, request in enumerate(requests)
        ]
        return [_result(future) for future in futures]
    finally:
        worker.stop(STOP_S)


def _result(future: Future[ImageResult]) -> ImageResult:
    # in turns: on some systems an endless wait keeps Ctrl-C out
    while True:
        try:
            return future.result(timeout=0.5)
        except NotYet:
            if future.done():
                raise


def _start_image(start: bytes, settings: Settings) -> Image:
    return decode_image(start, max_pixels=settings.limits.max_input_pixels)
