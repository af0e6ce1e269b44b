"""Files of networks that others trained, read by the package spandrel (MIT), if it is installed.

No file runs code: safetensors, and .pth and .ckpt as far as torch reads tensors alone from them.
"""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ModelError
from pipelines.weights import check_finite, read_tensors

_PICKLES = frozenset({".pth", ".ckpt", ".pt"})


def read_model(path: Path, purposes: tuple[str, ...]) -> Any:
    """A `spandrel.ImageModelDescriptor` whose purpose is one of these, on the CPU.

    Raises ModelError for a file that is missing or damaged, holds more than tensors, or is of an
    architecture or a purpose that does not fit; and where spandrel is not installed.
    """
    spandrel = _spandrel(path)
    tensors = spandrel.canonicalize_state_dict(_tensors(path))
    try:
        check_finite(path, tensors)
        found = spandrel.ModelLoader().load_from_state_dict(tensors)
    except ModelError:
        raise
    except Exception as error:  # spandrel's own, and whatever an odd file leads it to
        raise ModelError(f"{path}: no network that spandrel reads: {error}") from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose not in purposes:
        raise ModelError(
            f"{path}: a {found.architecture.name} for {found.purpose}, must be for "
            f"{' or '.join(purposes)}"
        )
    return found


def _spandrel(path: Path) -> Any:
    try:
        import spandrel
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise ModelError(
            f"{path}: to read it, install daguerre[networks] and a torchvision that fits torch: "
            f"{error}"
        ) from error
    with contextlib.suppress(ImportError):  # CodeFormer and others, whose licences differ
        import spandrel_extra_arches

        spandrel_extra_arches.install(ignore_duplicates=True)
    return spandrel


def _tensors(path: Path) -> dict[str, Any]:
    if path.suffix.lower() not in _PICKLES:
        return dict(read_tensors(path)[0])
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{path}: damaged, or holds more than tensors: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds {type(found).__name__}, must hold tensors by name")
    return found
