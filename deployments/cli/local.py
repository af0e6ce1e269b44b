"""`generate --local`: the engine in this process, with no server."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.cli.fault import CliFault, ExitCode
from deployments.cli.options import load_settings
from deployments.cli.progress import ProgressLine
from pipelines.errors import DaguerreError, InvalidRequest, ModelError
from pipelines.images import ImageFormat, decode_image, encode_image, fit_image

if TYPE_CHECKING:
    from pipelines.engine.worker import EngineWorker

    from configs.settings import ModelSettings, Settings
    from pipelines.engine.request import EngineEvent, ImageRequest, ImageResult, Picture

MAX_SEED = 2**63 - 1
ENCODER: dict[str, ImageFormat] = {"png": "png", "jpg": "jpeg", "webp": "webp"}
OPTION = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "negative_prompt": "--negative",
}


def draw(fields: Mapping[str, Any], start: bytes | None, config: Path | None) -> list[bytes]:
    """Encoded pictures of the native API's fields; the defaults are the server's."""
    settings = load_settings(config)
    name = fields.get("model", settings.default_model)
    if name not in settings.models:
        known = ", ".join(settings.models)
        raise CliFault(f"there is no model {name!r}; configured: {known}", ExitCode.USAGE)
    try:
        return _draw(fields, start, settings, name)
    except InvalidRequest as error:
        option = OPTION.get(error.field, f"--{error.field.replace('_', '-')}")
        raise CliFault(f"{option}: {error}", ExitCode.USAGE) from None
    except ModelError as error:
        raise CliFault(f"the model {name} cannot be loaded: {error}", ExitCode.FAILED) from None
    except DaguerreError as error:
        raise CliFault(f"generation failed: {error}", ExitCode.FAILED) from None


def _draw(
    fields: Mapping[str, Any], start: bytes | None, settings: Settings, name: str
) -> list[bytes]:
    preset = settings.models[name]
    with ProgressLine() as line:
        line.doing(f"loading model {name}")
        worker, default_size = load_worker(preset)
        requests = resolve(fields, start, settings, name, default_size)
        worker.start()
        try:
            results = _run(worker, requests, line)
        finally:
            worker.stop()
        format_ = ENCODER[fields["output_format"]]
        return [
            encode_image(result.picture, format_, parameters(request, name))[0]
            for request, result in zip(requests, results, strict=True)
        ]


def load_worker(preset: ModelSettings) -> tuple[EngineWorker, int]:
    """The engine of a configured model, not started, and its default side in pixels."""
    from pipelines.engine.worker import EngineWorker

    from pipelines.components import load_components

    if preset.num_threads is not None:
        import torch

        torch.set_num_threads(preset.num_threads)
    components = load_components(
        preset.source, config=preset.config, device=preset.device, dtype=preset.dtype
    )
    return EngineWorker(components, max_rows=preset.max_rows), components.default_size


def resolve(
    fields: Mapping[str, Any],
    start: bytes | None,
    settings: Settings,
    name: str,
    default_size: int,
) -> list[ImageRequest]:
    """One engine request a picture, every default filled in; picture i has seed + i."""
    from pipelines.engine.request import ImageRequest

    preset = settings.models[name]
    init_image, (width, height) = None, size_of(fields, preset, default_size)
    if start is not None:
        init_image, width, height = _start_from(start, fields, settings)
    seed = fields.get("seed")
    seed = secrets.randbelow(2**32) if seed is None else seed
    return [
        ImageRequest(
            id=f"local.{index}",
            prompt=fields["prompt"],
            negative_prompt=fields.get("negative_prompt", ""),
            width=width,
            height=height,
            num_inference_steps=fields.get("num_inference_steps", preset.num_inference_steps),
            guidance_scale=fields.get("guidance_scale", preset.guidance_scale),
            scheduler=fields.get("scheduler", preset.scheduler),
            seed=(seed + index) % (MAX_SEED + 1),
            init_image=init_image,
            strength=fields.get("strength", preset.strength) if start is not None else 1.0,
        )
        for index in range(fields["num_images"])
    ]


def size_of(fields: Mapping[str, Any], preset: ModelSettings, default_size: int) -> tuple[int, int]:
    """Width and height in pixels of a picture from text."""
    width = fields.get("width", preset.width or default_size)
    return width, fields.get("height", preset.height or default_size)


def parameters(request: ImageRequest, model: str) -> dict[str, Any]:
    """What goes along in the file."""
    found: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "scheduler": request.scheduler,
        "seed": request.seed,
        "model": model,
    }
    return found | ({"strength": request.strength} if request.init_image is not None else {})


def _start_from(
    start: bytes, fields: Mapping[str, Any], settings: Settings
) -> tuple[Picture, int, int]:
    """The initial picture at the size that is drawn: its own, or as asked, in whole latents."""
    import numpy as np

    image = decode_image(start, max_pixels=settings.limits.max_input_pixels)
    width = fields.get("width", max(8, image.width // 8 * 8))
    height = fields.get("height", max(8, image.height // 8 * 8))
    return np.asarray(fit_image(image, width, height)), width, height


def _run(
    worker: EngineWorker, requests: Sequence[ImageRequest], line: ProgressLine
) -> list[ImageResult]:
    """All pictures; Ctrl-C cancels them at the next step."""
    done = [0] * len(requests)

    def on_event(index: int, event: EngineEvent) -> None:
        done[index] = max(done[index], event.step)
        if event.steps:
            line.step(sum(done), event.steps * len(done))

    futures = [
        worker.submit(request, functools.partial(on_event, index))
        for index, request in enumerate(requests)
    ]
    try:
        return [_patient_result(future) for future in futures]
    except BaseException:
        for request in requests:
            worker.cancel(request.id)
        raise


def _patient_result(future: Future[ImageResult]) -> ImageResult:
    # waits in short turns, as a lock held without end would keep Ctrl-C out on some systems
    while True:
        try:
            return future.result(timeout=0.5)
        except NotYet:
            if future.done():
                raise
            time.sleep(0)
