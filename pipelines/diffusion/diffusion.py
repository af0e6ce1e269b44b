"""The four verbs of the engine, over one checkpoint.

Each equals what the diffusers pipelines (StableDiffusion and StableDiffusionXL, each with its
img2img and inpaint) do for one request, whatever else is in the batch: all that varies belongs to
the request's own state. Rows are never masked by multiplication, for 0 x NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.components import Components
from pipelines.diffusion.attach import attach
from pipelines.diffusion.decode import decode, preview
from pipelines.diffusion.denoise import advance, denoise, has_lanes
from pipelines.diffusion.latents import MomentsCache, vae_batch
from pipelines.diffusion.prepare import prepare
from pipelines.diffusion.state import ImageState
from pipelines.engine.request import ImageRequest, Picture
from pipelines.engine.ticket import BatchKey
from pipelines.ip_adapter.image import ImageTokensCache
from pipelines.loader import Loader
from pipelines.prompt import PromptCache
from pipelines.webui.hires import latent_pass


class Diffusion:
    """The verbs. Run by one thread at a time, in inference mode."""

    def __init__(self, components: Components, loader: Loader | None = None) -> None:
        """`loader` says what each request has with it; without one, they have nothing."""
        self.components = components
        self._loader = loader or Loader(components)
        self.prompts = PromptCache(components, self._loader.loras)
        self.pictures = MomentsCache(components)
        self.references = ImageTokensCache(components)

    @property
    def cache_lookups(self) -> dict[tuple[str, str], int]:
        """In all, by cache (`prompt`, `picture`, `reference`) and result (`hit`, `miss`).

        For any thread.
        """
        return {
            ("prompt", "hit"): self.prompts.hits,
            ("prompt", "miss"): self.prompts.misses,
            ("picture", "hit"): self.pictures.hits,
            ("picture", "miss"): self.pictures.misses,
            ("reference", "hit"): self.references.hits,
            ("reference", "miss"): self.references.misses,
        }

    def batch_key(self, request: ImageRequest) -> BatchKey:
        """What this request must share with others to run beside them."""
        parts = self.components
        return BatchKey(
            model=parts.name,
            height=request.height // parts.vae_scale_factor,
            width=request.width // parts.vae_scale_factor,
            in_channels=parts.in_channels,
            dtype=str(parts.dtype).removeprefix("torch."),
            tiling=request.tiling,
        )

    def prepare(self, requests: Sequence[ImageRequest]) -> list[ImageState]:
        """Encodes prompts and pictures, all together, and draws the first noise of each.

        Raises InvalidRequest for a prompt that is too long.
        """
        worn = [self._loader.worn(request.id) for request in requests]
        states = prepare(self.components, self.prompts, self.pictures, requests, worn)
        attach(self.components, self.references, states, worn)
        return states

    def denoise(
        self, states: Sequence[ImageState], *, most_rows: int | None = None, lanes: int = 1
    ) -> list[torch.Tensor]:
        """One UNet forward over all rows: the guided noise prediction of each, 1 x C x H x W.

        All states share one batch key. A state whose prediction is not finite gets its `error`.
        More than `most_rows` are several forwards; more `lanes` than one only where the states have
        some.
        """
        bank = self._loader.loras
        return denoise(self.components, bank, states, most_rows=most_rows, lanes=lanes)

    def has_lanes(self, states: Sequence[ImageState]) -> bool:
        """Whether `denoise` can compute the rows of these side by side."""
        return not self.components.compiled and all(map(has_lanes, states))

    def advance(self, states: Sequence[ImageState], noise_preds: Sequence[torch.Tensor]) -> None:
        """Moves each state one sampler step on. One that fails gets its `error`, others go on."""
        advance(states, noise_preds)

    def latent_pass(self, state: ImageState) -> ImageRequest | None:
        """What follows a state that is done without its picture being decoded, if anything."""
        if state.cut_short:
            return None
        latents = state.sampler.latents
        return latent_pass(state.request, latents, self.components.vae_scale_factor)

    def decode_limit(self, request: ImageRequest) -> int:
        """How many pictures of this one's size go into one `decode`."""
        return vae_batch(request.height, request.width)

    def decode(self, states: Sequence[ImageState]) -> list[Picture]:
        """Pictures of states of one size; those of inpainting keep what their mask keeps.

        A state whose picture is not finite gets its `error`; its picture means nothing.
        """
        return decode(self.components, states)

    def preview(self, states: Sequence[ImageState]) -> list[Picture]:
        """What the pictures are expected to become, by the tiny VAE if there is one.

        Changes no state.
        """
        return preview(self.components, states)
