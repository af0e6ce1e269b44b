"""ControlNets on some rows of a batch give what the diffusers pipelines give."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.components import Components
from pipelines.control.net import load_control
from pipelines.diffusion import check_request
from pipelines.engine.request import ControlUse, Hires, ImageRequest, Mask, Picture
from pipelines.errors import InvalidRequest, ModelError
from pipelines.webui.hires import second_pass
from tests.unit.pipelines.guides import plain_picture, save_control

MakeRequest = Callable[..., ImageRequest]
MakeImage = Callable[..., Picture]
MakeMask = Callable[..., Mask]
Draw = Callable[..., list[Picture]]
DEFAULT_EMBEDDING = (16, 32, 96, 256)


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Components, int], Path]:
    """The folder of a random ControlNet of this seed."""
    folder = tmp_path_factory.mktemp("controls")

    def make(components: Components, seed: int) -> Path:
        path = folder / f"{components.name}-{seed}"
        return path if path.exists() else save_control(components, path, seed)

    return make


def apart(picture: Picture, other: Picture) -> int:
    """The largest difference of a channel; the pictures must have contrast."""
    assert other.std() > 30
    return int(np.abs(picture.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("mode", ["txt2img", "img2img", "inpaint"])
def test_a_request_with_a_control_gives_the_picture_of_plain_diffusers(
    components: Components,
    folder: Path,
    control: Callable[[Components, int], Path],
    make_request: MakeRequest,
    init_image: MakeImage,
    mask: MakeMask,
    draw: Draw,
    mode: str,
) -> None:
    use = ControlUse(control(components, 1), init_image(seed=3), scale=0.8)
    request = make_request(
        controls=(use,),
        init_image=None if mode == "txt2img" else init_image(),
        mask=mask() if mode == "inpaint" else None,
        strength=0.7,
        negative_prompt="blue",
    )
    (picture,) = draw(components, request)
    expected = plain_picture(components, folder, request)
    kept = slice(None)
    if request.mask is not None:  # diffusers gives what is kept once through the VAE
        kept = request.mask == 255
        picture, expected = picture[kept], expected[kept]
    assert apart(picture, expected) <= 1
    (without,) = draw(components, dataclasses.replace(request, controls=()))
    assert apart(without[kept], expected) > 10


def test_a_second_pass_is_guided_by_pictures_of_its_own_size(
    sd: Components,
    control: Callable[[Components, int], Path],
    make_request: MakeRequest,
    init_image: MakeImage,
) -> None:
    path, larger = control(sd, 1), init_image(96, 96)
    both = ControlUse(path, init_image(), scale=0.5, hires_image=larger)
    request = make_request(
        scheduler="Euler a",
        schedule="Automatic",
        hires=Hires(width=96, height=96, strength=0.5),
        controls=(both, ControlUse(path, init_image())),
    )
    check_request(request, sd)
    assert request.hires is not None
    second = second_pass(request, request.hires, init_image=larger)
    assert second.controls == (dataclasses.replace(both, image=larger, hires_image=None),)
    wrong = dataclasses.replace(both, hires_image=init_image())
    with pytest.raises(InvalidRequest, match=r"in the second pass, controls\[0\]\.image"):
        check_request(dataclasses.replace(request, controls=(wrong,)), sd)


def test_a_control_sees_no_mask_where_the_checkpoint_does(
    components: Components,
    inpainting: Components,
    folder: Path,
    make_request: MakeRequest,
    init_image: MakeImage,
    mask: MakeMask,
    draw: Draw,
    tmp_path: Path,
) -> None:
    use = ControlUse(
        save_control(components, tmp_path / "control", 1, DEFAULT_EMBEDDING), init_image(seed=3)
    )
    file = use.path / "diffusion_pytorch_model.safetensors"
    request = make_request(
        controls=(dataclasses.replace(use, path=file),), init_image=init_image(), mask=mask()
    )
    (picture,) = draw(inpainting, request)
    expected = plain_picture(inpainting, folder, request, controls=(use,))
    assert apart(picture[mask() == 255], expected[mask() == 255]) <= 1
    (without,) = draw(inpainting, dataclasses.replace(request, controls=()))
    assert apart(without, picture) > 10


@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
def test_two_controls_of_different_intervals_are_those_of_plain_diffusers(
    components: Components,
    folder: Path,
    control: Callable[[Components, int], Path],
    make_request: MakeRequest,
    init_image: MakeImage,
    draw: Draw,
    scheduler: str,
) -> None:
    uses = (
        ControlUse(control(components, 1), init_image(seed=3), 0.7, 0.0, 0.6),
        ControlUse(control(components, 2), init_image(seed=4), 1.2, 0.3, 1.0),
    )
    request = make_request(controls=uses, num_inference_steps=5, scheduler=scheduler)
    (picture,) = draw(components, request)
    assert apart(picture, plain_picture(components, folder, request)) <= 1
    for left in uses:
        assert apart(plain_picture(components, folder, request, controls=(left,)), picture) > 10


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_batch_of_rows_with_other_controls_and_none_does_not_mix_them(
    components: Components,
    folder: Path,
    control: Callable[[Components, int], Path],
    make_request: MakeRequest,
    init_image: MakeImage,
    draw: Draw,
    lanes: int,
) -> None:
    one, two = (control(components, seed) for seed in (1, 2))
    cat, dog = init_image(seed=3), init_image(seed=4)
    long = "a red cat on a blue mat, " * 20
    requests = [
        make_request(seed=1, controls=(ControlUse(one, cat),)),
        make_request(seed=1),
        make_request(seed=1, controls=(ControlUse(two, dog, 0.5, 0.2, 0.8), ControlUse(one, dog))),
        make_request(seed=1, controls=(ControlUse(one, cat),), prompt=long, long_prompt=True),
        make_request(seed=1, controls=(ControlUse(one, dog),), guidance_scale=1.0),
        make_request(seed=1, controls=(ControlUse(one, cat), ControlUse(one, dog, 0.5))),
    ]
    pictures = draw(components, *requests, lanes=lanes)
    for request, picture in zip(requests, pictures, strict=True):
        assert apart(picture, plain_picture(components, folder, request)) <= 1
    assert all(apart(a, b) > 10 for a, b in itertools.combinations(pictures, 2))


def test_steps_without_a_control_call_the_unet_as_if_there_were_none(
    sd: Components,
    control: Callable[[Components, int], Path],
    make_request: MakeRequest,
    init_image: MakeImage,
    draw: Draw,
) -> None:
    calls: list[set[str]] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append(set(kwargs))

    hook = sd.unet.register_forward_pre_hook(record, with_kwargs=True)
    try:
        use = ControlUse(control(sd, 1), init_image(seed=3), end=0.5)
        draw(sd, make_request(controls=(use,)))
    finally:
        hook.remove()
    plain = {"return_dict", "encoder_hidden_states"}
    guided = plain | {"down_block_additional_residuals", "mid_block_additional_residual"}
    assert calls == [guided, guided, plain, plain]


def test_a_control_that_leaves_more_to_the_prompt_fades_or_leaves_out_the_unconditional_row(
    sd: Components,
    control: Callable[[Components, int], Path],
    make_request: MakeRequest,
    init_image: MakeImage,
    draw: Draw,
) -> None:
    calls: list[list[torch.Tensor]] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        down = kwargs["down_block_additional_residuals"]
        calls.append([*down, kwargs["mid_block_additional_residual"]])

    hook = sd.unet.register_forward_pre_hook(record, with_kwargs=True)
    whole = ControlUse(control(sd, 1), init_image(seed=3), scale=0.7)
    fading = dataclasses.replace(whole, fades=True)
    one_sided = dataclasses.replace(whole, conditional_only=True)
    try:
        for use in (whole, fading, one_sided):
            draw(sd, make_request(controls=(use,), num_inference_steps=1))
    finally:
        hook.remove()
    full, faded, conditional = calls
    for place, (part, less, one) in enumerate(zip(full, faded, conditional, strict=True)):
        assert len(part) == 2
        assert part.abs().max() > 0
        torch.testing.assert_close(less, part * 0.825 ** (12 - place))
        assert not one[0].any()
        torch.testing.assert_close(one[1], part[1])


def test_a_control_of_scale_zero_is_not_even_loaded(
    sd: Components,
    make_request: MakeRequest,
    init_image: MakeImage,
    draw: Draw,
    control: Callable[[Components, int], Path],
) -> None:
    use = ControlUse(control(sd, 1), init_image(seed=3), scale=0)
    request = make_request()
    (off,) = draw(sd, make_request(controls=(use,)))
    assert np.array_equal(off, draw(sd, request)[0])


def test_a_file_of_weights_is_read_as_a_folder_is(components: Components, tmp_path: Path) -> None:
    folder = save_control(components, tmp_path / "folder", 1, DEFAULT_EMBEDDING)
    file = tmp_path / "control.safetensors"
    file.write_bytes((folder / "diffusion_pytorch_model.safetensors").read_bytes())
    one, other = load_control(folder, components), load_control(file, components)
    assert one.config.cross_attention_dim == other.config.cross_attention_dim
    weights = other.state_dict()
    assert all(tensor.equal(weights[key]) for key, tensor in one.state_dict().items())
    assert len(weights) > 50


@pytest.fixture
def broken(tmp_path: Path, sd: Components) -> Callable[[str], Path]:
    """A ControlNet that cannot be used, by what is the matter."""

    def make(matter: str) -> Path:
        folder = save_control(sd, tmp_path / "control", 1)
        weights = folder / "diffusion_pytorch_model.safetensors"
        if matter == "missing":
            return tmp_path / "nowhere.safetensors"
        if matter == "no weights":
            weights.unlink()
        elif matter == "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif matter == "pickle":
            weights.write_bytes(b"PK\x03\x04" + bytes(100))
        elif matter == "NaN":
            save_file({k: t / 0 for k, t in load_file(weights).items()}, weights)
        elif matter == "keys":
            save_file({f"x.{k}": t for k, t in load_file(weights).items()}, weights)
        elif matter == "config":
            (folder / "config.json").write_text("{")
        elif matter == "class":
            (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        return folder

    return make


@pytest.mark.parametrize(
    ("matter", "file", "reason"),
    [
        ("missing", "nowhere.safetensors", "No such file"),
        ("no weights", "diffusion_pytorch_model.safetensors", "No such file"),
        ("truncated", "diffusion_pytorch_model.safetensors", "not a whole safetensors file"),
        ("pickle", "diffusion_pytorch_model.safetensors", "a pickle can run code"),
        ("NaN", "diffusion_pytorch_model.safetensors", "NaN or infinite weights in"),
        ("keys", "control", "perhaps it is no ControlNet in the layout of diffusers"),
        ("config", "control", "no readable config.json"),
        ("class", "control", "ControlNetModel is needed"),
    ],
)
def test_a_control_that_does_not_load_is_named_with_the_reason(
    sd: Components, broken: Callable[[str], Path], matter: str, file: str, reason: str
) -> None:
    with pytest.raises(ModelError) as error:
        load_control(broken(matter), sd)
    assert file in str(error.value)
    assert reason in str(error.value)


def test_a_control_of_another_base_model_is_refused(
    sd: Components, xl: Components, tmp_path: Path
) -> None:
    folder = save_control(sd, tmp_path / "of-sd", 1, DEFAULT_EMBEDDING)
    with pytest.raises(ModelError, match=r"of-sd.* cross_attention_dim is 32, 64 is needed"):
        load_control(folder, xl)
    file = folder / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ModelError, match="weights are missing, unknown or of another shape"):
        load_control(file, xl)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"image": np.zeros((64, 32, 3), np.uint8)},
            r"controls\[0\]\.image must be uint8 of shape",
        ),
        ({"image": np.zeros((64, 64, 3), np.float32)}, "got float32"),
        ({"scale": 2.5}, r"controls\[0\]\.scale must be 0\.\.2, got 2\.5"),
        ({"scale": float("nan")}, "got nan"),
        ({"start": 0.7, "end": 0.5}, r"two rising numbers in 0\.\.1, got 0\.7, 0\.5"),
        ({"end": 1.5}, "got 0.0, 1.5"),
    ],
)
def test_a_control_out_of_bounds_is_refused(
    sd: Components, make_request: MakeRequest, init_image: MakeImage, change: Any, reason: str
) -> None:
    fields = {"path": Path("control"), "image": init_image()} | change
    with pytest.raises(InvalidRequest, match=reason) as error:
        check_request(make_request(controls=(ControlUse(**fields),)), sd)
    assert error.value.field == "controls"


def test_more_than_four_controls_are_refused(
    sd: Components, make_request: MakeRequest, init_image: MakeImage
) -> None:
    use = ControlUse(Path("control"), init_image())
    check_request(make_request(controls=(use,) * 4), sd)
    with pytest.raises(InvalidRequest, match="at most 4 entries, got 5"):
        check_request(make_request(controls=(use,) * 5), sd)
