"""Three real faces, read once, and the pipeline's tools."""

from collections.abc import Callable

import pytest

from pipelines.portrait.faces import FaceReader
from pipelines.portrait.job import Subject, Tools
from pipelines.portrait.portrait import read_subject
from tests.unit.pipelines.portrait.pictures import Picture, photo


@pytest.fixture(scope="session")
def reader() -> FaceReader:
    return FaceReader()


@pytest.fixture(scope="session")
def tools(reader: FaceReader) -> Tools:
    return Tools(reader.detect)


@pytest.fixture(scope="session")
def collins() -> Picture:
    return photo("collins")


@pytest.fixture(scope="session")
def obama() -> Picture:
    return photo("obama")


@pytest.fixture(scope="session")
def ardern() -> Picture:
    return photo("ardern")


@pytest.fixture(scope="session")
def subject(reader: FaceReader) -> Callable[[str], Subject]:
    known = {name: read_subject([photo(name)], reader, name) for name in ("collins", "obama")}
    return known.__getitem__
