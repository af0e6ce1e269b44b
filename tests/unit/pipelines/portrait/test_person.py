"""Head and shoulders of a photo, without what is behind them."""

import numpy as np
import pytest

from pipelines.portrait import region
from pipelines.portrait.face import Face
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.person import head_and_shoulders, on_white, person_mask
from tests.unit.pipelines.portrait.pictures import turned


def face_of(reader: FaceReader, picture: np.ndarray) -> Face:
    (face,) = reader.detect(picture)
    return face


def test_the_box_is_three_faces_wide_and_ends_at_the_border(
    reader: FaceReader, obama: np.ndarray
) -> None:
    wide = np.pad(obama, ((900, 900), (900, 900), (0, 0)), mode="edge")
    face = face_of(reader, obama).placed(np.array([-900, -900], np.float32))
    _, y, width, height = face.box
    box = head_and_shoulders(face, (wide.shape[1], wide.shape[0]))
    assert box.width == pytest.approx(3 * width, abs=2)
    assert box.height == pytest.approx(3 * height, abs=2)
    assert y - box.top < box.bottom - (y + height), "more of it below"
    inside = head_and_shoulders(face_of(reader, obama), (obama.shape[1], obama.shape[0]))
    assert min(inside.left, inside.top) >= 0
    assert inside.right <= obama.shape[1]
    assert inside.bottom <= obama.shape[0]


@pytest.mark.parametrize("name", ["obama", "ardern", "collins"])
@pytest.mark.parametrize("degrees", [0, 20])
def test_the_whole_face_is_kept_and_corners_behind_it_turn_white(
    reader: FaceReader, request: pytest.FixtureRequest, name: str, degrees: int
) -> None:
    picture = turned(request.getfixturevalue(name), degrees)
    face = face_of(reader, picture)
    alone = on_white(picture, face.mesh)
    width = region.face_width(face.mesh)
    inner = region.erode(region.oval(face.mesh, picture.shape[:2]), 0.15 * width) > 0
    assert np.abs(alone[inner].astype(int) - picture[inner]).max() <= 2
    person = person_mask(picture, face.mesh)
    assert 0.15 < person.mean() < 0.85
    assert (alone[person == 0] == 255).all()


def test_a_plain_background_is_told_from_the_person_and_always_alike(
    reader: FaceReader, obama: np.ndarray
) -> None:
    face = face_of(reader, obama)
    person = person_mask(obama, face.mesh) > 0.5
    green = np.where(person[..., None], obama, np.uint8([30, 160, 60])).astype(np.uint8)
    again = person_mask(green, face.mesh)
    both, either = ((again > 0.5) & person).sum(), ((again > 0.5) | person).sum()
    assert both / either > 0.9
    assert (again == person_mask(green, face.mesh)).all()


def test_a_picture_that_is_all_face_stays_as_it_is(reader: FaceReader, obama: np.ndarray) -> None:
    face = face_of(reader, obama)
    x, y, width, height = (round(value) for value in face.box)
    left, top = x + width // 3, y + height // 3
    inner = np.ascontiguousarray(obama[top : y + 2 * height // 3, left : x + 2 * width // 3])
    mesh = face.placed(np.array([left, top], np.float32)).mesh
    assert (on_white(inner, mesh) == inner).all()
