"""Fits, boxes and warps."""

import numpy as np
import pytest

from pipelines.portrait import region
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.geometry import bounds, grown, morphed, posed, similarity, warp, warp_field


def rotation(degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def test_a_similarity_is_found_again() -> None:
    points = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    turn, shift = 2.5 * rotation(40), np.array([3.0, -7.0])
    found, moved = similarity(points, points @ turn.T + shift)
    assert np.allclose(found, turn, atol=1e-5)
    assert np.allclose(moved, shift, atol=1e-5)


def test_a_mirror_image_is_never_fitted_by_mirroring() -> None:
    points = np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32)
    found, _ = similarity(points, points * [-1, 1, 1])
    assert np.linalg.det(found) > 0


def test_a_head_is_turned_into_the_templates_pose() -> None:
    mesh = np.random.default_rng(3).normal(size=(468, 3)).astype(np.float32) * 50
    turn = np.eye(3)
    turn[:2, :2] = rotation(25)
    template = (1.7 * mesh @ turn.T + [10, 20, 0]).astype(np.float32)
    assert np.allclose(posed(mesh, template), template, atol=1e-2)


def test_boxes_stay_within_the_picture() -> None:
    assert grown((90, 90, 20, 20), 3, (100, 100)).right == 100
    far = bounds(np.array([[500.0, -50.0]], np.float32), 5, (100, 80, 3))
    assert (far.left, far.right, far.top, far.bottom) == (79, 80, 0, 1)


def test_the_shape_changes_inside_the_outline_alone(
    reader: FaceReader, obama: np.ndarray, ardern: np.ndarray
) -> None:
    ours, theirs = reader.detect(obama)[0].mesh, reader.detect(ardern)[0].mesh
    goal = morphed(ours, theirs)
    oval, lips = list(region.OVAL), list(region.LIPS_OUTER)
    assert np.allclose(goal[oval], theirs[oval, :2], atol=1e-3)
    assert np.allclose(goal[lips], theirs[lips, :2], atol=1e-3)
    nose_tip = 4
    assert np.allclose(goal[nose_tip], posed(ours, theirs)[nose_tip, :2], atol=2)


def test_a_warp_onto_itself_moves_nothing(reader: FaceReader, obama: np.ndarray) -> None:
    mesh = reader.detect(obama)[0].mesh
    field = warp_field(mesh, mesh, obama.shape[:2])
    assert np.abs(warp(obama, field).astype(int) - obama).max() <= 1


def test_a_mesh_without_area_is_a_value_error() -> None:
    line = np.repeat(np.arange(468, dtype=np.float32)[:, None], 3, axis=1)
    with pytest.raises(ValueError, match="no area"):
        warp_field(line, line, (50, 50))
