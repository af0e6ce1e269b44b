"""POST /api/v1/generate and the task that comes of it."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from deployments.api.native.schema import GenerateBody
from deployments.api.submission import Submission
from deployments.tasks.image import ImageFields
from deployments.tasks.model import Status


async def test_the_documents_first_example_becomes_one_picture(api):
    answer = await api.http.post(
        "/api/v1/generate",
        json={
            "prompt": "a beautiful landscape with mountains and lakes, sunset",
            "width": 512,
            "height": 512,
            "num_images": 1,
            "guidance_scale": 7.5,
            "num_inference_steps": 30,
            "output_format": "png",
        },
    )
    created = answer.json()
    assert set(created) == {"task_id", "status", "message"}
    assert created["status"] == "pending"
    assert created["message"] == "任务已创建，正在处理中"

    claimed = await api.claim()
    assert (await api.task(created["task_id"]))["status"] == "processing"
    await api.finish(claimed)

    task = await api.task(created["task_id"])
    assert task["status"] == "completed"
    assert task["result_urls"] is None
    assert task["error_message"] is None
    assert task["result_url"].startswith("http://localhost:8000/files/")
    file = await api.http.get(task["result_url"])
    assert file.status_code == 200
    assert file.headers["content-type"] == "image/png"


async def test_several_pictures_have_result_urls_and_no_result_url(api):
    task_id = await api.submit(num_images=3)
    await api.finish(await api.claim())
    task = await api.task(task_id)
    assert task["result_url"] is None
    assert len(set(task["result_urls"])) == 3


async def test_a_failed_task_says_why(api):
    task_id = await api.submit()
    await api.fail(await api.claim(), "生成过程中发生错误")
    task = await api.task(task_id)
    assert task["status"] == "failed"
    assert task["error_message"] == "生成过程中发生错误"
    assert task["result_url"] is task["result_urls"] is None


async def test_times_are_iso_in_utc_with_an_offset(api):
    task = await api.task(await api.submit())
    for field in ("created_at", "updated_at"):
        assert task[field].endswith("+00:00")
        assert datetime.fromisoformat(task[field]).utcoffset() == timedelta(0)


async def test_defaults_come_from_the_settings_of_the_model(open_api):
    preset = {
        "num_inference_steps": 12,
        "guidance_scale": 5.5,
        "strength": 0.4,
        "scheduler": "DDIMScheduler",
        "width": 128,
        "height": 192,
    }
    api = await open_api(models={"small": preset})
    everything_null = dict.fromkeys(set(GenerateBody.model_fields) - {"prompt"})
    await api.submit(**everything_null)
    claimed = await api.claim()
    expected = preset | {"negative_prompt": "", "num_images": 1, "output_format": "png"}
    assert {name: claimed.task.input[name] for name in expected} == expected
    assert claimed.task.queue == "small"


async def test_an_unset_size_is_left_to_the_model(api):
    await api.submit()
    assert (await api.claim()).task.input["width"] is None


async def test_jpg_and_jpeg_are_the_same_format(api):
    for word in ("jpg", "jpeg"):
        await api.submit(output_format=word)
        assert (await api.claim()).task.input["output_format"] == "jpeg"


async def test_without_a_seed_each_task_draws_another_picture_and_tells_its_seed(api):
    tasks = [await api.task(await api.submit()) for _ in range(3)]
    assert len({task["seed"] for task in tasks}) == 3


async def test_an_empty_prompt_is_drawn(api):
    assert (await api.task(await api.submit(prompt="")))["prompt"] == ""


async def test_numbers_as_text_are_understood_as_the_document_s_own_server_did(api):
    await api.submit(width="512", guidance_scale="7.5", num_inference_steps=30.0)
    assert (await api.claim()).task.input["width"] == 512


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_an_initial_picture_is_kept_in_the_store_and_rules_the_size(api, png, data_url, kind):
    data = png(kind, (203, 100))
    await api.submit(init_image=data_url(data, kind), strength=0.3, width=512, height=512)
    claimed = await api.claim()
    job = claimed.task.input
    assert (job["width"], job["height"]) == (200, 96)
    assert job["strength"] == 0.3
    assert await api.services.objects.get(job["init_image_key"]) == data
    assert "base64" not in str(job)


async def test_a_mask_is_kept_beside_its_picture(api, png, data_url):
    mask = png("png", (90, 80))
    await api.submit(
        init_image=data_url(png("jpeg", (203, 100)), "jpeg"), mask_image=data_url(mask)
    )
    job = (await api.claim()).task.input
    assert await api.services.objects.get(job["mask_image_key"]) == mask
    assert (job["width"], job["height"]) == (200, 96)


async def test_finer_control_of_guidance_and_prompts_reaches_the_worker(api):
    fine = {
        "scheduler": "UniPCMultistepScheduler",
        "schedule": "karras",
        "eta": 0.5,
        "prompt_weighting": True,
        "long_prompt": True,
        "clip_skip": 1,
        "guidance_rescale": 0.7,
        "guidance_interval": [0.1, 0.8],
        "deep_cache": 2,
    }
    await api.submit(**fine)
    job = (await api.claim()).task.input
    assert {name: job[name] for name in fine} == fine


async def test_a_large_initial_picture_is_brought_under_the_limits(open_api, png, data_url):
    api = await open_api(limits={"max_side_px": 512, "max_pixels": 512 * 256})
    await api.submit(init_image=data_url(png(size=(2000, 1000))))
    job = (await api.claim()).task.input
    assert (job["width"], job["height"]) == (512, 256)


async def test_a_local_picture_is_not_the_image_to_image_strength_of_text_to_image(api):
    await api.submit(strength=0.2)
    assert (await api.claim()).task.input["init_image_key"] is None


async def test_an_idempotency_key_gives_the_same_task_again(api):
    first = await api.submit(idempotency_key="order-17")
    assert await api.submit(idempotency_key="order-17") == first
    other = await api.submit()
    assert other != first


async def test_the_idempotency_key_may_come_as_a_header(api, png, data_url):
    body = {"prompt": "a fox", "init_image": data_url(png())}
    ids = set()
    for _ in range(2):
        answer = await api.http.post(
            "/api/v1/generate", json=body, headers={"Idempotency-Key": "order-18"}
        )
        ids.add(answer.json()["task_id"])
    assert len(ids) == 1


async def test_an_idempotency_key_with_another_body_is_a_conflict(api):
    await api.submit(idempotency_key="order-19")
    answer = await api.http.post(
        "/api/v1/generate", json={"prompt": "a dog", "idempotency_key": "order-19"}
    )
    assert answer.status_code == 409
    assert "order-19" in answer.json()["detail"]


async def test_a_delayed_task_is_pending_and_waits(api):
    task_id = await api.submit(delay_s=60)
    assert (await api.task(task_id))["status"] == "pending"
    queue = api.settings.default_model
    assert not await api.services.store.claim(queue, "w", limit=1, request_id="r")


async def test_a_full_queue_answers_429_and_when_to_come_back(open_api):
    api = await open_api(limits={"max_queue": 2})
    await api.submit()
    await api.submit()
    answer = await api.http.post("/api/v1/generate", json={"prompt": "one too many"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "2" in answer.json()["detail"]


async def test_lora_may_be_sent_empty(api):
    await api.submit(lora=[])


async def test_public_url_stands_before_the_picture_s_path(open_api):
    api = await open_api(http={"public_url": "https://pictures.example.com/base/"})
    task_id = await api.submit()
    await api.finish(await api.claim())
    url = (await api.task(task_id))["result_url"]
    assert url.startswith("https://pictures.example.com/base/files/")


async def test_hundreds_of_submits_at_once_are_all_taken_once(api):
    ids = await asyncio.gather(*(api.submit(prompt=f"fox {i}") for i in range(300)))
    assert len(set(ids)) == 300
    assert (await api.services.store.depth(api.settings.default_model)).queued == 300


async def test_a_submit_cut_off_at_any_await_leaves_one_whole_task_or_none(api, png, data_url):
    fields = ImageFields(prompt="a fox")
    picture = data_url(png())
    for spins in range(60):
        key = f"order-{spins}"
        new = Submission(fields=fields, init_image=picture, idempotency_key=key)
        submit = asyncio.create_task(api.services.generate(new, "ann"))
        for _ in range(spins):
            await asyncio.sleep(0)
        submit.cancel()
        await asyncio.gather(submit, return_exceptions=True)
        task = await api.services.generate(new, "ann")
        assert await api.services.objects.get(task.input["init_image_key"])
    page = await api.services.tasks("ann", (None,), 200, None)
    assert len(page.tasks) == 60


async def test_a_task_starts_no_earlier_than_it_may(api):
    start = datetime.now(UTC) + timedelta(hours=3)
    task_id = await api.submit(not_before=start.isoformat())
    task = await api.task(task_id)
    assert (task["status"], task["not_before"]) == ("pending", start.isoformat())
    stored = await api.services.store.get(task_id)
    assert (stored.status, stored.not_before) == (Status.SCHEDULED, start)
    past = await api.submit(not_before="2020-01-01T00:00:00+08:00")
    stored = await api.services.store.get(past)
    assert (stored.status, stored.not_before) == (Status.QUEUED, None)
    assert (await api.task(past))["not_before"] is None


@pytest.mark.parametrize(
    "given",
    [
        {"not_before": "2026-01-01T12:00:00"}, {"not_before": "9999-12-31T23:59:59-23:59"},
        {"not_before": "soon"}, {"not_before": 1e300}, {"not_before": "2020-01-01Z", "delay_s": 3},
    ],
    ids=["no timezone", "too far", "words", "number", "twice"],
)  # fmt: skip
async def test_a_start_that_cannot_be_is_refused(api, given):
    answer = await api.http.post("/api/v1/generate", json={"prompt": "a fox"} | given)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "not_before"]


@pytest.fixture
async def styled(open_api, tmp_path):
    """An application with two styles, one of which wears a LoRA."""
    path = tmp_path / "styles.csv"
    path.write_text(
        "name,prompt,negative_prompt\nink,drawing of {prompt} <lora:pen:0.5>,colour\nold,sepia,\n"
    )
    return await open_api(styles_file=path)


async def test_styles_are_put_on_both_prompts_in_their_order(styled):
    await styled.lora("pen")
    task_id = await styled.submit(negative_prompt="blurry", styles=["ink", "old"], seed=7)
    order = (await styled.services.store.get(task_id)).input
    assert order["prompt"] == "drawing of a fox <lora:pen:0.5>, sepia"
    assert order["negative_prompt"] == "blurry, colour"
    assert [(lora["name"], lora["weight"]) for lora in order["loras"]] == [("pen", 0.5)]
    task = await styled.task(task_id)
    assert (task["prompt"], task["original_prompt"]) == (order["prompt"], "a fox")
    plain = await styled.task(await styled.submit(styles=[]))
    assert (plain["prompt"], plain["original_prompt"]) == ("a fox", None)


async def test_a_style_that_is_not_there_and_one_that_is_too_long_are_refused_by_name(styled):
    for body, place, told in (
        ({"styles": ["ink", "oil"]}, "styles", "styles must be of ink, old, given 'oil'"),
        ({"styles": ["old"] * 21}, "styles", "at most 20 items"),
        ({"prompt": "x" * 3997, "styles": ["old"]}, "prompt", "at most 4000 characters, given"),
    ):
        answer = await styled.http.post("/api/v1/generate", json={"prompt": "a fox"} | body)
        assert answer.status_code == 422, answer.text
        (entry,) = answer.json()["detail"]
        assert (entry["loc"], told in entry["msg"]) == (["body", place], True), entry


async def test_a_key_with_another_style_is_a_conflict(styled):
    first = {"prompt": "a fox", "idempotency_key": "k"}
    assert (await styled.http.post("/api/v1/generate", json=first)).status_code == 200
    answer = await styled.http.post("/api/v1/generate", json=first | {"styles": ["old"]})
    assert answer.headers["x-error-code"] == "idempotency_conflict"
