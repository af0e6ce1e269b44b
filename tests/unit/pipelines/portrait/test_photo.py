"""Photos judged before a training."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ModelError
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.photo import (
    PhotoCheck,
    Verdict,
    check_photos,
    check_picture,
    compared,
    ranked,
    reference_photo,
    training_photos,
)
from tests.unit.pipelines.portrait.pictures import beside, photo_file, turned


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_photo_gets_the_verdict_it_deserves(
    reader: FaceReader, obama: np.ndarray, ardern: np.ndarray
) -> None:
    files = [
        photo_file("obama"),
        png(turned(obama, 35)),
        photo_file("collins"),
        b"not a picture",
        png(beside(obama, ardern)),
        png(np.zeros((64, 64, 3), np.uint8)),
        png(np.ascontiguousarray(obama[:, ::-1])),
    ]
    checks = check_photos(files, reader, max_pixels=10**6)
    assert [check.verdict.code for check in checks] == [1, 1, 6, 2, 3, 3, 1]
    assert [check.faces for check in checks] == [1, 1, 1, 0, 2, 0, 1]
    assert checks[0].frontal
    assert not checks[1].frontal
    assert reference_photo(checks) in (0, 6)
    assert set(training_photos(checks)) == {0, 1, 6}


def test_messages_are_the_manuals() -> None:
    assert {verdict.code: verdict.message for verdict in Verdict} == {
        1: "success",
        2: "Image decode error.",
        3: "Number of face is not 1.",
        4: "Image detect error.",
        5: "Image encoding error.",
        6: "This photo is not the same person in photos.",
    }


class _Broken(FaceReader):
    def __init__(self, on_detect: Exception | None, faces: FaceReader) -> None:
        super().__init__()
        self._on_detect, self._faces = on_detect, faces

    def detect(self, picture: np.ndarray) -> tuple:
        if self._on_detect:
            raise self._on_detect
        return self._faces.detect(picture)

    def embed(self, picture: np.ndarray, face: object) -> np.ndarray:
        return np.full(128, np.nan, np.float32)


def test_a_detector_that_fails_on_a_photo_is_that_photos_verdict(
    reader: FaceReader, obama: np.ndarray
) -> None:
    broken = _Broken(ValueError("odd"), reader)
    assert check_picture(obama, broken).verdict is Verdict.NOT_DETECTED
    assert check_picture(obama, _Broken(None, reader)).verdict is Verdict.NOT_ENCODED
    with pytest.raises(ModelError):
        check_picture(obama, _Broken(ModelError("no file"), reader))


def test_whom_most_photos_show_is_the_person() -> None:
    def check(*vector: float) -> PhotoCheck:
        embedding = np.zeros(128, np.float32)
        embedding[: len(vector)] = vector
        embedding /= np.linalg.norm(embedding)
        return PhotoCheck(Verdict.SUCCESS, True, 1, 1.0, 1.0, embedding)

    checks = compared([check(0, 1), check(1, 0.1), check(1, 0), check(1, -0.1)])
    assert [each.verdict.code for each in checks] == [6, 1, 1, 1]
    assert reference_photo(checks) == 2
    assert training_photos(checks)[0] == 2
    assert reference_photo([PhotoCheck(Verdict.NOT_DECODED)]) is None


def test_only_photos_of_the_person_become_references(
    reader: FaceReader, obama: np.ndarray, collins: np.ndarray
) -> None:
    blank = np.zeros((64, 64, 3), np.uint8)
    order = ranked([blank, turned(obama, 25), collins, obama], reader)
    assert [index for index, _ in order] == [3, 1]
