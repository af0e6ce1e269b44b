"""What guides a job beside its words: ControlNets and IP-Adapters with their pictures."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from configs.model import ModelSettings
from deployments.tasks.guide import OrderedControl, OrderedImagePrompt
from deployments.tasks.image import ImageFields, ImageJob, ImageOrder
from pipelines.canvas import Canvas
from pipelines.control.preprocessor import MODES
from pipelines.engine.request import ControlUse, IPAdapterUse
from pipelines.errors import InvalidRequest, ModelError
from pipelines.images import decode_data_url, decode_image
from pipelines.source import local_path
from pipelines.webui.resize import resize_image

Images = Mapping[str, Image.Image]
"""RGB, by the keys of the order."""


@dataclass(frozen=True)
class Guiding:
    """Fields of an ImageRequest."""

    controls: tuple[ControlUse, ...] = ()
    ip_adapters: tuple[IPAdapterUse, ...] = ()


UNGUIDED: Final = Guiding()


class Guides:
    """Those of one model. Sources are found, and downloaded, when they are first asked for."""

    def __init__(self, preset: ModelSettings) -> None:
        self._preset = preset
        self._paths: dict[str, Path] = {}
        self._names: dict[Path, str] = {}
        self._lock = threading.Lock()

    def guiding(self, job: ImageJob, canvas: Canvas, images: Images) -> Guiding:
        """What a job's requests have, in a thread. Raises InvalidRequest where files are gone."""
        return Guiding(
            tuple(self._control(one, job, canvas, images) for one in job.controls),
            tuple(self._image_prompt(one, images) for one in job.image_prompts),
        )

    def _control(
        self, one: OrderedControl, job: ImageJob, canvas: Canvas, images: Images
    ) -> ControlUse:
        if (source := self._preset.controlnets.get(one.name)) is None:
            raise InvalidRequest("controlnet", f"the ControlNet {one.name} is not here any more")
        image = _of_region(images[one.image_key], canvas, MODES[one.resize_mode])
        hires = job.webui and job.webui.hires
        return ControlUse(
            path=self._path(source, "controlnet", one.name),
            image=one.guide(image, job.width, job.height),
            scale=one.weight,
            start=one.start,
            end=one.end,
            fades=one.mode != "balanced",
            conditional_only=one.mode == "control",
            hires_image=one.guide(image, hires.width, hires.height)
            if hires and one.hires
            else None,
        )

    def _image_prompt(self, one: OrderedImagePrompt, images: Images) -> IPAdapterUse:
        if (preset := self._preset.ip_adapters.get(one.name)) is None:
            raise InvalidRequest("ip_adapter", f"the IP-Adapter {one.name} is not here any more")
        return IPAdapterUse(
            path=self._path(preset.source, "ip_adapter", one.name),
            image_encoder=self._path(preset.image_encoder, "ip_adapter", one.name),
            image=np.asarray(images[one.image_key]),
            scale=one.weight,
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """What is refused within is called by its name here, not by its file."""
        try:
            yield
        except InvalidRequest as error:
            message = str(error)
            for path, name in tuple(self._names.items()):  # other threads add to it
                message = message.replace(str(path), name)
            raise InvalidRequest(error.field, message) from error

    def _path(self, source: str, field: str, name: str) -> Path:
        with self._lock:  # no file is downloaded twice
            if source not in self._paths:
                try:
                    self._paths[source] = local_path(source)
                except ModelError as error:
                    raise InvalidRequest(field, f"{name} cannot be loaded: {error}") from error
                self._names[self._paths[source]] = name
            return self._paths[source]


def brought(fields: ImageFields, order: ImageOrder, max_pixels: int) -> tuple[ImageOrder, Images]:
    """The order with what guides it, and the pictures, which the fields hold as base64, without an
    initial one. Raises InvalidImage.
    """
    images: dict[str, Image.Image] = {}

    def key(field: str, index: int, image: str | None) -> str:
        name = f"{field}.{index}.image"
        data = decode_data_url(image or "", field=name, max_bytes=4 * max_pixels)
        images[name] = decode_image(data, field=name, max_pixels=max_pixels)
        return name

    controls, prompts = fields.controlnet or (), fields.ip_adapter or ()
    order = order.guided(
        [one.ordered(key("controlnet", i, one.image)) for i, one in enumerate(controls)],
        [one.ordered(key("ip_adapter", i, one.image)) for i, one in enumerate(prompts)],
    )
    return order, images


def _of_region(image: Image.Image, canvas: Canvas, mode: int) -> Image.Image:
    """Where only a part of a picture is drawn, that part of what guides all of it."""
    overlay = canvas.overlay
    if overlay is None or overlay.region is None:
        return image
    height, width = overlay.image.shape[:2]
    if image.size != (width, height):
        image = resize_image(mode, image, width, height)
    return image.crop(overlay.region)
