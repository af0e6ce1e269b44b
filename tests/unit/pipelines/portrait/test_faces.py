"""Faces in real photos."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ModelError
from pipelines.portrait import model_file, region
from pipelines.portrait.face import BYSTANDER, main_face, pose_of, without_bystanders
from pipelines.portrait.faces import SAME_PERSON, FaceReader
from tests.unit.pipelines.portrait.pictures import beside, turned


def test_a_photo_has_one_face_with_its_mesh_in_it(reader: FaceReader, obama: np.ndarray) -> None:
    (face,) = reader.detect(obama)
    x, y, width, height = face.box
    inside = (face.mesh[:, 0] > x - 0.2 * width) & (face.mesh[:, 0] < x + 1.2 * width)
    assert inside.all()
    assert (face.mesh[:, 1] > y - 0.2 * height).all()
    eyes = face.mesh[list(region.RIGHT_EYE), :2].mean(0)
    assert np.linalg.norm(eyes - face.points[0]) < 0.1 * width


@pytest.mark.parametrize("degrees", [-30, 30])
def test_a_leaning_head_is_found_and_its_roll_told(
    reader: FaceReader, ardern: np.ndarray, degrees: float
) -> None:
    upright = pose_of(reader.detect(ardern)[0].mesh).roll
    (face,) = reader.detect(turned(ardern, degrees))
    assert pose_of(face.mesh).roll == pytest.approx(upright - degrees, abs=6)
    assert pose_of(face.mesh).frontal_score < 0.85


def test_faces_come_from_left_to_right(
    reader: FaceReader, obama: np.ndarray, ardern: np.ndarray
) -> None:
    faces = reader.detect(beside(obama, ardern))
    assert len(faces) == 2
    assert faces[0].centre[0] < faces[1].centre[0]


def test_embeddings_tell_people_apart(
    reader: FaceReader, obama: np.ndarray, ardern: np.ndarray, collins: np.ndarray
) -> None:
    def embed(picture: np.ndarray) -> np.ndarray:
        return reader.embed(picture, reader.detect(picture)[0])

    darker = (turned(obama, 10) * 0.7).astype(np.uint8)
    assert embed(obama) @ embed(darker) > SAME_PERSON
    assert embed(obama) @ embed(ardern) < SAME_PERSON
    assert embed(obama) @ embed(collins) < SAME_PERSON
    assert np.linalg.norm(embed(obama)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (8, 3000), (300, 300), (9, 9)])
def test_a_picture_without_a_face_has_none(reader: FaceReader, shape: tuple[int, int]) -> None:
    grain = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    assert reader.detect(grain) == ()


def test_the_main_face_is_large_and_central_and_bystanders_are_small(
    reader: FaceReader, obama: np.ndarray
) -> None:
    small = np.ascontiguousarray(obama[::6, ::6])
    canvas = np.full((obama.shape[0], 500, 3), 128, np.uint8)
    canvas[:, 100:400] = obama
    canvas[: small.shape[0], : small.shape[1]] = small
    faces = reader.detect(canvas)
    assert len(faces) == 2
    assert main_face(faces, (500, obama.shape[0])).box[2] > 100
    assert min(f.box[2] for f in faces) < BYSTANDER * max(f.box[2] for f in faces)
    assert len(without_bystanders(faces)) == 1


def test_another_file_than_the_expected_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "face_landmark.tflite").write_bytes(b"other")
    monkeypatch.setattr(model_file, "__file__", str(tmp_path / "x.py"))
    with pytest.raises(ModelError, match="cannot be read"):
        model_file.mesh_file()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "face_landmark.tflite").write_bytes(b"other")
    with pytest.raises(ModelError, match="sha256"):
        model_file.mesh_file()
