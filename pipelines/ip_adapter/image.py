"""Reference pictures to tokens for the cross-attentions, and the cache of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from pipelines.components import Components
from pipelines.engine.request import Picture
from pipelines.ip_adapter.adapter import IPAdapter
from pipelines.lru import LruCache

CACHE_BYTES = 32 * 2**20
"""Of tokens that are kept: 300 pictures of a plus adapter of SDXL in half precision."""


class ImageTokens(NamedTuple):
    """What a row with the picture sees, and one without it: each 1 x tokens x cross_attention_dim.

    As in diffusers, the negative one is the projection of zeros or of a picture of zeros.
    """

    positive: torch.Tensor
    negative: torch.Tensor


class ImageTokensCache(LruCache[tuple[str, bytes], ImageTokens]):
    """Encodes pictures and keeps the latest tokens on their device."""

    def __init__(self, parts: Components) -> None:
        super().__init__(CACHE_BYTES, lambda tokens: 2 * tokens.positive.nbytes)
        self._parts = parts

    def encode(self, pairs: Sequence[tuple[IPAdapter, Picture]]) -> list[ImageTokens]:
        """The tokens of each picture by its adapter."""
        keys = [(adapter.id, _digest(picture)) for adapter, picture in pairs]
        by_key = dict(zip(keys, pairs, strict=True))
        tokens = self.all(
            keys, lambda missing: {key: image_tokens(self._parts, *by_key[key]) for key in missing}
        )
        return [tokens[key] for key in keys]


def image_tokens(parts: Components, adapter: IPAdapter, picture: Picture) -> ImageTokens:
    """Of one picture of any size, of which CLIP sees the middle square."""
    side = adapter.encoder.config.image_size
    processor = CLIPImageProcessorPil(size=side, crop_size=side)
    processed = processor(Image.fromarray(picture), return_tensors="pt")
    pixels = processed.pixel_values.to(parts.device, parts.dtype)
    if adapter.pooled:
        embeds = adapter.encoder(pixels).image_embeds
        both = torch.cat([embeds, torch.zeros_like(embeds)])
    else:
        pixels = torch.cat([pixels, torch.zeros_like(pixels)])
        both = adapter.encoder(pixels, output_hidden_states=True).hidden_states[-2]
    positive, negative = adapter.projection(both).to(parts.dtype).split(1)
    return ImageTokens(positive, negative)


def _digest(picture: Picture) -> bytes:
    return hashlib.blake2b(f"{picture.shape}".encode() + picture.tobytes(), digest_size=32).digest()
