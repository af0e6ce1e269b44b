"""The photos, and what tests do to them."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.images import decode_image

PHOTOS = Path(__file__).parent / "photos"
Picture = NDArray[np.uint8]


def photo(name: str) -> Picture:
    return np.asarray(decode_image(photo_file(name), max_pixels=10**6))


def photo_file(name: str) -> bytes:
    return (PHOTOS / f"{name}.jpg").read_bytes()


def turned(picture: Picture, degrees: float) -> Picture:
    height, width = picture.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return np.asarray(
        cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REFLECT), np.uint8
    )


def beside(*pictures: Picture) -> Picture:
    """In one row, of one height."""
    height = min(picture.shape[0] for picture in pictures)
    return np.concatenate([picture[:height] for picture in pictures], axis=1)
