"""The gallery's tasks and images: the same as the native API's, in other words; and its sockets."""

import asyncio
import json
import uuid

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deployments.api.gallery import events as gallery_events
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Progress
from deployments.tasks.training import LORA_QUEUE, pictures_key

TASKS, MODELS, IMAGES = "/api/tasks", "/api/models", "/api/images"
KEYS = {"keys": ["ann", "bob"]}
ANN, BOB = {"X-API-Key": "ann"}, {"X-API-Key": "bob"}


async def drawn(api, **fields):
    """The id of a picture."""
    task_id = await api.submit(**fields)
    await api.finish(await api.claim())
    return f"{task_id}.0"


async def planned(api, name="ink"):
    body = {"name": name, "data": {"images": [await drawn(api)]}, "trigger_words": "zorblax"}
    answer = await api.http.post(MODELS, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


async def claimed(api):
    found = await api.services.store.claim(LORA_QUEUE, "w", limit=1, request_id=uuid.uuid4().hex)
    return found[0]


async def shown(api, path, **params):
    answer = await api.http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_model_is_a_task_from_its_plan_to_its_end(api):
    model_id = await planned(api)
    task = await shown(api, f"{TASKS}/{model_id}")
    assert (task["type"], task["status"], task["progress"]) == ("train", "initial", 0)
    assert task["data"] == {"id": model_id, "source": "embedded", "total": 1}
    answer = await api.http.patch(f"{TASKS}/{model_id}", json={"status": "ready"})
    assert (answer.json()["status"], answer.json()["name"]) == ("waiting", "ink")
    answer = await api.http.patch(f"{TASKS}/{model_id}", json={"name": "pen"})
    assert (answer.status_code, answer.headers["x-error-code"]) == (409, "locked")
    job = await claimed(api)
    await api.services.store.renew([Beat(job.claim, Progress(step=1, steps=2, loss=0.5))])
    task = await shown(api, f"{TASKS}/{model_id}")
    assert (task["status"], task["progress"], task["data"]["loss"]) == ("running", 50, 0.5)


async def test_deleting_a_running_task_cancels_it_and_an_ended_one_is_gone_with_its_pictures(api):
    model_id = await planned(api)
    await api.http.patch(f"{MODELS}/{model_id}", json={"status": "ready"})
    await claimed(api)
    url = f"{TASKS}/{model_id}"
    canceled = (await api.http.delete(url)).json()
    assert (canceled["status"], canceled["data"]["error"]) == ("error", "It was canceled.")
    assert not await api.services.objects.exists(pictures_key(model_id))
    assert (await shown(api, f"{MODELS}/{model_id}"))["status"] == "error"
    assert (await api.http.delete(url)).status_code == 200
    assert (await api.http.get(url)).status_code == 404
    image = await drawn(api)
    task_id = image.partition(".")[0]
    key = (await api.services.store.get(task_id)).outputs[0].key
    assert (await api.http.delete(f"{TASKS}/{task_id}")).json()["status"] == "success"
    assert not await api.services.objects.exists(key)
    assert (await api.http.get(f"{IMAGES}/{image}")).headers["x-error-code"] == "image_not_found"


async def test_deleting_a_task_that_is_not_queued_deletes_its_model(api):
    model_id = await planned(api)
    assert (await api.http.delete(f"{TASKS}/{model_id}")).json()["status"] == "initial"
    assert (await api.http.get(f"{MODELS}/{model_id}")).status_code == 404


async def test_a_task_that_draws_can_be_told_no_status(api):
    task_id = await api.submit()
    answer = await api.http.patch(f"{TASKS}/{task_id}", json={"status": "ready"})
    assert (answer.status_code, answer.headers["x-error-code"]) == (409, "locked")
    assert "it trains nothing" in answer.json()["detail"]


async def test_tasks_are_listed_paged_and_filtered(api):
    model_id = await planned(api)
    await api.http.patch(f"{MODELS}/{model_id}", json={"status": "ready"})
    plan, waiting = await planned(api, "pen"), await api.submit()
    found = await shown(api, TASKS)
    ids = [each["id"] for each in found["list"]]
    assert [ids[0], ids[1]] == [plan, waiting]
    assert [each["status"] for each in found["list"]] == [
        "initial", "waiting", "success", "waiting", "success"
    ]  # fmt: skip
    second = await shown(api, TASKS, page=2, pageSize=2)
    assert ([each["id"] for each in second["list"]], second["next"]) == (ids[2:4], True)
    tagged = await shown(api, TASKS, tag="zorblax")
    assert [each["id"] for each in tagged["list"]] == [plan, model_id]
    assert (await shown(api, TASKS, user="nobody"))["list"] == []
    assert (await api.http.get(TASKS, params={"status": "running"})).status_code == 422


async def test_a_picture_is_drawn_with_a_model_by_its_id(api):
    lora = await api.lora("ink")
    image = await drawn(api)
    data = {
        "id": lora["id"], "prompt": "a fox", "scheduler": "K_EULER", "seed": 7,
        "num_inference_steps": 3, "guidance_scale": 2, "from_image": image,
    }  # fmt: skip
    answer = await api.http.post(TASKS, json={"type": "Inference", "data": data})
    assert answer.status_code == 200, answer.text
    task = answer.json()
    assert (task["type"], task["status"], task["name"]) == ("Inference", "waiting", "a fox")
    claim = await api.claim()
    order = claim.task.input
    assert (order["scheduler"], order["seed"]) == ("EulerDiscreteScheduler", 7)
    assert [each["id"] for each in order["loras"]] == [lora["id"]]
    assert order["init_image_key"]
    await api.finish(claim)
    done = await shown(api, f"{TASKS}/{task['id']}")
    (url,) = done["data"]["images"]
    assert (await api.http.get(url)).headers["content-type"] == "image/png"


async def test_what_cannot_be_drawn_is_refused_and_its_field_named(api):
    model_id = await planned(api)
    for data, status, expected in (
        ({"id": model_id, "prompt": "x"}, 422, "is not trained"),
        ({"id": "nonsense", "prompt": "x"}, 404, "There is no model nonsense"),
        ({}, 422, "field required"),
        ({"prompt": "x", "scheduler": "EULER"}, 422, "given 'EULER'"),
        ({"prompt": "x", "num_inference_steps": 500}, 422, "given 500"),
        ({"prompt": "x", "from_image": f"{uuid.UUID(int=0)}.0"}, 404, "There is no image"),
        (
            {"prompt": "x", "from_image": "http://example.com/a.png"},
            422,
            '"from_image"],"msg":"from_image',
        ),
    ):
        answer = await api.http.post(TASKS, json={"type": "Inference", "data": data})
        assert answer.status_code == status, answer.text
        assert expected in answer.text


async def test_images_tell_what_they_were_drawn_from(api):
    await drawn(api, prompt="a hen", num_images=2, seed=5, scheduler="DDIMScheduler")
    newest = await drawn(api, prompt="a fox")
    found = (await shown(api, IMAGES))["list"]
    assert [each["prompt"] for each in found] == ["a fox", "a hen", "a hen"]
    assert found[0]["id"] == newest
    assert [each["seed"] for each in found[1:]] == [5, 6]
    assert (found[1]["scheduler"], found[1]["width"]) == ("DDIM", 64)
    assert (await api.http.get(found[0]["image"])).status_code == 200
    assert await shown(api, f"{IMAGES}/{newest}") == found[0]
    page = await shown(api, IMAGES, page=2, pageSize=2)
    assert ([each["seed"] for each in page["list"]], page["next"]) == ([6], False)
    for wrong in ("nonsense", newest[:-1] + "7"):
        answer = await api.http.get(f"{IMAGES}/{wrong}")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "image_not_found")


