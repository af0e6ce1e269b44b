"""Portraits that cannot be made: told by stage, tried again where that may help."""

import pytest

from deployments import portrait_run
from deployments.tasks.model import Status
from deployments.tasks.store import TaskStore
from pipelines.errors import NonFiniteOutput
from pipelines.portrait.job import PortraitJob
from pipelines.portrait.stages import STAGES
from tests.contract.portraits.conftest import Start, Submit
from tests.support.tasks import ended


async def test_a_portrait_that_cannot_be_made_fails_once_and_names_the_stage(
    start: Start, order: Submit, store: TaskStore
) -> None:
    start()
    done = await ended(store, await order(("obama", "collins")))
    assert done.status is Status.FAILED
    assert done.error
    assert done.error.code == "face_count"
    assert done.error.message.startswith("locate faces: the template must have as many faces")
    assert done.attempt == 1, "another attempt would find the same"


async def test_a_photo_that_is_no_picture_any_more_is_named(
    start: Start, order: Submit, store: TaskStore
) -> None:
    start()
    done = await ended(store, await order(("",)))
    assert done.error
    assert (done.error.code, done.attempt) == ("invalid_request", 1)
    assert "people.0.photos" in done.error.message


async def test_after_an_error_a_portrait_begins_anew(
    start: Start, order: Submit, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What led to the error may be in the state."""
    seen: list[str] = []

    def failing(job: PortraitJob) -> PortraitJob:
        seen.append("failing")
        if seen.count("failing") == 1:
            raise RuntimeError("of no kind that is known")
        return job

    def first(job: PortraitJob) -> PortraitJob:
        seen.append("first")
        return STAGES[0](job)

    monkeypatch.setattr(portrait_run, "STAGES", (first, STAGES[1], failing, *STAGES[3:]))
    monkeypatch.setattr(portrait_run, "SAVE_AFTER_S", 0.0)
    start()
    done = await ended(store, await order())
    assert (done.status, done.errors) == (Status.SUCCEEDED, 1)
    assert seen == ["first", "failing", "first", "failing"]


async def test_a_portrait_that_never_ends_well_tells_at_which_stage(
    start: Start, order: Submit, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse_before(job: PortraitJob) -> PortraitJob:
        raise RuntimeError("of no kind that is known")

    monkeypatch.setattr(portrait_run, "STAGES", (*STAGES[:2], fuse_before))
    start()
    done = await ended(store, await order())
    assert done.error
    assert done.error.code == "first_fusion"
    assert done.error.message == "the portrait ended unexpectedly at: fuse before"


async def test_a_repaint_that_never_draws_numbers_fails_once_by_its_stage(
    start: Start, order: Submit, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repaint_second(job: PortraitJob) -> PortraitJob:
        raise NonFiniteOutput("the model produced NaN")

    monkeypatch.setattr(portrait_run, "STAGES", (*STAGES[:2], repaint_second))
    start()
    done = await ended(store, await order())
    assert done.error
    assert (done.error.code, done.attempt) == ("second_repaint", 1)
    assert done.error.message == "repaint second: the model produced NaN"


async def test_a_template_that_nothing_here_draws_is_asked_for(
    start: Start, order: Submit, store: TaskStore
) -> None:
    start()
    done = await ended(store, await order(template=None, prompt="a woman at sea"))
    assert done.error
    assert done.error.message == "template: template must be given: no model draws one here"
