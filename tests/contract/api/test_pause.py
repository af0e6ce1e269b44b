"""Pausing and resuming a training over HTTP, and its loss so far."""

import io
import uuid

import pytest
from PIL import Image

from deployments.tasks.exchange import Beat
from deployments.tasks.model import Progress
from deployments.tasks.training import LORA_QUEUE, Curve, CurvePoint, curve_key, pictures_key

TASKS = "/api/v1/tasks"


@pytest.fixture
def train(api, png):
    """await train(): the id of a queued training."""

    async def submit():
        answer = await api.http.post(
            "/api/v1/loras", files={"pictures": ("a.png", png())}, data={"name": "ink"}
        )
        assert answer.status_code == 202, answer.text
        return answer.json()["task_id"]

    return submit


async def claimed(api):
    found = await api.services.store.claim(LORA_QUEUE, "w", limit=1, request_id=uuid.uuid4().hex)
    return found[0]


async def test_a_training_is_paused_and_resumed_and_both_may_be_said_of_lists(api, train):
    task_id = await train()
    job = await claimed(api)
    told = Progress(step=3, steps=9, loss=0.25, lr=1e-4, samples_per_s=2.0, eta_s=12.5)
    await api.services.store.renew([Beat(job.claim, told)])
    paused = (await api.http.post(f"{TASKS}/{task_id}/pause")).json()
    assert (paused["status"], paused["progress"]) == ("paused", {"step": 3, "steps": 9})
    assert (paused["training"]["loss"], paused["training"]["eta_s"]) == (0.25, None)
    listed = (await api.http.get(TASKS, params={"status": "paused"})).json()["tasks"]
    assert [each["task_id"] for each in listed] == [task_id]
    assert await api.services.objects.exists(pictures_key(task_id))
    resumed = (await api.http.post(f"{TASKS}/{task_id}/resume")).json()
    assert (resumed["status"], resumed["position"]["ahead"]) == ("pending", 0)
    assert await api.services.objects.exists(pictures_key(task_id))


async def test_what_cannot_be_paused_or_resumed_is_answered_with_the_reason(api, train):
    picture, task_id = await api.submit(), await train()
    for path, status, code, detail in (
        (f"{picture}/pause", 409, "not_pausable", "a task of kind image"),
        (f"{task_id}/resume", 409, "not_paused", "The task is queued, not paused."),
        (f"{uuid.uuid4()}/pause", 404, "task_not_found", ""),
        ("nonsense/resume", 404, "task_not_found", ""),
    ):
        answer = await api.http.post(f"{TASKS}/{path}")
        assert (answer.status_code, answer.headers["x-error-code"]) == (status, code)
        assert detail in answer.json()["detail"]
    await api.http.delete(f"{TASKS}/{task_id}")
    answer = await api.http.post(f"{TASKS}/{task_id}/pause")
    assert (answer.status_code, answer.headers["x-error-code"]) == (409, "already_ended")


async def test_a_paused_training_may_be_canceled_and_leaves_nothing(api, train):
    task_id = await train()
    await api.http.post(f"{TASKS}/{task_id}/pause")
    assert (await api.http.delete(f"{TASKS}/{task_id}")).json()["status"] == "canceled"
    assert not await api.services.objects.exists(pictures_key(task_id))


async def test_the_loss_so_far_is_that_of_the_newest_attempt_and_the_newest_step(api, train):
    task_id = await train()
    url = f"{TASKS}/{task_id}/curve"
    assert (await api.http.get(url)).headers["x-error-code"] == "no_curve"
    job = await claimed(api)
    told = Progress(step=7, steps=9, loss=0.25, lr=1e-4)
    await api.services.store.renew([Beat(job.claim, told)])
    newest = {"step": 7, "loss": 0.25, "lr": 1e-4, "validation_loss": None, "likeness": None}
    assert (await api.http.get(url)).json() == {"steps": 9, "points": [newest]}
    for fence, steps in ((1, (1, 2, 3)), (2, ())):
        points = tuple(CurvePoint(step=i, loss=1 / i, lr=1e-4) for i in steps)
        kept = Curve(steps=9, points=points).model_dump_json().encode()
        if points:
            await api.services.objects.put(curve_key(task_id, fence), kept, "application/json")
    shown = (await api.http.get(url)).json()
    assert [point["step"] for point in shown["points"]] == [1, 2, 3, 7]
    picture = await api.http.get(f"{url}.png")
    assert Image.open(io.BytesIO(picture.content)).size == (800, 450)
    await api.http.post(f"{TASKS}/{task_id}/pause")
    assert (await api.http.get(url)).json() == shown


async def test_a_picture_has_no_curve(api):
    answer = await api.http.get(f"{TASKS}/{await api.submit()}/curve")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "no_curve")
    assert "it is no training" in answer.json()["detail"]
