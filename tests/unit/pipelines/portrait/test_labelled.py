"""The check of photos on a labelled set: the right one of the six codes for every photo."""

import numpy as np
import pytest

from benchmarks.photo_check import Labelled, labelled, measure
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.photo import PhotoCheck

KINDS = (
    "single", "leant", "turned", "none", "several", "other person", "broken file", "tiny"
)  # fmt: skip


@pytest.fixture(scope="module")
def checked(
    reader: FaceReader, obama: np.ndarray, ardern: np.ndarray, collins: np.ndarray
) -> list[tuple[Labelled, PhotoCheck]]:
    files = labelled([obama], [ardern, collins], reader)
    assert {file.kind for file in files} == set(KINDS)
    return list(zip(files, measure(files, reader)[0], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_photo_of_a_kind_gets_its_code(
    checked: list[tuple[Labelled, PhotoCheck]], kind: str
) -> None:
    told = [(file, check) for file, check in checked if file.kind == kind]
    wrong = [(check.verdict, check.frontal) for file, check in told if not file.is_right(check)]
    assert told
    assert not wrong
