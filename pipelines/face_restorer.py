"""Faces made clear again by a network, each put back where it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.enhancement import Restoration
from pipelines.errors import ModelError, NonFiniteOutput
from pipelines.portrait.array import Picture
from pipelines.portrait.blend import feathered, pasted
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.geometry import similarity
from pipelines.upscaler.spandrel_file import read_model

SIDE_PX = 512
"""Of the face that these networks are trained on."""
_FEATHER_PX = 48
# eyes, nose and corners of the mouth where GFPGAN, RestoreFormer and CodeFormer want them
_ALIGNED = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935],
     [201.26117, 371.41043], [313.08905, 371.15118]], np.float32
)  # fmt: skip


class FaceRestorers:
    """Restores by name. Networks are loaded when first used; may be called from any thread."""

    def __init__(
        self, files: Mapping[str, Path] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """`files` are networks of the deployer's, by name: GFPGAN, RestoreFormer or CodeFormer."""
        self._files = dict(files or {})
        self._device = torch.device(device)
        self._reader = FaceReader()
        self._loaded: dict[str, _Network] = {}
        self._lock = threading.Lock()

    def restore(self, picture: Picture, wanted: Restoration) -> Picture:
        """All faces that are found, and their surroundings. Raises ModelError, NonFiniteOutput."""
        if wanted.share == 0:
            return picture
        faces = self._reader.detect(picture)
        for face in faces:
            picture = self._restored(picture, face.points, wanted)
        return picture

    def _restored(
        self, picture: Picture, points: NDArray[np.float32], wanted: Restoration
    ) -> Picture:
        turn, shift = similarity(points, _ALIGNED)
        there = np.column_stack([turn, shift])
        side = (SIDE_PX, SIDE_PX)
        face = cv2.warpAffine(
            picture, there, side, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        clear = self._network(wanted.name).run(face.astype(np.uint8), wanted.fidelity)
        size = (picture.shape[1], picture.shape[0])
        back = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        placed = cv2.warpAffine(clear, there, size, flags=back, borderMode=cv2.BORDER_REPLICATE)
        inside = np.zeros((SIDE_PX, SIDE_PX), np.float32)
        inside[1:-1, 1:-1] = 1
        mask = cv2.warpAffine(feathered(inside, _FEATHER_PX), there, size, flags=back)
        soft = (wanted.share * mask).astype(np.float32)
        return pasted(picture, placed.astype(np.float32), soft, 0, 0)

    def _network(self, name: str) -> _Network:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _load(name, self._files[name], self._device)
            return self._loaded[name]


@dataclass(frozen=True)
class _Network:
    name: str
    module: Callable[..., tuple[torch.Tensor, ...]]
    """1 x 3 x 512 x 512 in -1 ... 1 to the same, the first of what it gives."""
    device: torch.device
    takes_fidelity: bool

    @torch.inference_mode()
    def run(self, face: Picture, fidelity: float) -> Picture:
        values = torch.from_numpy(np.ascontiguousarray(face.transpose(2, 0, 1)))[None]
        values = values.to(self.device, torch.float32) / 127.5 - 1
        options = {"weight": fidelity} if self.takes_fidelity else {}
        drawn = self.module(values, **options)[0][0].float()
        if not torch.isfinite(drawn).all():
            raise NonFiniteOutput(f"the face restorer {self.name} made NaN or infinity of a face")
        whole = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return whole.permute(1, 2, 0).contiguous().cpu().numpy()


def _load(name: str, path: Path, device: torch.device) -> _Network:
    found = read_model(path, ("FaceSR",))
    if (found.input_channels, found.scale) != (3, 1):
        raise ModelError(
            f"{path}: takes {found.input_channels} channels and enlarges {found.scale} times, "
            "must be 3 and 1"
        )
    module = found.model.to(device).eval().requires_grad_(False)
    return _Network(name, module, device, found.architecture.id == "CodeFormer")
