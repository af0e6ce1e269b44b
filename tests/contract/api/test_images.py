"""A picture by its id, and a task that is drawn once more."""

import numpy as np
import pytest

from deployments.tasks.image import ImageJob
from deployments.tasks.model import Output
from pipelines.images import encode_image

IMAGES = "/api/v1/images"


async def drawn(api, **fields):
    """The id of a completed task whose files tell of themselves, as a Generator's do."""
    task_id, outputs = await api.submit(**fields), []
    claimed = await api.claim()
    job = ImageJob.from_input(claimed.task.input, default_size=64)
    for index in range(job.num_images):
        grey = np.full((64, 64, 3), 128, np.uint8)
        data, kind = encode_image(grey, "png", job.parameters(index), text=job.infotext(index))
        key, seed = f"results/{task_id}/1/{index}.png", job.seed + index
        await api.services.objects.put(key, data, kind)
        outputs.append(Output(key=key, content_type=kind, width=64, height=64, seed=seed))
    assert await api.services.store.succeed(claimed.claim, outputs)
    return task_id


async def retried(api, task_id):
    return await api.http.post(f"/api/v1/tasks/{task_id}/retry")


async def test_a_picture_tells_what_it_was_drawn_from(api):
    task_id = await drawn(api, seed=7, num_images=2, num_inference_steps=9, negative_prompt="blur")
    answer = await api.http.get(f"{IMAGES}/{task_id}.1")
    image = answer.json()
    assert (answer.status_code, image["id"], image["index"]) == (200, f"{task_id}.1", 1)
    assert (image["seed"], image["width"], image["model"]) == (8, 64, "embedded")
    assert (image["prompt"], image["negative_prompt"]) == ("a fox", "blur")
    assert image["original_prompt"] is None
    task = await api.task(task_id)
    assert image["url"] == task["result_urls"][1]
    assert (await api.http.get(image["url"])).headers["content-type"] == "image/png"
    assert "Steps: 9" in image["infotext"]
    assert "Seed: 8" in image["infotext"]
    assert task["created_at"] == image["created_at"] < image["started_at"] < image["finished_at"]


async def test_its_parameters_draw_it_again(api):
    task_id = await drawn(api, seed=7, num_images=2, scheduler="DDIMScheduler", clip_skip=1)
    parameters = (await api.http.get(f"{IMAGES}/{task_id}.1")).json()["parameters"]
    again = await drawn(api, **parameters)
    assert (await api.http.get(f"{IMAGES}/{again}.0")).json()["parameters"] == parameters


async def test_what_is_no_picture_of_ones_own_is_not_there(open_api):
    ann = await open_api(api={"keys": ["a", "b"]}, headers={"X-API-Key": "a"})
    task_id = await drawn(ann)
    waiting = await ann.submit()
    for image in (f"{task_id}.1", f"{waiting}.0", task_id, f"{task_id}.-1", "x", f"{task_id}.٠"):
        answer = await ann.http.get(f"{IMAGES}/{image}")
        told = answer.status_code, answer.headers["x-error-code"]
        assert told == (404, "image_not_found"), image
    other = await ann.http.get(f"{IMAGES}/{task_id}.0", headers={"X-API-Key": "b"})
    assert other.status_code == 404
    await ann.http.delete(f"/api/tasks/{task_id}")
    assert (await ann.http.get(f"{IMAGES}/{task_id}.0")).status_code == 404


async def test_a_failed_task_is_drawn_once_more_with_its_seed(api, data_url, png):
    first = await api.submit(seed=7, priority=3, init_image=data_url(png()))
    await api.fail(await api.claim(), "no luck")
    answer = await retried(api, first)
    assert answer.status_code == 200
    second = answer.json()["task_id"]
    assert second != first
    assert (await retried(api, first)).json()["task_id"] == second
    tasks = [await api.services.store.get(task_id) for task_id in (first, second)]
    assert tasks[0].input == tasks[1].input
    assert (tasks[1].status, tasks[1].priority) == ("queued", 3)
    await api.fail(await api.claim(), "no luck again")
    assert (await retried(api, second)).json()["task_id"] not in (first, second)


async def test_a_canceled_task_can_be_retried_and_others_cannot(api):
    canceled = await api.submit()
    for status in ("waiting", "canceled"):
        answer = await retried(api, canceled)
        if status == "waiting":
            assert (answer.status_code, answer.headers["x-error-code"]) == (409, "not_retryable")
            await api.http.delete(f"/api/v1/tasks/{canceled}")
    assert answer.status_code == 200
    await api.http.delete(f"/api/v1/tasks/{answer.json()['task_id']}")
    assert (await retried(api, await drawn(api))).headers["x-error-code"] == "not_retryable"
    assert (await retried(api, "x")).status_code == 404


GUIDES = {
    "controlnet": [{"name": "edges", "preprocessor": "canny"}],
    "ip_adapter": [{"name": "style"}, {"name": "style"}],
}


async def test_a_retry_renews_the_pictures_that_guide(open_api, data_url, png):
    adapters = {"style": {"source": "b/c", "image_encoder": "b/e"}}
    models = {"sd": {"controlnets": {"edges": "a/b"}, "ip_adapters": adapters}}
    api, fields = await open_api(models=models), {}
    for field, entries in GUIDES.items():
        fields[field] = [entry | {"image": data_url(png())} for entry in entries]
    fields["ip_adapter"][1]["image"] = data_url(png(size=(80, 64)))
    task_id = await api.submit(**fields)
    await api.http.delete(f"/api/v1/tasks/{task_id}")
    keys = (await api.services.store.get(task_id)).input["image_prompts"]
    await api.services.objects.delete(keys[1]["image_key"])
    answer = await retried(api, task_id)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "ip_adapter.1.image"]
    await api.services.objects.put(keys[1]["image_key"], b"back", "image/png")
    assert (await retried(api, task_id)).status_code == 200


@pytest.mark.parametrize("gone", ["lora", "picture"])
async def test_a_retry_whose_lora_or_picture_is_gone_is_refused(api, gone, data_url, png):
    await api.lora("ink")
    task_id = await api.submit(lora=[{"name": "ink"}], init_image=data_url(png()))
    await api.http.delete(f"/api/v1/tasks/{task_id}")
    (lora,) = (await api.http.get("/api/v1/loras")).json()["loras"]
    if gone == "lora":
        await api.http.delete(f"/api/v1/loras/{lora['id']}")
    else:
        await api.services.objects.sweep("inputs/", 0)
    answer = await retried(api, task_id)
    assert answer.status_code == 422
    field = "lora" if gone == "lora" else "init_image"
    assert answer.json()["detail"][0]["loc"] == ["body", field]


async def test_a_retry_holds_its_loras(api):
    await api.lora("ink")
    task_id = await api.submit(lora=[{"name": "ink"}])
    await api.http.delete(f"/api/v1/tasks/{task_id}")
    second = (await retried(api, task_id)).json()["task_id"]
    holds = [task for task, _ in await api.services.loras.registry.store.holds()]
    assert second in holds
    assert (await retried(api, task_id)).json()["task_id"] == second
    later = [task for task, _ in await api.services.loras.registry.store.holds()]
    assert sorted(later) == sorted(holds)
