"""The four verbs of the engine: prepare, denoise, advance, decode.

Each equals what the diffusers pipelines (StableDiffusion, its img2img, StableDiffusionXL, its
img2img) do for one request, whatever else is in the batch: all that varies belongs to the request's
own state. Nothing is masked by multiplication, for 0 x NaN is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor

from pipelines.components import Components
from pipelines.engine.request import ImageRequest, Picture
from pipelines.engine.scheduler import BatchKey
from pipelines.errors import InvalidRequest, NonFiniteOutput
from pipelines.prompt import PromptEmbeds, encode_prompts
from pipelines.samplers import SAMPLERS, draws_noise, make_scheduler, min_steps, predicted_x0

VAE_BATCH_PIXELS = 512 * 512
"""Picture pixels in one VAE forward, at least one picture: a decode delays a step by no more."""


@dataclass
class ImageState:
    """One request on its way. Latents, RNG, sampler and its history belong to it alone."""

    request: ImageRequest
    latents: torch.Tensor
    """1 x channels x height x width."""
    generator: torch.Generator
    sampler: Any
    """A diffusers scheduler."""
    timesteps: torch.Tensor
    """Those of the model evaluations to make; on the CPU."""
    positive: PromptEmbeds
    negative: PromptEmbeds | None
    """None: no guidance, one UNet row."""
    time_ids: torch.Tensor | None = None
    """SDXL, 1 x 6."""
    step_index: int = 0
    """Evaluations made; only `advance` moves it."""
    x0: torch.Tensor | None = field(default=None, repr=False)
    """The clean latents that the latest step predicts, where the sampler says."""
    error: Exception | None = None
    """Why this request, and only it, has failed."""

    @property
    def done(self) -> bool:
        return self.step_index >= len(self.timesteps)


def guided(request: ImageRequest) -> bool:
    """Whether classifier-free guidance is on, as in diffusers."""
    return request.guidance_scale > 1


def row_count(request: ImageRequest) -> int:
    """UNet rows of each step of this request."""
    return 2 if guided(request) else 1


class Diffusion:
    """The verbs over one checkpoint. Run by one thread at a time, in inference mode."""

    def __init__(self, components: Components) -> None:
        self.components = components

    def batch_key(self, request: ImageRequest) -> BatchKey:
        """What this request must share with others to run beside them."""
        parts = self.components
        return BatchKey(
            model=parts.name,
            height=request.height // parts.vae_scale_factor,
            width=request.width // parts.vae_scale_factor,
            in_channels=parts.in_channels,
            dtype=str(parts.dtype).removeprefix("torch."),
        )

    # --- prepare ---------------------------------------------------------------------------

    def prepare(self, requests: Sequence[ImageRequest]) -> list[ImageState]:
        """Encodes prompts and init images, all together, and draws the first noise of each."""
        texts = [text for request in requests for text in self._texts(request)]
        embeds = encode_prompts(self.components, texts)
        moments = self._encode_images(requests)
        return [
            self._state(request, embeds, moment)
            for request, moment in zip(requests, moments, strict=True)
        ]

    def _zero_negative(self, request: ImageRequest) -> bool:
        # an empty negative prompt means none, which diffusers spells negative_prompt=None
        return not request.negative_prompt and self.components.force_zeros_for_empty_prompt

    def _texts(self, request: ImageRequest) -> list[str]:
        if guided(request) and not self._zero_negative(request):
            return [request.prompt, request.negative_prompt]
        return [request.prompt]

    def _state(
        self, request: ImageRequest, embeds: dict[str, PromptEmbeds], moments: torch.Tensor | None
    ) -> ImageState:
        positive = embeds[request.prompt]
        negative = None
        if guided(request):
            zero = self._zero_negative(request)
            negative = positive.zeros() if zero else embeds[request.negative_prompt]
        sampler = make_scheduler(request.scheduler, self.components.scheduler_config)
        # timesteps stay on the CPU, as the small tables that samplers index with them
        sampler.set_timesteps(request.num_inference_steps, device="cpu")
        generator = torch.Generator("cpu").manual_seed(request.seed)
        if moments is None:
            timesteps = sampler.timesteps
            latents = self._noise(request, sampler, generator)
        else:
            timesteps = self._strength_timesteps(request, sampler)
            latents = self._noised_image(moments, sampler, timesteps, generator)
        return ImageState(
            request=request,
            latents=latents,
            generator=generator,
            sampler=sampler,
            timesteps=timesteps,
            positive=positive,
            negative=negative,
            time_ids=self._time_ids(request),
        )

    def _noise(
        self, request: ImageRequest, sampler: Any, generator: torch.Generator
    ) -> torch.Tensor:
        parts = self.components
        if parts.is_xl and hasattr(sampler, "set_begin_index"):
            sampler.set_begin_index(0)  # as the SDXL pipeline, and only that one
        factor = parts.vae_scale_factor
        shape = (1, parts.in_channels, request.height // factor, request.width // factor)
        noise = randn_tensor(shape, generator=generator, device=parts.device, dtype=parts.dtype)
        latents: torch.Tensor = noise * sampler.init_noise_sigma
        return latents

    def _strength_timesteps(self, request: ImageRequest, sampler: Any) -> torch.Tensor:
        """The tail of the schedule that `strength` leaves, as the img2img pipelines cut it.

        Below one step nothing is left to run: the picture is then the init image after the VAE.
        """
        steps = request.num_inference_steps
        init_steps = min(int(steps * request.strength), steps)
        start = (steps - init_steps) * sampler.order
        if hasattr(sampler, "set_begin_index"):
            sampler.set_begin_index(start)
        timesteps: torch.Tensor = sampler.timesteps
        return timesteps[start:] if init_steps > 0 else timesteps[:0]

    def _noised_image(
        self,
        moments: torch.Tensor,
        sampler: Any,
        timesteps: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        # the order of draws is diffusers': the posterior's sample, then the noise
        sample = DiagonalGaussianDistribution(moments).sample(generator)
        latents = self._scale(sample.to(self.components.dtype))
        if len(timesteps) == 0:
            return latents
        noise = randn_tensor(
            latents.shape, generator=generator, device=latents.device, dtype=latents.dtype
        )
        noised: torch.Tensor = sampler.add_noise(latents, noise, timesteps[:1])
        return noised

    def _encode_images(self, requests: Sequence[ImageRequest]) -> list[torch.Tensor | None]:
        """The VAE posterior of each init image, None for text-to-image."""
        moments: list[torch.Tensor | None] = [None] * len(requests)
        pictures = {i: r.init_image for i, r in enumerate(requests) if r.init_image is not None}
        vae = self.components.vae
        for chunk in _chunks(pictures):
            batch = np.stack([pictures[i] for i in chunk]).astype(np.float32) / 255.0
            pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)
            pixels = (2.0 * pixels - 1.0).to(self.components.device, vae.dtype)
            rows = vae.encode(pixels).latent_dist.parameters
            for row, i in enumerate(chunk):
                moments[i] = rows[row : row + 1]
        return moments

    def _time_ids(self, request: ImageRequest) -> torch.Tensor | None:
        if not self.components.is_xl:
            return None
        size = [request.height, request.width]
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=self.components.dtype)
        return ids.to(self.components.device)

    # --- denoise ---------------------------------------------------------------------------

    def denoise(self, states: Sequence[ImageState]) -> list[torch.Tensor]:
        """One UNet forward over all rows: the guided noise prediction of each state, 1 x C x H x W.

        All states share one batch key. A state whose prediction is not finite gets its `error`.
        """
        order = sorted(range(len(states)), key=lambda i: states[i].negative is None)
        ordered = [states[i] for i in order]
        pairs = sum(state.negative is not None for state in ordered)
        inputs = [_model_input(state) for state in ordered]
        times = [state.timesteps[state.step_index].to(torch.float32) for state in ordered]
        # rows: the unconditional of those with guidance, then the conditional of all
        noise = self.components.unet(
            torch.cat(inputs[:pairs] + inputs),
            torch.stack(times[:pairs] + times).to(self.components.device),
            return_dict=False,
            **self._conditions(ordered, pairs),
        )[0]
        uncond, cond = noise[:pairs], noise[pairs:]
        scales = [state.request.guidance_scale for state in ordered[:pairs]]
        scale = torch.tensor(scales, dtype=torch.float32, device=noise.device).view(-1, 1, 1, 1)
        # rounded where a float times a half tensor is, so that half precision agrees too
        mixed = uncond + (scale * (cond[:pairs] - uncond)).to(noise.dtype)
        predicted = torch.cat([mixed, cond[pairs:]])
        finite = torch.isfinite(predicted).flatten(1).all(1).tolist()
        result: list[torch.Tensor] = [predicted] * len(states)
        for row, i in enumerate(order):
            result[i] = predicted[row : row + 1]
            if not finite[row]:
                states[i].error = _non_finite(states[i], "the UNet")
        return result

    def _conditions(self, ordered: Sequence[ImageState], pairs: int) -> dict[str, Any]:
        """The conditioning of all rows, in the order of `denoise`."""
        rows = [(s.negative, s.time_ids) for s in ordered[:pairs]]
        rows += [(s.positive, s.time_ids) for s in ordered]
        embeds = [embeds for embeds, _ in rows if embeds is not None]
        conditions: dict[str, Any] = {
            "encoder_hidden_states": torch.cat([e.tokens for e in embeds])
        }
        if self.components.is_xl:
            conditions["added_cond_kwargs"] = {
                "text_embeds": torch.cat([e.pooled for e in embeds if e.pooled is not None]),
                "time_ids": torch.cat([ids for _, ids in rows if ids is not None]),
            }
        return conditions

    # --- advance ---------------------------------------------------------------------------

    def advance(self, states: Sequence[ImageState], noise_preds: Sequence[torch.Tensor]) -> None:
        """Moves each state one sampler step on. One that fails gets its `error`, others go on."""
        for state, noise_pred in zip(states, noise_preds, strict=True):
            if state.error is not None:
                continue
            try:
                self._advance(state, noise_pred)
            except Exception as error:
                state.error = error

    def _advance(self, state: ImageState, noise_pred: torch.Tensor) -> None:
        sampler, timestep = state.sampler, state.timesteps[state.step_index]
        kwargs = {"generator": state.generator} if draws_noise(sampler) else {}
        output = sampler.step(noise_pred, timestep, state.latents, **kwargs)
        state.latents = output.prev_sample
        state.x0 = predicted_x0(sampler, output)
        state.step_index += 1

    # --- decode ----------------------------------------------------------------------------

    def decode_limit(self, request: ImageRequest) -> int:
        """How many pictures of this one's size go into one `decode`."""
        return _vae_batch(request.height * request.width)

    def decode(self, states: Sequence[ImageState]) -> list[Picture]:
        """Pictures of states of one size, rounded as diffusers rounds them.

        A state whose picture is not finite gets its `error`; its picture means nothing.
        """
        pictures, finite = self._decode(torch.cat([state.latents for state in states]))
        for state, ok in zip(states, finite, strict=True):
            if not ok:
                state.error = _non_finite(state, "the VAE")
        return pictures

    def preview(self, states: Sequence[ImageState]) -> list[Picture]:
        """As `decode`, of what the pictures are expected to become; changes no state."""
        latents = [state.latents if state.x0 is None else state.x0 for state in states]
        return self._decode(torch.cat(latents))[0]

    def _decode(self, latents: torch.Tensor) -> tuple[list[Picture], list[bool]]:
        vae = self.components.vae
        pixels = vae.decode(self._unscale(latents.to(vae.dtype)), return_dict=False)[0].float()
        finite = torch.isfinite(pixels).flatten(1).all(1).tolist()
        # clamp keeps NaN, whose conversion to uint8 is undefined
        levels = (torch.nan_to_num(pixels) * 0.5 + 0.5).clamp(0, 1) * 255
        batch = levels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [np.ascontiguousarray(picture) for picture in batch], finite

    def _scale(self, latents: torch.Tensor) -> torch.Tensor:
        """VAE latents to the UNet's range."""
        factor = float(self.components.vae.config.scaling_factor)
        if (moments := self._latent_moments(latents)) is None:
            return factor * latents
        mean, std = moments
        return (latents - mean) * factor / std

    def _unscale(self, latents: torch.Tensor) -> torch.Tensor:
        factor = float(self.components.vae.config.scaling_factor)
        if (moments := self._latent_moments(latents)) is None:
            return latents / factor
        mean, std = moments
        return latents * std / factor + mean

    def _latent_moments(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and deviation of the latents by channel, which some SDXL VAEs carry."""
        config = self.components.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if not self.components.is_xl or mean is None or std is None:
            return None
        tensors = [torch.tensor(v, device=like.device, dtype=like.dtype) for v in (mean, std)]
        return tensors[0].view(1, -1, 1, 1), tensors[1].view(1, -1, 1, 1)


def check_request(request: ImageRequest, components: Components) -> None:
    """Raises InvalidRequest, with the field, the limit and the given value."""
    if request.scheduler not in SAMPLERS:
        names = ", ".join(SAMPLERS)
        raise InvalidRequest(
            "scheduler", f"scheduler must be one of {names}, got {request.scheduler!r}"
        )
    steps, most = request.num_inference_steps, components.num_train_timesteps
    least = min_steps(request.scheduler, components.scheduler_config)
    if not least <= steps <= most:
        raise InvalidRequest(
            "num_inference_steps",
            f"num_inference_steps must be {least}..{most} for {request.scheduler} and this model, "
            f"got {steps}",
        )
    if not math.isfinite(request.guidance_scale):
        raise InvalidRequest(
            "guidance_scale", f"guidance_scale must be finite, got {request.guidance_scale}"
        )
    if not 0 <= request.strength <= 1:  # also false for NaN
        raise InvalidRequest("strength", f"strength must be 0..1, got {request.strength}")
    if not 0 <= request.seed < 2**63:
        raise InvalidRequest("seed", f"seed must be 0..2**63-1, got {request.seed}")
    _check_size(request, components.size_multiple)


def _check_size(request: ImageRequest, multiple: int) -> None:
    for name, value in (("width", request.width), ("height", request.height)):
        if value < multiple or value % multiple:
            raise InvalidRequest(
                name, f"{name} must be a positive multiple of {multiple}, got {value}"
            )
    image, shape = request.init_image, (request.height, request.width, 3)
    if image is not None and (image.dtype != np.uint8 or image.shape != shape):
        raise InvalidRequest(
            "init_image",
            f"init_image must be uint8 of shape {shape}, got {image.dtype} of shape {image.shape}",
        )


def _model_input(state: ImageState) -> torch.Tensor:
    scaled: torch.Tensor = state.sampler.scale_model_input(
        state.latents, state.timesteps[state.step_index]
    )
    return scaled


def _non_finite(state: ImageState, where: str) -> NonFiniteOutput:
    return NonFiniteOutput(
        f"{where} produced NaN or infinity at step {state.step_index} of {len(state.timesteps)}"
    )


def _vae_batch(pixels: int) -> int:
    return max(1, VAE_BATCH_PIXELS // pixels)


def _chunks(pictures: dict[int, Picture]) -> Iterator[list[int]]:
    """Indices of pictures of one size, few enough for one VAE forward."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, picture in pictures.items():
        sizes.setdefault(picture.shape, []).append(i)
    for (height, width, _), indices in sizes.items():
        count = _vae_batch(height * width)
        for start in range(0, len(indices), count):
            yield indices[start : start + count]
