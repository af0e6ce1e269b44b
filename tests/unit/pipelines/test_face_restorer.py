"""Faces restored by networks of the real architectures, with weights that are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.enhancement import Enhancement, Restoration
from pipelines.errors import ModelError, NonFiniteOutput
from pipelines.face_restorer import FaceRestorers
from pipelines.portrait.faces import FaceReader
from pipelines.upscaler.catalogue import Upscalers
from pipelines.upscaler.target import ByFactor
from tests.unit.pipelines.portrait.pictures import Picture, beside, photo
from tests.unit.pipelines.upscaler import conftest

spandrel = conftest.spandrel
Painting = Callable[[float], FaceRestorers]


@pytest.fixture(scope="module")
def restorer_file(spandrel: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RestoreFormer of few channels: it makes some pattern of a face."""
    from spandrel.architectures.RestoreFormer import RestoreFormer

    torch.manual_seed(0)
    sizes = {"ch": 32, "ch_mult": (1, 1, 1, 1, 1, 1), "num_res_blocks": 1}
    net = RestoreFormer(**sizes, n_embed=16, embed_dim=16, z_channels=16)
    path = tmp_path_factory.mktemp("restorer") / "restorer.safetensors"
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def restorers(restorer_file: Path) -> FaceRestorers:
    return FaceRestorers({"RestoreFormer": restorer_file})


class Painter:
    """In a network's place: a face in one colour."""

    def __init__(self, level: float) -> None:
        self.level = level

    def __call__(self, face: torch.Tensor) -> tuple[torch.Tensor]:
        assert face.shape == (1, 3, 512, 512)
        assert -1 <= face.min() < face.max() <= 1
        return (torch.full_like(face, self.level),)


@pytest.fixture
def painting(restorers: FaceRestorers) -> Callable[[float], FaceRestorers]:
    """painting(level): restorers that paint faces in it, -1 ... 1."""

    def made(level: float) -> FaceRestorers:
        found = FaceRestorers()
        network = restorers._network("RestoreFormer")
        found._loaded["RestoreFormer"] = replace(network, module=Painter(level))
        return found

    return made


def test_a_restorer_of_a_file_changes_the_face_and_leaves_the_rest(
    restorers: FaceRestorers, ardern: Picture, reader: FaceReader
) -> None:
    wide = np.pad(ardern, ((0, 0), (250, 0), (0, 0)), mode="edge")
    restored = restorers.restore(wide, Restoration("RestoreFormer"))
    assert restored.shape == wide.shape
    (face,) = reader.detect(wide)
    x, y, width, height = (round(value) for value in face.box)
    middle = np.s_[y + height // 4 : y + 3 * height // 4, x + width // 4 : x + 3 * width // 4]
    changed = np.abs(restored.astype(int) - wide)
    assert changed[middle].mean() > 10
    assert not changed[:, : x - width].any()


def test_a_share_of_the_restored_face_is_mixed_with_the_given_one(
    painting: Painting, ardern: Picture
) -> None:
    whole, half, none = (
        painting(1).restore(ardern, Restoration("RestoreFormer", share)) for share in (1, 0.5, 0)
    )
    assert np.abs(half - (whole.astype(int) + ardern) / 2).max() <= 1.5
    assert (whole != ardern).any()
    assert (none == ardern).all()


def test_every_face_is_restored_where_it_is(
    painting: Painting, ardern: Picture, obama: Picture, reader: FaceReader
) -> None:
    both = beside(ardern, obama)
    restored = painting(1).restore(both, Restoration("RestoreFormer"))
    for face in reader.detect(both):
        for x, y in np.round(face.points).astype(int):
            assert (restored[y, x] >= 250).all()
    assert (restored[:4, :4] == both[:4, :4]).all()


def test_a_picture_without_faces_stays_as_it_is(painting: Painting) -> None:
    grey = np.full((80, 80, 3), 90, np.uint8)
    assert (painting(1).restore(grey, Restoration("RestoreFormer")) == grey).all()


def test_faces_are_restored_before_or_after_the_picture_is_enlarged(
    painting: Painting, ardern: Picture
) -> None:
    image = Image.fromarray(ardern)
    made = {
        first: Enhancement(
            ByFactor(2), "Lanczos", restorations=(Restoration("RestoreFormer"),),
            upscale_first=first,
        ).apply(image, Upscalers(), painting(1))
        for first in (True, False)
    }  # fmt: skip
    width, height = made[True].size
    assert (width, height) == (ardern.shape[1] * 2 // 8 * 8, ardern.shape[0] * 2 // 8 * 8)
    assert np.asarray(made[True]).tobytes() != np.asarray(made[False]).tobytes()
    assert np.abs(np.asarray(made[True]).astype(int) - np.asarray(made[False])).mean() < 10


def test_files_that_restore_no_faces_are_refused(
    restorers: FaceRestorers, restorer_file: Path, ardern: Picture, tmp_path: Path, spandrel: Any
) -> None:
    from spandrel.architectures.ESRGAN import ESRGAN

    path = tmp_path / "x4.safetensors"
    save_file(ESRGAN(num_filters=16, num_blocks=1).state_dict(), path)
    with pytest.raises(ModelError, match=r"x4\.safetensors: a ESRGAN for SR, must be for FaceSR"):
        FaceRestorers({"x4": path}).restore(ardern, Restoration("x4"))
    with pytest.raises(ModelError, match=r"a RestoreFormer for FaceSR, must be for SR"):
        Upscalers({"face": restorer_file}).enlarge("face", ardern)


def test_numbers_that_are_none_make_no_face(painting: Painting, ardern: Picture) -> None:
    with pytest.raises(NonFiniteOutput, match="face restorer RestoreFormer"):
        painting(float("nan")).restore(ardern, Restoration("RestoreFormer"))


@pytest.fixture(scope="module")
def reader() -> FaceReader:
    return FaceReader()


@pytest.fixture(scope="module")
def ardern() -> Picture:
    return photo("ardern")


@pytest.fixture(scope="module")
def obama() -> Picture:
    return photo("obama")
