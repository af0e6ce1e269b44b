"""What is computed once is what would be computed each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from pipelines.components import Components
from training.lora.cache import encode_captions, encode_pictures
from training.lora.job import LoraJob
from training.lora.picture import check_pictures, variants
from training.lora.source import Example


@torch.no_grad()
def test_sampling_a_kept_posterior_equals_encoding_the_picture_again(
    components: Components, examples: list[Example], job: Callable[..., LoraJob]
) -> None:
    wished = job(flip=True, crops=2)
    pictures = check_pictures(examples, wished, components)
    cache = encode_pictures(pictures, wished, components)
    assert len(cache.buckets) == 2
    factor = components.vae.config.scaling_factor
    for number, picture in enumerate(pictures):
        posteriors = cache.buckets[picture.bucket]
        for i, variant in enumerate(variants(picture, wished)):
            pixels = variant.pixels[None].contiguous(memory_format=torch.channels_last)
            posterior = components.vae.encode(pixels).latent_dist
            assert isinstance(posterior, DiagonalGaussianDistribution)
            expected = posterior.sample(torch.Generator().manual_seed(number)) * factor
            noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(number))
            row = [cache.first_row[number] + i]
            assert torch.allclose(posteriors.sample(row, noise, components), expected, atol=1e-5)
            assert posteriors.conditions(row, components).tolist() == [list(variant.time_ids)]


def test_captions_are_encoded_once_each_as_diffusers_does(
    components: Components, plain: Callable[[Components], object]
) -> None:
    runs = []
    handle = components.text_encoders[0].register_forward_hook(lambda *a: runs.append(a))
    try:
        cache = encode_captions(["a red cat", "a mat", "a red cat"], components)
    finally:
        handle.remove()
    assert len(runs) == 1
    assert len(cache.tokens) == 2
    tokens, pooled = cache.rows(["a mat", "a red cat", "a mat"])
    pipe = plain(components)
    with torch.no_grad():
        encoded = pipe.encode_prompt(  # type: ignore[attr-defined]
            prompt=["a mat", "a red cat", "a mat"],
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    assert torch.allclose(tokens, encoded[0], atol=1e-5)
    assert (pooled is not None) == components.is_xl
    if pooled is not None:
        assert torch.allclose(pooled, encoded[2], atol=1e-5)
