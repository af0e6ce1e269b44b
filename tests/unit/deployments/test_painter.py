"""What a portrait's thread asks of a Generator, and what comes of it."""

import asyncio
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError, RayTaskError

from configs.model import ModelSettings
from configs.portrait_model import PortraitModelSettings
from deployments.painter import ByHandle, GeneratorPainter
from deployments.tasks.lora import OrderedLora
from deployments.tasks.portrait import PortraitOrder, PortraitPerson
from pipelines.engine.request import ImageRequest
from pipelines.errors import EngineStopped, InvalidImage, InvalidRequest, RequestCanceled
from pipelines.portrait.job import PortraitJob, Subject, Tools
from pipelines.portrait.parameters import SD15
from pipelines.portrait.portrait import make_portrait, read_subject
from tests.unit.pipelines.portrait.pictures import photo

ADA = OrderedLora(name="ada", key="loras/ada.safetensors", sha256="0" * 64)
HARBOUR = OrderedLora(name="harbour", key="loras/harbour.safetensors", sha256="1" * 64)
PHOTOGRAPHIC = ModelSettings(
    portrait=PortraitModelSettings(photographic=True, side_px=128, guidance_scale=7)
)
COLLINS = photo("collins")


class Drawing:
    """A `Draw` that keeps what it is asked, and gives back a picture as it began or a photo."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ImageRequest, Sequence[OrderedLora]]] = []
        self.held: asyncio.Event | None = None
        self.canceled = False

    async def __call__(
        self, model: str, request: ImageRequest, loras: Sequence[OrderedLora]
    ) -> np.ndarray:
        self.asked.append((model, request, loras))
        if self.held is not None:
            try:
                await self.held.wait()
            except asyncio.CancelledError:
                self.canceled = True
                raise
        return COLLINS if request.init_image is None else request.init_image


@pytest.fixture(scope="module")
def subject(reader: Any) -> Subject:
    return read_subject([photo("obama")], reader, "ada")


@pytest.fixture(scope="module")
def reader() -> Any:
    from pipelines.portrait.faces import FaceReader

    return FaceReader()


def order(**fields: Any) -> PortraitOrder:
    person = PortraitPerson(references=("a",), lora=ADA, trigger="zorblax", name="ada")
    return PortraitOrder(model="sd", people=(person,), seed=7, **fields)


async def test_each_repaint_is_a_request_that_wears_the_persons_lora(
    reader: Any, subject: Subject
) -> None:
    drawing = Drawing()
    painter = GeneratorPainter(order(template="t"), PHOTOGRAPHIC, reader.detect, drawing)
    job = PortraitJob(COLLINS, (subject,), Tools(reader.detect), SD15)
    adapted, notes = await asyncio.to_thread(painter.adapted, job)
    assert any("ControlNet" in note for note in notes)
    made = await asyncio.to_thread(make_portrait, COLLINS, [subject], adapted.tools)
    assert made.picture.shape == COLLINS.shape
    assert len(drawing.asked) == 2
    for model, request, loras in drawing.asked:
        assert (model, list(loras)) == ("sd", [ADA])
        assert [str(use.path) for use in request.loras] == [ADA.key]
        assert "zorblax person" in request.prompt
    first, second = (request.seed for _, request, _ in drawing.asked)
    assert first != second


async def test_a_template_wears_its_scene(reader: Any, subject: Subject) -> None:
    drawing = Drawing()
    asked = order(prompt="at the harbour", scene=HARBOUR)
    painter = GeneratorPainter(asked, PHOTOGRAPHIC, reader.detect, drawing)
    template = await asyncio.to_thread(painter.template, [subject], SD15)
    assert (template == COLLINS).all()
    ((_, request, loras),) = drawing.asked
    assert list(loras) == [ADA, HARBOUR]
    assert {str(use.path) for use in request.loras} == {ADA.key, HARBOUR.key}
    assert request.prompt.startswith("at the harbour")


async def test_what_is_drawn_for_a_canceled_portrait_is_canceled(
    reader: Any, subject: Subject
) -> None:
    drawing = Drawing()
    drawing.held = asyncio.Event()
    asked = order(prompt="at the harbour")
    painter = GeneratorPainter(asked, PHOTOGRAPHIC, reader.detect, drawing)
    thread = asyncio.create_task(asyncio.to_thread(painter.template, [subject], SD15))
    while not drawing.asked:
        await asyncio.sleep(0.01)
    painter.close()
    (error,) = await asyncio.gather(thread, return_exceptions=True)
    assert isinstance(error, BaseException)
    assert drawing.canceled
    with pytest.raises(RequestCanceled):
        await asyncio.to_thread(painter.template, [subject], SD15)


class Handle:
    """Answers its calls one after another."""

    def __init__(self, *answers: Any) -> None:
        self.draw = self.enlarge = self
        self.answers = list(answers)

    async def remote(self, request: Any, loras: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def told(cause: Exception) -> Exception:
    """As a handle raises what its deployment raised."""
    return RayTaskError("draw", "a long traceback", cause).as_instanceof_cause()


async def test_a_generator_that_stops_or_dies_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.painter._RETRY_S", 0.0)
    handle = Handle(told(EngineStopped("it stops")), RayActorError(), "a picture")
    draw = ByHandle({"sd": handle}).draw
    assert await draw("sd", None, ()) == "a picture"  # type: ignore[arg-type, comparison-overlap]
    for_ever = Handle(*[RayActorError()] * 9)
    with pytest.raises(EngineStopped, match="the Generator of sd died"):
        await ByHandle({"sd": for_ever}).draw("sd", None, ())  # type: ignore[arg-type]
    assert len(for_ever.answers) == 6


async def test_a_network_enlarges_where_the_generator_is() -> None:
    handle = Handle("larger")
    asked = ByHandle({"sd": handle}).enlarge("sd", "R-ESRGAN 4x+", COLLINS)
    assert await asked == "larger"  # type: ignore[comparison-overlap]


async def test_a_refusal_comes_without_the_generators_traceback() -> None:
    handle = Handle(told(InvalidRequest("lora", "the LoRA ada was deleted")))
    with pytest.raises(InvalidRequest) as raised:
        await ByHandle({"sd": handle}).draw("sd", None, ())  # type: ignore[arg-type]
    assert (raised.value.field, str(raised.value)) == ("lora", "the LoRA ada was deleted")


def test_refusals_can_be_sent_between_processes() -> None:
    for kind in (InvalidRequest, InvalidImage):
        sent = pickle.loads(pickle.dumps(kind("lora", "the LoRA ada was deleted")))
        assert (type(sent), sent.field, str(sent)) == (kind, "lora", "the LoRA ada was deleted")
