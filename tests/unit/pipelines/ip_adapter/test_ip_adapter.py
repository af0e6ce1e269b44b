"""IP-Adapters on some rows of a batch give what the diffusers pipelines give."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.components import Components
from pipelines.diffusion import check_request
from pipelines.engine.request import ControlUse, ImageRequest, IPAdapterUse, LoraUse, Picture
from pipelines.errors import InvalidRequest, ModelError
from pipelines.ip_adapter.adapter import IPAdapterReader
from pipelines.ip_adapter.image import ImageTokensCache
from tests.unit.pipelines.guides import (
    plain_picture,
    save_control,
    save_encoder,
    save_ip_adapter,
)
from tests.unit.pipelines.lora.layouts import attention, copied, kohya_layout, random_lora

MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]
Draw = Callable[..., list[Picture]]
MakeUse = Callable[..., IPAdapterUse]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def use(tmp_path_factory: pytest.TempPathFactory, encoder: Path, init_image: MakeImage) -> MakeUse:
    """A random adapter of this kind and seed, with a picture that is neither square nor small."""
    folder = tmp_path_factory.mktemp("adapters")

    def make(
        components: Components, kind: str, seed: int = 1, scale: float = 0.8, image: int = 5
    ) -> IPAdapterUse:
        path = folder / f"{components.name}-{kind}-{seed}.safetensors"
        if not path.exists():
            save_ip_adapter(components, path, kind, seed)
        return IPAdapterUse(path, encoder, init_image(72, 48, seed=image), scale)

    return make


def apart(picture: Picture, other: Picture) -> int:
    """The largest difference of a channel; the pictures must have contrast."""
    assert other.std() > 30
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("guidance_scale", [6.5, 1.0], ids=["cfg", "no-cfg"])
@pytest.mark.parametrize("kind", ["standard", "plus"])
def test_a_request_with_an_adapter_gives_the_picture_of_plain_diffusers(
    components: Components,
    folder: Path,
    use: MakeUse,
    make_request: MakeRequest,
    draw: Draw,
    kind: str,
    guidance_scale: float,
) -> None:
    request = make_request(
        ip_adapters=(use(components, kind),), guidance_scale=guidance_scale, negative_prompt="blue"
    )
    (picture,) = draw(components, request)
    assert apart(picture, plain_picture(components, folder, request)) <= 1
    (without,) = draw(
        components, make_request(guidance_scale=guidance_scale, negative_prompt="blue")
    )
    assert apart(without, picture) > 10


def test_rows_of_other_adapters_of_none_and_with_loras_do_not_mix(
    components: Components,
    folder: Path,
    use: MakeUse,
    make_request: MakeRequest,
    init_image: MakeImage,
    draw: Draw,
    tmp_path: Path,
) -> None:
    model = copied(components)
    lora = tmp_path / "lora.safetensors"
    save_file(kohya_layout(random_lora(model, 1, layers=attention)), lora)
    standard, plus = use(components, "standard"), use(components, "plus", 2, 0.6)
    other_picture = use(components, "standard", image=6)
    loras = (LoraUse(lora),)
    long = {"prompt": "a red cat on a blue mat, " * 20, "long_prompt": True}
    control = ControlUse(save_control(model, tmp_path / "control", 1), init_image(seed=3))
    requests = [
        make_request(),
        make_request(ip_adapters=(standard,)),
        make_request(ip_adapters=(plus, standard)),
        make_request(ip_adapters=(other_picture,), guidance_scale=1.0),
        make_request(ip_adapters=(other_picture,), controls=(control,), init_image=init_image()),
        make_request(ip_adapters=(standard,), loras=loras),
        make_request(ip_adapters=(standard,), loras=loras, controls=(control,)),
        make_request(loras=loras),
        make_request(ip_adapters=(plus,), **long),
        make_request(ip_adapters=(standard, other_picture)),
    ]
    pictures = draw(model, *requests)
    for request, picture in zip(requests, pictures, strict=True):
        assert apart(picture, plain_picture(components, folder, request)) <= 1
    assert all(apart(a, b) > 10 for a, b in itertools.combinations(pictures, 2))


def test_a_batch_without_adapters_keeps_the_attention_it_had(
    sd: Components, use: MakeUse, make_request: MakeRequest, draw: Draw
) -> None:
    before = dict(sd.unet.attn_processors)
    seen: list[bool] = []
    hook = sd.unet.register_forward_pre_hook(
        lambda *_: seen.append(sd.unet.attn_processors == before)
    )
    try:
        draw(sd, make_request(num_inference_steps=1, ip_adapters=(use(sd, "plus"),)))
        draw(sd, make_request(num_inference_steps=1))
    finally:
        hook.remove()
    assert seen == [False, True]
    assert sd.unet.attn_processors == before


@torch.inference_mode()
def test_a_reference_picture_is_encoded_once_for_all_its_requests(
    sd: Components, use: MakeUse
) -> None:
    one, other = use(sd, "plus"), use(sd, "plus", image=6)
    adapter = IPAdapterReader(sd).load(one)
    cache = ImageTokensCache(sd)
    first, second, third = cache.encode([(adapter, u.image) for u in (one, other, one)])
    assert first is third
    assert first.positive.shape == (1, 6, 32)
    assert not first.positive.allclose(second.positive)
    assert cache.encode([(adapter, other.image)]) == [second]
    assert (cache.hits, cache.misses) == (2, 2)


def test_adapters_share_their_image_encoder(sd: Components, use: MakeUse) -> None:
    reader = IPAdapterReader(sd)
    one, other = reader.load(use(sd, "standard")), reader.load(use(sd, "plus"))
    assert one.encoder is other.encoder
    assert one.id != other.id


def changed(change: Callable[[dict[str, torch.Tensor]], dict[str, Any]]) -> Callable[[Path], None]:
    return lambda path: save_file(change(load_file(path)), path)


FACE = "image_proj.perceiver_resampler.proj_in.weight"


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (Path.unlink, "cannot be read: No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a whole safetensors file"),
        (lambda path: path.write_bytes(b"\x80\x02"), "a pickle can run code"),
        (changed(lambda t: {k: v / 0 for k, v in t.items()}), "NaN or infinite weights in"),
        (changed(lambda t: {"x": t["image_proj.proj.weight"]}), "no IP-Adapter, whose keys are"),
        (
            changed(lambda t: {FACE if "proj.weight" in k else k: v for k, v in t.items()}),
            "of a kind that is not supported",
        ),
        (
            changed(lambda t: {k: v for k, v in t.items() if "1.to_k_ip" not in k}),
            "1 weights are missing, unknown or of another shape for",
        ),
        (
            changed(lambda t: {k: v for k, v in t.items() if "norm.bias" not in k}),
            "its image_proj does not load",
        ),
        (
            changed(
                lambda t: {k: v[..., :-1].clone() if "j.proj.w" in k else v for k, v in t.items()}
            ),
            "does not fit the image encoder",
        ),
    ],
)
def test_an_adapter_that_does_not_load_is_named_with_the_reason(
    sd: Components,
    tmp_path: Path,
    encoder: Path,
    init_image: MakeImage,
    breaks: Callable[[Path], None],
    reason: str,
) -> None:
    path = save_ip_adapter(sd, tmp_path / "adapter.safetensors", "standard", 1)
    breaks(path)
    with pytest.raises(ModelError) as error:
        IPAdapterReader(sd).load(IPAdapterUse(path, encoder, init_image()))
    assert str(path) in str(error.value)
    assert reason in str(error.value)


def test_an_adapter_of_another_base_model_is_refused(
    sd: Components, xl: Components, use: MakeUse
) -> None:
    with pytest.raises(ModelError, match="perhaps it is an IP-Adapter of another base model"):
        IPAdapterReader(xl).load(use(sd, "plus"))


@pytest.mark.parametrize("kind", ["standard", "plus"])
def test_an_adapter_with_another_image_encoder_is_refused(
    sd: Components, use: MakeUse, tmp_path: Path, kind: str
) -> None:
    wider = save_encoder(tmp_path / "wider", hidden_size=32, projection_dim=28)
    fitting = use(sd, kind)
    with pytest.raises(ModelError, match=r"does not fit the image encoder .*wider"):
        IPAdapterReader(sd).load(IPAdapterUse(fitting.path, wider, fitting.image))


def test_an_image_encoder_that_does_not_load_is_named(
    sd: Components, use: MakeUse, tmp_path: Path
) -> None:
    fitting, folder = use(sd, "standard"), tmp_path / "encoder"
    spoilt = IPAdapterUse(fitting.path, folder, fitting.image)
    with pytest.raises(ModelError, match=r"encoder/model\.safetensors: cannot be read"):
        IPAdapterReader(sd).load(spoilt)
    weights = save_encoder(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="encoder: no CLIP image encoder loads"):
        IPAdapterReader(sd).load(spoilt)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": np.zeros((20, 30), np.uint8)}, r"image must be uint8 of shape \(20, 30, 3\)"),
        ({"image": np.zeros((20, 30, 3), np.float32)}, "got float32"),
        ({"image": np.zeros((0, 30, 3), np.uint8)}, "must have pixels"),
        ({"scale": -0.1}, r"ip_adapters\[0\]\.scale must be 0\.\.2, got -0\.1"),
    ],
)
def test_an_adapter_out_of_bounds_is_refused(
    sd: Components, make_request: MakeRequest, use: MakeUse, change: Any, reason: str
) -> None:
    one = IPAdapterUse(**(vars(use(sd, "standard")) | change))
    with pytest.raises(InvalidRequest, match=reason) as error:
        check_request(make_request(ip_adapters=(one,)), sd)
    assert error.value.field == "ip_adapters"


def test_more_than_four_adapters_are_refused(
    sd: Components, make_request: MakeRequest, use: MakeUse
) -> None:
    one = use(sd, "standard")
    check_request(make_request(ip_adapters=(one,) * 4), sd)
    with pytest.raises(InvalidRequest, match="at most 4 entries, got 5"):
        check_request(make_request(ip_adapters=(one,) * 5), sd)
