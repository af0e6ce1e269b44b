"""Where the files of a configured source lie on this machine. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download

from pipelines.errors import ModelError

_PARTS = ("*.json", "*.safetensors")


def local_path(source: str) -> Path:
    """A path as it is; of a hub id the folder, or with a path inside of it behind that file or
    folder. What is not here yet is downloaded. Raises ModelError.
    """
    path = Path(source)
    if path.exists():
        return path
    owner, name, *inside = source.split("/") if source.count("/") else (source, "")
    if path.is_absolute() or source.startswith(".") or not owner or not name:
        raise ModelError(f"{source}: no such file or folder")
    repo, inner = f"{owner}/{name}", "/".join(inside)
    try:
        if inner.endswith(".safetensors"):
            return Path(hf_hub_download(repo, inner))
        patterns = [f"{inner}/{part}" if inner else part for part in _PARTS]
        return Path(snapshot_download(repo, allow_patterns=patterns)) / inner
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{source}: is not here and does not download: {lines[0]}") from error
