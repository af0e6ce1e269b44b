"""A half-made portrait as bytes."""

import io
from collections.abc import Callable

import numpy as np
import pytest

from pipelines.portrait.job import PortraitJob, Subject, Tools
from pipelines.portrait.parameters import SD15, PortraitParameters
from pipelines.portrait.portrait import so_far
from pipelines.portrait.stages import STAGES
from pipelines.portrait.state import DamagedState, read_state, write_state

Named = Callable[[str], Subject]
NAMES = [stage.__name__ for stage in STAGES]


def after(job: PortraitJob, first: int, last: int) -> PortraitJob:
    for stage in STAGES[first:last]:
        job = stage(job)
    return job


@pytest.fixture
def begun(tools: Tools, subject: Named, ardern: np.ndarray) -> PortraitJob:
    return PortraitJob(ardern, (subject("obama"),), tools, SD15)


@pytest.mark.parametrize("done", range(len(STAGES)))
def test_a_portrait_read_back_after_any_stage_ends_as_the_unbroken_one(
    begun: PortraitJob, tools: Tools, done: int
) -> None:
    unbroken = after(begun, 0, len(STAGES)).picture
    data = write_state(after(begun, 0, done), NAMES[:done])
    job, names = read_state(data, tools, SD15)
    assert list(names) == NAMES[:done]
    assert (after(job, done, len(STAGES)).picture == unbroken).all()


def test_an_array_that_values_share_is_kept_once(begun: PortraitJob) -> None:
    cropped = after(begun, 0, 2)
    (person,) = cropped.people
    assert cropped.picture is cropped.template
    assert person.picture is person.original
    with np.load(io.BytesIO(write_state(cropped, NAMES[:2]))) as archive:
        pictures = [name for name in archive.files if archive[name].ndim == 3]
    assert len(pictures) == 3, "the template, the crop and the photo"


def test_tools_and_parameters_are_those_of_whoever_goes_on(begun: PortraitJob) -> None:
    tools, parameters = Tools(lambda picture: ()), PortraitParameters(sharp_ratio=0.5)
    job, _ = read_state(write_state(begun, ()), tools, parameters)
    assert (job.tools, job.parameters) == (tools, parameters)


@pytest.mark.parametrize("cut", [0, 100, -100])
def test_a_state_that_was_cut_off_is_told_as_damaged(
    begun: PortraitJob, tools: Tools, cut: int
) -> None:
    data = write_state(begun, ())
    with pytest.raises(DamagedState):
        read_state(data[:cut], tools, SD15)


def test_whichever_byte_is_another_no_other_error_comes_of_it(tools: Tools) -> None:
    data = write_state(PortraitJob(np.zeros((2, 2, 3), np.uint8), (), tools, SD15), ())
    damaged = 0
    for place in range(len(data)):
        for bit in (1, 8, 128):
            changed = bytearray(data)
            changed[place] ^= bit
            try:
                read_state(bytes(changed), tools, SD15)
            except DamagedState:
                damaged += 1
    assert damaged > len(data)


def test_a_state_of_a_value_that_is_not_there_any_more_is_told_as_damaged(tools: Tools) -> None:
    tree = b'{"done": [], "job": {"type": "Ghost", "fields": {}}}'
    buffer = io.BytesIO()
    np.savez(buffer, tree=np.frombuffer(tree, np.uint8))
    with pytest.raises(DamagedState):
        read_state(buffer.getvalue(), tools, SD15)


def test_on_the_way_the_whole_picture_is_shown_with_the_crops_in_their_places(
    begun: PortraitJob, ardern: np.ndarray
) -> None:
    fused = after(begun, 0, 3)
    shown = so_far(fused, max(ardern.shape))
    assert shown.shape == ardern.shape
    window = fused.people[0].box.slices
    assert (shown[window] == fused.people[0].picture).all()
    assert (shown[window] != ardern[window]).any()
    assert max(so_far(fused, 64).shape) == 64
    assert (so_far(begun, max(ardern.shape)) == ardern).all()
