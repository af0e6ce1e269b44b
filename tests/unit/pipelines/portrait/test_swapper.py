"""A swapper from a file: here one that gives the source back."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ComputationFailed, ModelError
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.portrait import read_subject
from pipelines.portrait.swapper import load_swapper


def _field(number: int, value: bytes | int) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _tensor(name: str, side: int) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in (1, 3, side, side))
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def onnx(side: int, last: bytes = b"Identity") -> bytes:
    """target - target + source, then one more operation, as an ONNX model."""

    def node(kind: bytes, inputs: list[bytes], output: bytes) -> bytes:
        fields = b"".join(_field(1, name) for name in inputs)
        return _field(1, fields + _field(2, output) + _field(4, kind))

    graph = node(b"Sub", [b"target", b"target"], b"zero")
    graph += node(b"Add", [b"zero", b"source"], b"sum") + node(last, [b"sum"], b"out")
    graph += _field(2, b"swap")
    graph += _field(11, _tensor("target", side)) + _field(11, _tensor("source", side))
    graph += _field(12, _tensor("out", side))
    return _field(1, 7) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 11))


def test_the_models_face_lies_where_the_templates_was(
    reader: FaceReader, obama: np.ndarray, ardern: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "swap.onnx"
    path.write_bytes(onnx(128))
    reference = read_subject([obama], reader).references[0]
    face = reader.detect(ardern)[0]
    swapped = load_swapper(path, 128)(ardern, face.mesh, reference)
    (found,) = reader.detect(swapped)
    assert np.linalg.norm(found.points - face.points, axis=1).max() < 0.1 * face.box[2]
    ours = reader.embed(obama, reader.detect(obama)[0])
    assert reader.embed(swapped, found) @ ours > reader.embed(ardern, face) @ ours + 0.3
    assert (swapped[:5] == ardern[:5]).all()


def test_a_model_of_another_kind_or_none_is_said(
    reader: FaceReader, obama: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "swap.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"swap\.onnx"):
        load_swapper(path, 128)
    with pytest.raises(ModelError, match="nowhere"):
        load_swapper(tmp_path / "nowhere.onnx", 128)
    path.write_bytes(onnx(128, b"GlobalAveragePool"))
    reference = read_subject([obama], reader).references[0]
    with pytest.raises(ComputationFailed, match=r"swap\.onnx"):
        load_swapper(path, 128)(obama, reference.mesh, reference)
