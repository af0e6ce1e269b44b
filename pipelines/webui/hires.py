"""Hires fix: a picture drawn small, enlarged, and drawn on from there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from pipelines.engine.request import Hires, ImageRequest, Latents, Picture
from pipelines.webui.resize import Resize
from pipelines.webui.upscale import LATENT_UPSCALERS


def latent_pass(request: ImageRequest, latents: torch.Tensor, factor: int) -> ImageRequest | None:
    """The second pass from the latents of the first, 1 x C x H x W; None where it takes pixels.

    `factor` is pixels by latents.
    """
    hires = request.hires
    if hires is None or hires.upscaler not in LATENT_UPSCALERS:
        return None
    width, height = hires.enlarged or (hires.width, hires.height)
    size = (height // factor, width // factor)
    larger = functional.interpolate(latents.float(), size, **LATENT_UPSCALERS[hires.upscaler])
    top, left = size[0] - hires.height // factor, size[1] - hires.width // factor
    cut = larger[0, :, top // 2 : size[0] - (top + 1) // 2, left // 2 : size[1] - (left + 1) // 2]
    return second_pass(request, hires, init_latents=cut.contiguous().cpu().numpy())


def pixel_pass(
    request: ImageRequest, hires: Hires, picture: Picture, resize: Resize
) -> ImageRequest:
    """The second pass from the picture of the first, enlarged by `resize`."""
    width, height = hires.enlarged or (hires.width, hires.height)
    larger = resize(Image.fromarray(picture), width, height)
    left, top = (width - hires.width) // 2, (height - hires.height) // 2
    cut = larger.crop((left, top, left + hires.width, top + hires.height))
    return second_pass(request, hires, init_image=np.asarray(cut))


def second_pass(
    request: ImageRequest,
    hires: Hires,
    *,
    init_latents: Latents | None = None,
    init_image: Picture | None = None,
) -> ImageRequest:
    """The request of the second pass, with fresh noise of the same seeds."""
    steps = request.num_inference_steps
    return replace(
        request,
        hires=None,
        resume=None,
        width=hires.width,
        height=hires.height,
        init_latents=init_latents,
        init_image=init_image,
        strength=hires.strength,
        exact_steps=True,
        noise_multiplier=1.0,
        sigmas=None,
        num_inference_steps=hires.num_inference_steps or steps,
        steps_before=steps,
        scheduler=hires.scheduler or request.scheduler,
        schedule=hires.schedule or request.schedule,
        eta=request.eta if hires.eta is None else hires.eta,
        prompt=hires.prompt or request.prompt,
        negative_prompt=hires.negative_prompt or request.negative_prompt,
        controls=tuple(
            replace(use, image=use.hires_image, hires_image=None)
            for use in request.controls
            if use.hires_image is not None
        ),
    )
