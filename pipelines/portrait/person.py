"""Head and shoulders of a photo, and the person in them without the background."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.portrait import region
from pipelines.portrait.array import Mask, Picture, Points, resized
from pipelines.portrait.blend import mixed
from pipelines.portrait.face import Face
from pipelines.portrait.geometry import Box

_SEGMENT_PX = 320
_ROUNDS = 5
_FEATHER = 0.02


def head_and_shoulders(face: Face, size: tuple[int, int]) -> Box:
    """Three faces wide and high, more of it below than above; within (width, height)."""
    x, y, width, height = face.box
    left, top = max(0, round(x - width)), max(0, round(y - 0.8 * height))
    right = min(size[0], round(x + 2 * width))
    bottom = min(size[1], round(y + 2.2 * height))
    return Box(left, top, max(right, left + 1), max(bottom, top + 1))


def on_white(picture: Picture, mesh: Points) -> Picture:
    """The person with the face at `mesh` alone, what is around them white."""
    person = person_mask(picture, mesh)
    white = np.full(picture.shape, 255, np.float32)
    return np.round(mixed(white, picture.astype(np.float32), person)).astype(np.uint8)


def person_mask(picture: Picture, mesh: Points) -> Mask:
    """How much of each pixel is the person with this face, soft at the edge.

    GrabCut (Rother et al., 2004) at 320 px from a guess of head and shoulders by the face's mesh;
    what does not hang together with the face is left out. Equal pictures have equal masks.
    """
    height, width = picture.shape[:2]
    times = min(1.0, _SEGMENT_PX / max(height, width))
    size = max(1, round(width * times)), max(1, round(height * times))
    small = resized(picture, size, cv2.INTER_AREA)
    mesh = mesh * np.float32(times)
    guess = _guess(mesh, size[::-1])
    if not np.isin(guess, (cv2.GC_BGD, cv2.GC_PR_BGD)).any():
        return np.ones((height, width), np.float32)
    cv2.setRNGSeed(0)  # of its k-means
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(
        small[..., ::-1].copy(), guess, (0, 0, 1, 1), *models, _ROUNDS, cv2.GC_INIT_WITH_MASK
    )
    person = np.isin(guess, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    whole = _without_holes(_around(person, mesh))
    blur = max(0.5, _FEATHER * region.face_width(mesh))
    soft: Mask = cv2.GaussianBlur(whole.astype(np.float32), (0, 0), blur).astype(np.float32)
    return np.clip(resized(soft, (width, height), cv2.INTER_LINEAR), 0, 1).astype(np.float32)


def _guess(mesh: Points, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """GrabCut's four labels, (height, width), in faces' widths along and across the head's axis."""
    oval = region.oval(mesh, shape)
    middle = mesh[list(region.OVAL), :2].mean(0)
    down = mesh[152, :2] - mesh[10, :2]
    down = down / max(float(np.hypot(*down)), 1e-6)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    away = (np.stack([columns, rows], axis=-1) - middle) / region.face_width(mesh)
    v, u = away @ down, np.abs(away @ np.array([-down[1], down[0]]))
    head = (u / 0.85) ** 2 + ((v + 0.15) / 1.05) ** 2 < 1
    shoulders = (v > 0.8) & (u < 0.5 + 1.2 * (v - 0.8))
    chest = (v > 1.1) & (u < 0.35 + 0.9 * (v - 1.1))
    neck = (v > 0.5) & (u < 0.2)
    skull = (u / 0.55) ** 2 + ((v + 0.25) / 0.6) ** 2 < 1
    core = (region.erode(oval, 0.05 * region.face_width(mesh)) > 0) | skull | neck | chest
    outside = ((u > 1.1) & (v < 0.3)) | (v < -1.3)
    guess = np.full(shape, cv2.GC_PR_BGD, np.uint8)
    guess[head | shoulders] = cv2.GC_PR_FGD
    guess[outside] = cv2.GC_BGD
    guess[core] = cv2.GC_FGD
    return guess


def _around(person: NDArray[np.uint8], mesh: Points) -> NDArray[np.uint8]:
    """The part of it that the face is in."""
    _, labels = cv2.connectedComponents(person)
    face = region.oval(mesh, (person.shape[0], person.shape[1])) > 0
    found = np.bincount(labels[face & (person > 0)], minlength=2)
    found[0] = 0
    return np.asarray(labels == int(found.argmax()), np.uint8)


def _without_holes(person: NDArray[np.uint8]) -> NDArray[np.uint8]:
    contours, _ = cv2.findContours(person, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(person.copy(), contours, -1, 1, cv2.FILLED), np.uint8)
