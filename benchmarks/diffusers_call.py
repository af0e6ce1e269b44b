"""The tuned baseline: requests alike in one call of a diffusers pipeline, in any mode."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.model import plain_pipeline
from pipelines.components import Components
from pipelines.engine.request import ImageRequest, Picture
from pipelines.samplers import make_scheduler


class DiffusersCalls:
    """One model in memory; all adapters are loaded beforehand, so that a switch is a name."""

    def __init__(self, components: Components, loras: Sequence[Path]) -> None:
        self._components = dataclasses.replace(components, unet=copy.deepcopy(components.unet))
        sampler = "DPMSolverMultistepScheduler"
        modes = ("", "Img2Img", "Inpaint")
        self._pipes = {mode: plain_pipeline(self._components, sampler, mode) for mode in modes}
        self._names = {path: f"lora{number}" for number, path in enumerate(loras)}
        for path, name in self._names.items():
            self._pipes[""].load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
        self._wear(())

    def draw(self, batch: Sequence[ImageRequest]) -> dict[str, Picture]:
        """Pictures by id; the requests differ in prompt, seed and pictures alone."""
        first = batch[0]
        pipe = self._pipes[_mode(first)]
        config = self._components.scheduler_config
        pipe.scheduler = make_scheduler(first.scheduler, config, first.schedule)
        self._wear(tuple(use.path for use in first.loras))
        arguments: dict[str, Any] = {}
        if first.init_image is None or first.mask is not None:
            arguments |= {"width": first.width, "height": first.height}
        if first.init_image is not None:
            pictures = [Image.fromarray(one.init_image) for one in batch]
            arguments |= {"image": pictures, "strength": first.strength}
        if first.mask is not None:
            arguments |= {"mask_image": [Image.fromarray(one.mask) for one in batch]}
        images = pipe(
            [one.prompt for one in batch],
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(one.seed) for one in batch],
            **arguments,
        ).images
        return {one.id: np.asarray(image) for one, image in zip(batch, images, strict=True)}

    def _wear(self, loras: tuple[Path, ...]) -> None:
        pipe = self._pipes[""]
        if loras:
            pipe.enable_lora()
            pipe.set_adapters([self._names[path] for path in loras])
        elif self._names:
            pipe.disable_lora()


def _mode(request: ImageRequest) -> str:
    if request.mask is not None:
        return "Inpaint"
    return "" if request.init_image is None else "Img2Img"


def apart(request: ImageRequest, ours: Picture, theirs: Picture) -> int:
    """The largest difference, of 255, where both drew: ours keeps the bytes that a mask keeps."""
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    return int((difference if request.mask is None else difference[request.mask == 255]).max())
