"""Ways to enlarge a picture, by the names that the web UI's clients know. Imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from pipelines.upscaler.package import PACKAGED
from pipelines.webui.resize import Resize, lanczos

if TYPE_CHECKING:
    import torch

    from pipelines.upscaler.network import Network

NO_UPSCALER: Final = "None"
MOST_PASSES: Final = 3
"""Of a network over one picture, each making it larger."""


def nearest(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.NEAREST)


RESAMPLERS: Final[Mapping[str, Resize]] = MappingProxyType({"Lanczos": lanczos, "Nearest": nearest})
BUILT_IN: Final = (*RESAMPLERS, *PACKAGED)
"""Those that need no file of the deployer's."""


def upscaler_names(files: Mapping[str, Path]) -> tuple[str, ...]:
    """All but `NO_UPSCALER`, with files of the deployer's: one may take the place of a built-in."""
    return tuple(dict.fromkeys((*BUILT_IN, *files)))


def _go_on() -> None:
    pass


class Upscalers:
    """Enlarges by name. Networks are loaded when first used, and one runs at a time.

    May be called from any thread.
    """

    def __init__(
        self, files: Mapping[str, Path] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """`files` are networks of the deployer's, by name, as `spandrel_file` reads them."""
        self._files = dict(files or {})
        self._device = device
        self._loaded: dict[str, Network] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return upscaler_names(self._files)

    def is_network(self, name: str) -> bool:
        """Whether it takes long: seconds a megapixel on a GPU, minutes on a CPU."""
        return name in self._files or name in PACKAGED

    def resize(self, name: str, between: Callable[[], None] = _go_on) -> Resize:
        """To a width and height, by one of `names`, for any other as Lanczos does.

        A network runs until the picture is large enough, and the rest is Lanczos'. `between` is
        called between its tiles and may raise. The resizing raises ModelError and NonFiniteOutput.
        """
        if not self.is_network(name):
            return RESAMPLERS.get(name, lanczos)

        def by_network(image: Image.Image, width: int, height: int) -> Image.Image:
            for _ in range(MOST_PASSES):
                if image.width >= width and image.height >= height:
                    break
                image = Image.fromarray(self.enlarge(name, np.asarray(image), between))
            return image if image.size == (width, height) else lanczos(image, width, height)

        return by_network

    def enlarge(
        self,
        name: str,
        picture: np.typing.NDArray[np.uint8],
        between: Callable[[], None] = _go_on,
    ) -> np.typing.NDArray[np.uint8]:
        """By a network's own scale; (height, width, 3) RGB. Raises as `resize`."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            return self._loaded[name].enlarge(picture, between)

    def _load(self, name: str) -> Network:
        if name in self._files:
            from pipelines.upscaler.network import load_file

            return load_file(self._files[name], self._device)
        from pipelines.upscaler.real_esrgan import load_packaged

        return load_packaged(name, self._device)
