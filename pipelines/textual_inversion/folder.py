"""A folder of embeddings, and where their names stand in a prompt."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from pipelines.errors import ModelError
from pipelines.textual_inversion.file import SUFFIXES, Embedding, read_embedding

FIRST: Final = 1 << 20
"""Ids of tokens from here on stand for vectors; those of tokenizers are far below."""


@dataclass(frozen=True)
class Skipped:
    """A file that is not used."""

    reason: str
    embedding: Embedding | None = None
    """If it could be read."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Those of a folder as it stood at one time. Never changes."""

    loaded: Mapping[str, Embedding] = field(default_factory=dict)
    """By name."""
    skipped: Mapping[str, Skipped] = field(default_factory=dict)
    _places: Sequence[tuple[Embedding, int]] = ()
    """By token id, from FIRST on: the embedding and the number of its vector."""
    _names: Mapping[int, Sequence[tuple[list[int], int]]] = field(default_factory=dict)
    """By the first token of a name: all of its tokens and the id of its first vector, the longest
    first."""

    @classmethod
    def of(
        cls, loaded: Mapping[str, Embedding], skipped: Mapping[str, Skipped], tokenizer: Any
    ) -> Embeddings:
        places: list[tuple[Embedding, int]] = []
        names: dict[int, list[tuple[list[int], int]]] = {}
        for name, embedding in loaded.items():
            ids = tokenizer(name, add_special_tokens=False, verbose=False).input_ids
            if ids:
                names.setdefault(ids[0], []).append((ids, FIRST + len(places)))
                places += [(embedding, i) for i in range(embedding.length)]
        for each in names.values():
            each.sort(key=lambda found: -len(found[0]))
        return cls(loaded, skipped, places, names)

    def replaced(self, ids: list[int]) -> list[int]:
        """A text's tokens with the ids of vectors in the places of names; the longest name wins."""
        found: list[int] = []
        at = 0
        while at < len(ids):
            for name, first in self._names.get(ids[at], ()):
                if ids[at : at + len(name)] == name:
                    found += range(first, first + self._places[first - FIRST][0].length)
                    at += len(name)
                    break
            else:
                found.append(ids[at])
                at += 1
        return found

    def run(self, token: int) -> int:
        """Tokens from this one on that stay together."""
        if token < FIRST:
            return 1
        embedding, index = self._places[token - FIRST]
        return embedding.length - index

    def vector(self, token: int, encoder: int) -> torch.Tensor:
        """Of one token from FIRST on, for a text encoder by number."""
        embedding, index = self._places[token - FIRST]
        return embedding.vectors[encoder][index]


NO_EMBEDDINGS: Final = Embeddings()


class EmbeddingFolder:
    """The files of a folder and of those in it. Any thread may read `now`."""

    def __init__(self, folder: Path, widths: Sequence[int], tokenizer: Any) -> None:
        """`widths`: of the text encoders; `tokenizer`: of the first. Raises ModelError where there
        is no folder.
        """
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such folder of embeddings")
        self.now = NO_EMBEDDINGS
        self._folder = folder
        self._widths = tuple(widths)
        self._tokenizer = tokenizer
        self._read: dict[tuple[Path, int, int], Embedding | str] = {}
        """By path, size and time of change: what it holds, or why it does not load."""
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> bool:
        """Looks at the folder; whether there is anything new. Only changed files are read."""
        with self._lock:
            files = sorted(self._files())
            if files == list(self._read) and self.now is not NO_EMBEDDINGS:
                return False
            self._read = {file: self._read.get(file) or _tried(file[0]) for file in files}
            self.now = self._sorted()
            return True

    def _files(self) -> Iterator[tuple[Path, int, int]]:
        for path in self._folder.rglob("*"):
            if path.suffix.lower() in SUFFIXES:
                try:
                    stat = path.stat()
                except OSError:  # removed in between
                    continue
                yield path, stat.st_size, stat.st_mtime_ns

    def _sorted(self) -> Embeddings:
        loaded: dict[str, Embedding] = {}
        skipped: dict[str, Skipped] = {}
        for (path, *_), found in self._read.items():
            if isinstance(found, str):
                skipped.setdefault(path.stem, Skipped(found))
            elif path.stem in loaded:
                skipped[path.name] = Skipped(f"{path}: another file has this name", found)
            elif reason := found.misfit(self._widths):
                skipped[path.stem] = Skipped(f"{path}: {reason}", found)
            else:
                loaded[path.stem] = found
        return Embeddings.of(loaded, skipped, self._tokenizer)


def _tried(path: Path) -> Embedding | str:
    try:
        return read_embedding(path)
    except ModelError as error:
        return str(error)


@contextmanager
def inserted(
    encoder: Any, rows: Sequence[Sequence[int]], embeddings: Embeddings, number: int
) -> Iterator[list[list[int]]]:
    """The rows of token ids with 0 for those of vectors, which for as long as this lasts the
    encoder sees in their places; `number` is the encoder's.
    """
    places = [
        (row, column, token)
        for row, tokens in enumerate(rows)
        for column, token in enumerate(tokens)
        if token >= FIRST
    ]
    plain = [[token if token < FIRST else 0 for token in tokens] for tokens in rows]
    if not places:
        yield plain
        return
    vectors = torch.stack([embeddings.vector(token, number) for _, _, token in places])
    at_rows, at_columns = ([place[i] for place in places] for i in range(2))

    def insert(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[at_rows, at_columns] = vectors.to(output, non_blocking=True)
        return output

    handle = encoder.get_input_embeddings().register_forward_hook(insert)
    try:
        yield plain
    finally:
        handle.remove()
