"""Portraits from photos to a LoRA that keeps photos of its person."""

import numpy as np

from configs.settings import Settings
from deployments.api.training import TrainingService
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.storage.store import ObjectStore
from deployments.tasks.model import Status
from deployments.tasks.store import TaskStore
from deployments.tasks.training import Curve
from pipelines.images import decode_image
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.portrait import read_subject
from tests.contract.trainer.conftest import Start, Train
from tests.support.tasks import ended
from tests.unit.pipelines.portrait.pictures import photo, photo_file
from tests.unit.training.lora.conftest import png
from training.lora.source import Example

PHOTOS = [
    Example("front.jpg", photo_file("obama")),
    Example("other.jpg", photo_file("collins")),
    Example("mirror.png", png(np.ascontiguousarray(photo("obama")[:, ::-1]))),
    Example("notes.png", b"not a picture"),
]


async def test_a_portrait_ends_as_a_lora_with_photos_of_its_person(
    start: Start, train: Train, store: TaskStore, loras: LoraStore, objects: ObjectStore,
    settings: Settings,
) -> None:  # fmt: skip
    start()
    task = await train(kind="portrait", examples=PHOTOS, validation_pictures=1, validation_every=3)
    done = await ended(store, task)
    assert done.status is Status.SUCCEEDED, done.error
    lora = await loras.get(done.lora_id or "", owner="ann")
    files = [await objects.get(key) for key in lora.newest.references]
    assert len(files) == 2
    pictures = [np.asarray(decode_image(file, max_pixels=10**7)) for file in files]
    assert len(read_subject(pictures, FaceReader()).references) == 2

    best, *previews, last = done.outputs
    assert [output.content_type for output in previews] == ["image/png"] * 4
    assert last.key.endswith("/last.safetensors")
    assert await objects.get(best.key) == await objects.get(lora.newest.key)
    curve = Curve.model_validate_json(await objects.get(lora.newest.curve_key or ""))
    assert curve.points[-1].likeness is None, "the tiny model draws no faces"
    assert curve.points[-1].validation_loss is not None

    service = TrainingService(settings, store, objects, LoraRegistry(loras, objects))
    judged = await service.photos(done)
    assert [(each.name, each.code, each.frontal, each.used) for each in judged] == [
        ("front.jpg", 1, True, True), ("other.jpg", 6, True, False),
        ("mirror.png", 1, True, True), ("notes.png", 2, False, False),
    ]  # fmt: skip
    assert judged[1].message == "This photo is not the same person in photos."


async def test_a_portrait_of_unfit_photos_fails_at_once_with_the_verdict_on_each(
    start: Start, train: Train, store: TaskStore, loras: LoraStore, objects: ObjectStore,
    settings: Settings,
) -> None:  # fmt: skip
    start()
    done = await ended(store, await train(kind="portrait", examples=PHOTOS[:2] + PHOTOS[3:]))
    assert (done.status, done.attempt) == (Status.FAILED, 1)
    assert done.error is not None
    assert done.error.message.splitlines() == [
        "pictures: photo check: 1 of 3 photos can be trained on, at least 2 must be:",
        "other.jpg: This photo is not the same person in photos.",
        "notes.png: Image decode error.",
        "front.jpg: success",
    ]
    service = TrainingService(settings, store, objects, LoraRegistry(loras, objects))
    assert [each.code for each in await service.photos(done)] == [1, 6, 2]
