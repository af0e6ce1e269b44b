"""A half-made portrait as bytes: another process goes on after the last stage that was done.

A NumPy archive: each array once, however many values share it, and one entry of JSON with the tree
of values around them. No pickle.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.portrait.face import Face
from pipelines.portrait.geometry import Box
from pipelines.portrait.job import Person, PortraitJob, Reference, Subject, Tools
from pipelines.portrait.parameters import PortraitParameters

_TYPES: dict[str, type] = {
    kind.__name__: kind for kind in (Box, Face, Person, PortraitJob, Reference, Subject)
}
_GIVEN = frozenset({"tools", "parameters"})
"""Not kept: whoever goes on brings them."""
_TREE = "tree"
_DAMAGES = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What odd bytes lead NumPy, zipfile and this module to."""


class DamagedState(ValueError):
    """Bytes that `read_state` cannot go on from."""


def write_state(job: PortraitJob, done: Sequence[str]) -> bytes:
    """The job after the stages of these names."""
    arrays: dict[str, NDArray[Any]] = {}
    names: dict[int, str] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            name = names.setdefault(id(value), f"array{len(names)}")
            arrays[name] = value
            return {"array": name}
        if is_dataclass(value):
            kept = [field.name for field in fields(value) if field.name not in _GIVEN]
            values = {name: plain(getattr(value, name)) for name in kept}
            return {"type": type(value).__name__, "fields": values}
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        if isinstance(value, np.generic):
            return value.item()
        return value

    tree = json.dumps({"done": list(done), "job": plain(job)}).encode()
    buffer = io.BytesIO()
    np.savez(buffer, **{_TREE: np.frombuffer(tree, np.uint8)}, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_state(
    data: bytes, tools: Tools, parameters: PortraitParameters
) -> tuple[PortraitJob, tuple[str, ...]]:
    """What `write_state` was given, with these tools and parameters. Raises DamagedState."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        tree = json.loads(arrays.pop(_TREE).tobytes())
        given = {"tools": tools, "parameters": parameters}
        job = _value(tree["job"], arrays, given)
        if not isinstance(job, PortraitJob):
            raise DamagedState("there is no portrait in it")
        return job, tuple(map(str, tree["done"]))
    except _DAMAGES as error:
        raise DamagedState(str(error)) from error


def _value(tree: Any, arrays: dict[str, NDArray[Any]], given: dict[str, Any]) -> Any:
    if isinstance(tree, list):
        return tuple(_value(each, arrays, given) for each in tree)
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]]
    kind = _TYPES[tree["type"]]
    values = {name: _value(each, arrays, given) for name, each in tree["fields"].items()}
    return kind(**values, **(given if kind is PortraitJob else {}))
