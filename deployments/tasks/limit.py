"""Values of an image request judged against the limits that a deployer sets."""

from __future__ import annotations

from typing import Literal, TypeVar

from configs.sampler import SUPPORTED_SCHEDULES, ScheduleName, SchedulerName
from configs.settings import LimitSettings
from pipelines.errors import InvalidRequest

T = TypeVar("T")
OutputFormat = Literal["png", "jpeg", "webp"]
Size = tuple[int, int]
"""Width and height, pixels."""

MIN_SIDE_PX = 64
SIDE_STEP_PX = 8
MAX_MASK_BLUR_PX = 64


def given_or(value: T | None, default: T) -> T:
    return default if value is None else value


def file_format(given: str | None) -> OutputFormat:
    formats: dict[str | None, OutputFormat] = {
        None: "png",
        "png": "png",
        "jpg": "jpeg",
        "jpeg": "jpeg",
        "webp": "webp",
    }
    return formats[given]


def check_lengths(limits: LimitSettings, **texts: str) -> None:
    for field, text in texts.items():
        if len(text) > limits.max_prompt_chars:
            raise InvalidRequest(
                field,
                f"{field} must be at most {limits.max_prompt_chars} characters, given {len(text)}",
            )


def check_within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRequest(field, f"{field} must be {low} to {high}, given {str(value)[:40]}")


def check_size(
    limits: LimitSettings, width: int | None, height: int | None, *, prefix: str = ""
) -> None:
    """None is not judged. `prefix` stands before the fields' names."""
    for field, side in ((f"{prefix}width", width), (f"{prefix}height", height)):
        if side is None:
            continue
        check_within(field, side, MIN_SIDE_PX, limits.max_side_px)
        if side % SIDE_STEP_PX:
            raise InvalidRequest(
                field, f"{field} must be a multiple of {SIDE_STEP_PX}, given {side}"
            )
    if width and height and width * height > limits.max_pixels:
        raise InvalidRequest(
            f"{prefix}width",
            f"{prefix}width x height must be at most {limits.max_pixels} pixels, "
            f"given {width} x {height} = {width * height}",
        )


def checked_schedule(given: ScheduleName, scheduler: SchedulerName) -> ScheduleName:
    if given not in (known := SUPPORTED_SCHEDULES[scheduler]):
        raise InvalidRequest(
            "schedule",
            f"schedule must be one of {', '.join(known)} for {scheduler}, given {given}",
        )
    return given


def checked_interval(given: tuple[float, float]) -> tuple[float, float]:
    begin, end = given
    if not 0 <= begin <= end <= 1:
        raise InvalidRequest(
            "guidance_interval",
            f"guidance_interval must be two rising numbers of 0 to 1, given {begin}, {end}",
        )
    return given


def checked_blur(given: tuple[float, float]) -> tuple[float, float]:
    for sigma in given:
        check_within("mask_blur", sigma, 0, MAX_MASK_BLUR_PX)
    return given


def check_init(size: Size, limits: LimitSettings, *, latent: bool, pasted: int) -> None:
    """Of an initial picture. `latent`: it goes through the VAE as it is; `pasted`: so many pictures
    come back in its size. Raises InvalidRequest.
    """
    width, height = size
    for pixels, most, what in (
        (width * height * latent, limits.max_pixels, "with resize_mode latent"),
        (width * height * pasted, limits.max_input_pixels, "times num_images with masked_padding"),
    ):
        if pixels > most:
            raise InvalidRequest(
                "init_image",
                f"init_image must be at most {most} pixels {what}, given {width} x {height}",
            )


def fitted_size(size: Size, limits: LimitSettings) -> Size:
    """The initial picture's size brought under the limits, aspect ratio kept, sides rounded down
    to a multiple of 8.
    """
    width, height = size
    scale = min(
        1.0,
        limits.max_side_px / max(width, height),
        (limits.max_pixels / (width * height)) ** 0.5,
    )
    fitted = tuple(int(side * scale) // SIDE_STEP_PX * SIDE_STEP_PX for side in size)
    if min(fitted) < MIN_SIDE_PX:
        raise InvalidRequest(
            "init_image",
            f"init_image must be at least {MIN_SIDE_PX} x {MIN_SIDE_PX} pixels after it is scaled "
            f"to at most {limits.max_side_px} a side, given {width} x {height}",
        )
    return fitted[0], fitted[1]