# Sockets


async def all_have_left(api):
    async with asyncio.timeout(120):
        while api.services.streams:
            await asyncio.sleep(0.01)


async def texts(websocket):
    found = []
    try:
        while True:
            found.append(json.loads(await asyncio.wait_for(websocket.recv(), 120)))
    except ConnectionClosed:
        return found, websocket.close_code


async def test_a_task_s_socket_tells_each_change_and_at_the_end_the_result(api, listen):
    host, task_id = await listen(api), await api.submit()
    async with connect(f"ws://{host}{TASKS}/{task_id}") as websocket:
        assert json.loads(await websocket.recv()) == {
            "id": task_id, "status": "waiting", "progress": 0, "data": {}
        }  # fmt: skip
        await websocket.recv()
        job = await api.claim()
        await api.services.store.renew([Beat(job.claim, Progress(step=1, steps=2))])
        await api.services.store.preview(job.claim, b"jpeg")
        told = [json.loads(await websocket.recv()) for _ in range(3)]
        await api.finish(job)
        last, code = await texts(websocket)
    assert [(each["status"], each["progress"]) for each in told] == [
        ("running", 0), ("running", 50), ("running", 50)
    ]  # fmt: skip
    assert told[2]["data"]["image"].startswith("data:image/jpeg;base64,")
    (end,) = last
    assert (end["status"], end["progress"], code) == ("success", 100, 1000)
    assert end["data"]["images"][0].startswith("http://127.0.0.1")
    await all_have_left(api)


async def test_a_model_s_socket_follows_it_from_its_plan_on(api, listen, monkeypatch):
    monkeypatch.setattr(gallery_events, "LOOK_EVERY_S", 0.02)
    host, model_id = await listen(api), await planned(api)
    async with connect(f"ws://{host}{MODELS}/{model_id}") as websocket:
        assert json.loads(await websocket.recv())["status"] == "initial"
        await api.http.patch(f"{MODELS}/{model_id}", json={"status": "ready"})
        seen = set()
        while "waiting" not in seen:
            seen.add(json.loads(await websocket.recv())["status"])
        assert seen <= {"ready", "waiting"}
        await api.http.delete(f"{TASKS}/{model_id}")
        told, code = await texts(websocket)
    assert (told[-1]["status"], told[-1]["data"]["error"], code) == (
        "error", "It was canceled.", 1000
    )  # fmt: skip
    lora = await api.lora("pen")
    async with connect(f"ws://{host}{MODELS}/{lora['id']}") as websocket:
        told, code = await texts(websocket)
    assert [each["status"] for each in told] == ["success"]


async def test_a_model_that_is_deleted_while_it_is_watched_ends_its_socket(
    api, listen, monkeypatch
):
    monkeypatch.setattr(gallery_events, "LOOK_EVERY_S", 0.02)
    host, model_id = await listen(api), await planned(api)
    async with connect(f"ws://{host}{MODELS}/{model_id}") as websocket:
        await websocket.recv()
        await api.http.delete(f"{MODELS}/{model_id}")
        assert (await texts(websocket))[1] == 1013
    await all_have_left(api)


async def test_a_socket_asks_for_the_key_and_shows_no_other_owners_task(open_api, listen):
    api = await open_api(api=KEYS, headers=ANN)
    host, task_id = await listen(api), await api.submit()
    url = f"ws://{host}{TASKS}/{task_id}"
    async with connect(url, additional_headers={"token": "ann"}) as websocket:
        assert json.loads(await websocket.recv())["id"] == task_id
    for headers, status in (({}, 401), (BOB, 404)):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url, additional_headers=headers):
                pass
        assert refused.value.response.status_code == status
