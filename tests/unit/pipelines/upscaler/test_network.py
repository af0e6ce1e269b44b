"""Networks that enlarge: those of the package, and files that spandrel reads."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from configs.upscaler import PackagedUpscaler
from pipelines.errors import ModelError, NonFiniteOutput, RequestCanceled
from pipelines.images import decode_image
from pipelines.upscaler.catalogue import BUILT_IN, Upscalers
from pipelines.upscaler.network import TILE_PX, Network, load_file, settled, tiles
from pipelines.upscaler.package import PACKAGED, packaged_file
from pipelines.upscaler.real_esrgan import RealEsrgan, load_packaged, read_kernels

Picture = NDArray[np.uint8]
PHOTOS = Path(__file__).parents[1] / "portrait" / "photos"
ANIME = "R-ESRGAN 4x+ Anime6B"


def go_on() -> None:
    pass


@pytest.fixture(scope="module")
def photo() -> Picture:
    """32 x 24 pixels of a real one."""
    image = decode_image((PHOTOS / "ardern.jpg").read_bytes(), max_pixels=10**6)
    middle = image.crop((90, 90, 186, 162)).resize((32, 24), Image.Resampling.LANCZOS)
    return np.asarray(middle)


@pytest.fixture(scope="module")
def tiny() -> Network:
    """Real-ESRGAN with a single block and random weights, which sees no further than 24 pixels."""
    torch.manual_seed(0)
    net = RealEsrgan(1)
    for conv in (module for module in net.modules() if isinstance(module, torch.nn.Conv2d)):
        torch.nn.init.normal_(conv.weight, std=0.05)
    return settled("tiny", net, 4, "cpu", half=True)


def test_the_settings_know_the_networks_of_the_package() -> None:
    assert get_args(PackagedUpscaler) == tuple(PACKAGED)


@pytest.mark.parametrize("name", PACKAGED)
def test_a_network_of_the_package_enlarges_a_photo_and_keeps_what_it_shows(
    name: str, photo: Picture
) -> None:
    larger = load_packaged(name, "cpu").enlarge(photo, go_on)
    assert larger.shape == (96, 128, 3)
    again = np.asarray(Image.fromarray(larger).resize((32, 24), Image.Resampling.BOX))
    assert np.abs(again.astype(int) - photo).mean() < 10  # wrong kernels give noise
    plain = np.asarray(Image.fromarray(photo).resize((128, 96), Image.Resampling.LANCZOS))
    assert np.abs(larger.astype(int) - plain).mean() > 1


def test_tiles_cover_a_picture_once() -> None:
    seen = np.zeros((500, 390), int)
    for tile in tiles(*seen.shape):
        assert max(tile.bottom - tile.top, tile.right - tile.left) <= TILE_PX
        seen[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert (seen == 1).all()


def test_a_picture_in_tiles_is_the_picture_as_a_whole(tiny: Network) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 72, 3), np.uint8)
    whole = tiny.enlarge(picture, go_on)
    tiled = replace(tiny, tile_px=24).enlarge(picture, go_on)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert whole.std() > 5
    bare = replace(tiny, tile_px=24, margin_px=0).enlarge(picture, go_on)
    assert np.abs(whole.astype(int) - bare).max() > 3


def test_tiles_of_the_real_network_leave_no_seam(photo: Picture) -> None:
    net = load_packaged(ANIME, "cpu")
    difference = np.abs(
        net.enlarge(photo, go_on).astype(int) - replace(net, tile_px=16).enlarge(photo, go_on)
    )
    assert difference.max() <= 3
    assert difference.mean() < 0.05


def test_a_network_may_be_stopped_between_tiles(tiny: Network) -> None:
    begun = []

    def between() -> None:
        begun.append(1)
        if len(begun) == 3:
            raise RequestCanceled("enough")

    picture = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(RequestCanceled):
        replace(tiny, tile_px=16).enlarge(picture, between)
    assert len(begun) == 3


def test_numbers_that_are_none_make_no_picture(tiny: Network) -> None:
    broken = replace(tiny, module=lambda values: values * float("nan"))
    with pytest.raises(NonFiniteOutput, match="upscaler tiny"):
        broken.enlarge(np.zeros((8, 8, 3), np.uint8), go_on)


def test_another_file_in_the_packages_place_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr("pipelines.upscaler.package.package_folder", lambda *a, **k: tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        packaged_file(ANIME)
    data = b"something else"
    (folder / PACKAGED[ANIME].file).write_bytes(data)
    with pytest.raises(ModelError, match=hashlib.sha256(data).hexdigest()):
        packaged_file(ANIME)


def test_kernels_that_do_not_fill_the_network_are_refused(tmp_path: Path) -> None:
    whole = packaged_file(ANIME).read_bytes()
    path = tmp_path / "kernels.bin"
    for data, message in (
        (whole[:-4], "not laid out"),
        (b"\0" * len(whole), "not laid out"),
        (whole + b"more", "4 bytes more"),
    ):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=message):
            read_kernels(path, RealEsrgan(6))


# by name


def test_a_network_runs_until_the_picture_is_large_enough(tiny: Network) -> None:
    upscalers = Upscalers()
    upscalers._loaded[ANIME] = tiny
    resize = upscalers.resize(ANIME)
    image = Image.effect_noise((12, 10), 60).convert("RGB")
    assert resize(image, 96, 80).size == (96, 80)  # twice, and then smaller
    assert resize(image, 30, 30).size == (30, 30)
    same = Upscalers().resize("Lanczos")(image, 6, 5)
    assert resize(image, 6, 5).tobytes() == same.tobytes()


def test_names_are_those_of_the_clients_and_of_the_deployers_files() -> None:
    upscalers = Upscalers({"4x-Sharp": Path("x.pth"), "Lanczos": Path("y.pth")})
    assert upscalers.names == (*BUILT_IN, "4x-Sharp")
    assert BUILT_IN == ("Lanczos", "Nearest", "R-ESRGAN 4x+", "R-ESRGAN 4x+ Anime6B")
    assert [name for name in upscalers.names if upscalers.is_network(name)] == [
        "Lanczos",
        *PACKAGED,
        "4x-Sharp",
    ]


# files


@pytest.fixture(scope="module")
def esrgan(spandrel: Any) -> dict[str, torch.Tensor]:
    """A tiny ESRGAN that doubles."""
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(1)
    return ESRGAN(num_filters=16, num_blocks=1, scale=2).state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_esrgan_file_enlarges(
    esrgan: dict[str, torch.Tensor], tmp_path: Path, photo: Picture, suffix: str
) -> None:
    path = tmp_path / f"x2{suffix}"
    if suffix == ".pth":
        torch.save({"params_ema": esrgan}, path)
    else:
        save_file(esrgan, path)
    larger = Upscalers({"x2": path}).enlarge("x2", photo)
    assert larger.shape == (48, 64, 3)
    assert (larger == load_file(path, "cpu").enlarge(photo, go_on)).all()


def test_a_pickle_with_code_is_not_run(spandrel: Any, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    path = tmp_path / "bad.pth"
    torch.save({"model": Attack()}, path)
    with pytest.raises(ModelError, match="more than tensors"):
        load_file(path, "cpu")
    path.write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(ModelError, match="more than tensors"):
        load_file(path, "cpu")
    assert not (tmp_path / "touched").exists()


def test_files_that_are_no_upscaler_are_refused(
    spandrel: Any, esrgan: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def refused(name: str, message: str, tensors: dict[str, torch.Tensor] | None = None) -> None:
        path = tmp_path / name
        if tensors is not None:
            save_file(tensors, path)
        with pytest.raises(ModelError, match=message):
            load_file(path, "cpu")

    refused("missing.pth", "cannot be read")
    refused("missing.safetensors", "cannot be read")
    refused("lora.safetensors", "no network that spandrel reads", {"a": torch.ones(2)})
    first = next(iter(esrgan))
    broken = esrgan | {first: esrgan[first] * float("nan")}
    refused("nan.safetensors", "NaN or infinite weights", broken)
    from spandrel.architectures.ESRGAN import ESRGAN

    grey = ESRGAN(in_nc=1, out_nc=1, num_filters=16, num_blocks=1).state_dict()
    refused("grey.safetensors", "takes 1 and gives 1 channels", grey)


def test_without_spandrel_a_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    with pytest.raises(ModelError, match=r"x\.pth: to read it, install daguerre\[networks\]"):
        load_file(tmp_path / "x.pth", "cpu")
