"""`generate --local`: the engine in this process, with no server and the server's own rules."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from deployments.api.style import named_styles
from deployments.api.wording import dressed
from deployments.cli.fault import CliFault, ExitCode
from deployments.cli.options import field_lines, load_settings
from deployments.cli.progress import ProgressLine
from deployments.tasks.image import ImageFields, ImageJob, ImageOrder
from deployments.tasks.lora import NamedLora, OrderedLora
from pipelines.canvas import BLANK, lay_out
from pipelines.engine.request import EngineEvent, ImageRequest, ImageResult, LoraUse, Picture
from pipelines.errors import DaguerreError, InvalidRequest, ModelError
from pipelines.images import decode_image, encode_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from configs.model import ModelSettings
    from configs.settings import Settings
    from pipelines.components import Components

_REMOTE = ("controlnet", "ip_adapter", "translate")
"""Fields that only a server knows what to do with."""
STOP_S = 3.0
"""Ctrl-C is answered within this, though a step of a large picture may take longer."""


def draw(
    fields: Mapping[str, Any], pictures: Mapping[str, bytes], config: Path | None
) -> list[bytes]:
    """Encoded pictures of the native API's fields, those that are pictures apart."""
    settings = load_settings(config)
    if remote := [field for field in _REMOTE if field in fields]:
        option = remote[0].replace("_", "-")
        raise CliFault(f"--{option} needs a server: leave out --local", ExitCode.USAGE)
    asked = dict(fields)
    asked.pop("priority", None)  # nobody else is waiting
    name = asked.pop("model", settings.default_model)
    if name not in settings.models:
        known = ", ".join(settings.models)
        raise CliFault(f"there is no model {name!r}; configured: {known}", ExitCode.USAGE)
    try:
        return _draw(asked, pictures, settings, name)
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
    fields: Mapping[str, Any], pictures: Mapping[str, bytes], settings: Settings, name: str
) -> list[bytes]:
    images = {field: _image(field, data, settings) for field, data in pictures.items()}
    init = images.get("init_image")
    asked = ImageFields.model_validate({k: v for k, v in fields.items() if k != "styles"})
    order = asked.resolve(
        settings,
        model=name,
        # the fields stand where a server would name objects
        init_image=("init_image", init.size) if init else None,
        mask_key="mask_image" if "mask_image" in images else None,
    )
    styles = named_styles(fields.get("styles", ()), settings.styles_file)
    order = dressed(order, styles, settings.limits)
    asked = asked.model_copy(update={"prompt": order.prompt})
    order = order.wearing(tuple(map(_ordered, asked.named_loras(settings.limits))))
    with ProgressLine() as line:
        line.doing(f"loading model {name}")
        components = load(settings.models[name])
        job = job_of(order, components.default_size)
        canvas = lay_out(init, images.get("mask_image"), job.placement) if init else BLANK
        requests = job.requests(
            "local",
            canvas=canvas,
            loras=tuple(
                LoraUse(Path(lora.key), lora.weight, lora.text_weight, lora.rank)
                for lora in job.loras
            ),
        )
        results = run(components, requests, line, max_rows=settings.models[name].max_rows)
    return [
        encode_image(result.picture, job.output_format, job.parameters(index))[0]
        for index, result in enumerate(results)
    ]


def _ordered(lora: NamedLora) -> OrderedLora:
    """Here a LoRA's name is the path of its file, whose ending may be left out."""
    name = str(lora)
    path = next((p for p in (Path(name), Path(f"{name}.safetensors")) if p.is_file()), None)
    if path is None:
        raise CliFault(f"there is no LoRA file {name}", ExitCode.USAGE)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return OrderedLora(
        name=path.stem,
        key=str(path),
        sha256=digest,
        weight=lora.weight,
        text_weight=lora.text_weight,
        rank=lora.rank,
        tagged=lora.tagged,
    )


def load(preset: ModelSettings) -> Components:
    """The configured model on its device. Raises ModelError."""
    import diffusers
    import transformers

    from pipelines.compilation import compile_blocks
    from pipelines.components import load_components

    # their bars and advice would stand among our own lines
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    if preset.num_threads is not None:
        import torch

        torch.set_num_threads(preset.num_threads)
    components = load_components(
        preset.source,
        config=preset.config,
        device=preset.device,
        dtype=preset.dtype,
        vae=preset.vae,
        tiny_vae=preset.tiny_vae,
    )
    return compile_blocks(components) if preset.compile else components


def job_of(order: ImageOrder, default_size: int) -> ImageJob:
    """The order, sized by the model that is loaded now."""
    return ImageJob.from_input(order.model_dump(), default_size=default_size)


@contextmanager
def drawing(preset: ModelSettings) -> Iterator[Callable[[ImageRequest], Picture]]:
    """One picture after another by the configured model, in this process. Raises ModelError."""
    from pipelines.engine.worker import EngineWorker
    from pipelines.portrait.files import located

    worker = EngineWorker(load(preset), max_rows=preset.max_rows)
    worker.start()
    try:
        yield lambda request: _result(worker.submit(located(request))).picture
    finally:
        worker.stop(STOP_S)


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


def _image(field: str, data: bytes, settings: Settings) -> Image:
    return decode_image(data, field=field, max_pixels=settings.limits.max_input_pixels)
