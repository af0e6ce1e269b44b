"""The face models as a deployment: what a batch answers, and what its callers make of it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from configs.settings import Settings
from deployments.api.faces import FacesUnavailable, LocalFaces
from deployments.faces import Faces, FacesByHandle
from pipelines.errors import InvalidImage
from tests.unit.pipelines.portrait.pictures import photo_file

OBAMA, COLLINS = photo_file("obama"), photo_file("collins")


class Verb:
    """Of a deployment's handle: one photo a call."""

    def __init__(
        self, call: Callable[[list[bytes]], Awaitable[list[Any]]], error: Exception | None
    ) -> None:
        self._call, self._error = call, error

    async def remote(self, data: bytes) -> Any:
        if self._error is not None:
            raise self._error
        return (await self._call([data]))[0]


class Handle:
    def __init__(self, faces: Faces, error: Exception | None = None) -> None:
        self.check, self.detect = Verb(faces.check, error), Verb(faces.detect, error)


@pytest.fixture(scope="module")
def faces() -> Faces:
    return Faces(Settings())


async def test_a_batch_has_a_verdict_on_each_photo_by_itself(faces: Faces) -> None:
    found = await faces.check([OBAMA, b"no picture", COLLINS])
    assert [check.verdict.code for check in found] == [1, 2, 1]
    assert [len(each) for each in await faces.detect([OBAMA, COLLINS])] == [1, 1]


async def test_by_handle_and_in_this_process_the_verdicts_are_the_same(faces: Faces) -> None:
    photos = [OBAMA, COLLINS, OBAMA, b"no picture"]
    by_handle = FacesByHandle(Handle(faces))
    found = [await by_handle.check(photos), await LocalFaces(10**6).check(photos)]
    for checks in found:
        assert [check.verdict.code for check in checks] == [1, 6, 1, 2]
    (one,), (other,) = await by_handle.detect(OBAMA), await LocalFaces(10**6).detect(OBAMA)
    assert one.box == other.box


async def test_what_is_no_picture_is_said_by_both(faces: Faces) -> None:
    for service in (FacesByHandle(Handle(faces)), LocalFaces(10**6)):
        with pytest.raises(InvalidImage, match="template is not a picture"):
            await service.detect(b"no picture")


async def test_face_models_that_died_are_told_as_worth_another_try(faces: Faces) -> None:
    service = FacesByHandle(Handle(faces, RayActorError()))
    with pytest.raises(FacesUnavailable):
        await service.check([OBAMA])
    with pytest.raises(FacesUnavailable):
        await service.detect(OBAMA)
