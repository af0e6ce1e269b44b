"""What makes a guide for a ControlNet of a picture, without a network. No torch.

Names, parameters and their defaults are those of the web UI's ControlNet extension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.engine.request import Picture
from pipelines.errors import InvalidRequest
from pipelines.webui.resize import COVER, FIT, STRETCH, resize_image

NONE: Final = "none"
DEFAULT_RESOLUTION: Final = 512
MIN_RESOLUTION, MAX_RESOLUTION = 64, 2048
MAX_SEEN_PX: Final = 4 * MAX_RESOLUTION**2
"""What a preprocessor may see: a thin picture whose shorter side grows may have any number."""
_STEP_PX: Final = 8
MODES: Final = {"stretch": STRETCH, "crop": COVER, "fill": FIT}

Grey = npt.NDArray[np.uint8]


class Slider(NamedTuple):
    """One parameter of a preprocessor."""

    name: str
    default: float
    least: float
    most: float


@dataclass(frozen=True)
class Preprocessor:
    work: Callable[[Picture, float, float], Picture]
    """With both parameters, of which it may need none."""
    label: str = ""
    """Its other name, if it has one."""
    sliders: tuple[Slider, ...] = ()
    scales: bool = True
    """Whether it works at a resolution of its own."""

    def parameters(self, a: float | None, b: float | None) -> tuple[float, float]:
        """With defaults for None. Raises ValueError for one out of range."""
        found = [0.0, 0.0]
        for i, (slider, given) in enumerate(zip(self.sliders, (a, b), strict=False)):
            value = slider.default if given is None else given
            if not slider.least <= value <= slider.most:
                raise ValueError(
                    f"{slider.name} must be {slider.least:g} to {slider.most:g}, given {value:g}"
                )
            found[i] = value
        return found[0], found[1]


def _same(picture: Picture, _a: float, _b: float) -> Picture:
    return picture


def _canny(picture: Picture, low: float, high: float) -> Picture:
    return _rgb(cv2.Canny(picture, low, high))


def _invert(picture: Picture, _a: float, _b: float) -> Picture:
    return np.subtract(255, picture, dtype=np.uint8)


def _tile(picture: Picture, rate: float, _b: float) -> Picture:
    """Its details gone: smaller by the rate, and back."""
    height, width = picture.shape[:2]
    size = max(1, round(width / rate)), max(1, round(height / rate))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return _uint8(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def _blur(picture: Picture, sigma: float, _b: float) -> Picture:
    return _uint8(cv2.GaussianBlur(picture, (0, 0), sigma))


def _threshold(picture: Picture, least: float, _b: float) -> Picture:
    return _rgb(_binary(_uint8(picture.min(axis=2)) > least))


def _scribble(picture: Picture, threshold: float, _b: float) -> Picture:
    """Lines where a narrow blur is darker than a wide one: a difference of Gaussians."""
    near, far = (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), s) for s in (0.5, 5.0))
    darker = np.clip(np.max(far - near, axis=2), 0, 255)
    return _rgb(_binary(2 * darker > threshold))


def _luminance(picture: Picture, gamma: float, _b: float) -> Picture:
    return _with_gamma(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 0], gamma)


def _intensity(picture: Picture, gamma: float, _b: float) -> Picture:
    return _with_gamma(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[..., 2], gamma)


def _shuffle(picture: Picture, _a: float, _b: float) -> Picture:
    """Its colours moved along a smooth random field, the same one for all pictures of a size."""
    height, width = picture.shape[:2]
    rng = np.random.default_rng(0)
    across, down = (_smooth_noise(rng, height, width) * (side - 1) for side in (width, height))
    return _uint8(cv2.remap(picture, across, down, cv2.INTER_LINEAR))


PREPROCESSORS: Final[Mapping[str, Preprocessor]] = {
    NONE: Preprocessor(_same, scales=False),
    "canny": Preprocessor(
        _canny,
        sliders=(Slider("Low Threshold", 100, 1, 255), Slider("High Threshold", 200, 1, 255)),
    ),
    "invert": Preprocessor(_invert, "invert (from white bg & black line)", scales=False),
    "tile_resample": Preprocessor(
        _tile, sliders=(Slider("Down Sampling Rate", 1.0, 1.0, 8.0),), scales=False
    ),
    "blur_gaussian": Preprocessor(_blur, sliders=(Slider("Sigma", 9.0, 0.01, 64.0),)),
    "threshold": Preprocessor(_threshold, sliders=(Slider("Binarization Threshold", 127, 0, 255),)),
    "scribble_xdog": Preprocessor(_scribble, sliders=(Slider("XDoG Threshold", 32, 1, 64),)),
    "shuffle": Preprocessor(_shuffle),
    "recolor_luminance": Preprocessor(
        _luminance, sliders=(Slider("Gamma Correction", 1.0, 0.1, 2.0),), scales=False
    ),
    "recolor_intensity": Preprocessor(
        _intensity, sliders=(Slider("Gamma Correction", 1.0, 0.1, 2.0),), scales=False
    ),
}


def guide(
    image: Image.Image,
    size: tuple[int, int],
    *,
    preprocessor: str = NONE,
    resize_mode: str = "stretch",
    resolution: int | None = None,
    parameters: tuple[float, float] = (0.0, 0.0),
) -> Picture:
    """An RGB picture as a guide of a width and height.

    `resolution` is the shorter side, pixels, that the preprocessor sees; None: it sees the picture
    as large as it will be. Raises InvalidRequest where that is more than MAX_SEEN_PX.
    """
    worker, mode = PREPROCESSORS[preprocessor], MODES[resize_mode]
    if worker.scales and resolution is not None:
        factor = resolution / min(image.size)
        width, height = (_step(side * factor) for side in image.size)
        if width * height > MAX_SEEN_PX:
            raise InvalidRequest(
                "controlnet",
                f"a preprocessor may see at most {MAX_SEEN_PX} pixels, given {width} x {height}: "
                "the resolution is too high for a picture of this shape",
            )
        image = image.resize((width, height), _LANCZOS)
    elif image.size != size:
        image = resize_image(mode, image, *size)
    found = worker.work(np.asarray(image.convert("RGB")), *parameters)
    if (found.shape[1], found.shape[0]) == size:
        return found
    return np.asarray(resize_image(mode, Image.fromarray(found), *size))


_LANCZOS = Image.Resampling.LANCZOS


def _step(side: float) -> int:
    return max(_STEP_PX, round(side / _STEP_PX) * _STEP_PX)


def _with_gamma(grey: object, gamma: float) -> Picture:
    return _rgb(_uint8(255 * (np.asarray(grey, np.float32) / 255) ** gamma))


def _smooth_noise(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    """0..1, with bumps as large as a quarter of 1024 pixels."""
    cell = 256
    shape = (height // cell + 2, width // cell + 2)
    noise = rng.random(shape, np.float32)
    larger = cv2.resize(
        noise, (width + 2 * cell, height + 2 * cell), interpolation=cv2.INTER_CUBIC
    )[cell : cell + height, cell : cell + width]
    spread = float(np.ptp(larger)) or 1.0
    return np.asarray((larger - larger.min()) / spread, np.float32)


def _binary(where: npt.NDArray[np.bool_]) -> Grey:
    return np.where(where, np.uint8(255), np.uint8(0))


def _rgb(grey: object) -> Picture:
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)


def _uint8(values: object) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(np.asarray(values, np.float32)), 0, 255).astype(np.uint8)
