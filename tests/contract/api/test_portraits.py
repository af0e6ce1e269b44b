"""POST /api/v1/portraits and /api/v1/faces/check."""

from __future__ import annotations

import base64
import io
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deployments.loras.model import NewLora
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.model import Kind, Output
from deployments.tasks.portrait import PORTRAIT_PREFIX, PORTRAIT_QUEUE, PortraitOrder
from tests.unit.pipelines.portrait.pictures import beside, photo, photo_file

PATH, CHECK = "/api/v1/portraits", "/api/v1/faces/check"


def url(name: str) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(photo_file(name)).decode()}"


def body(**changes: Any) -> dict[str, Any]:
    return {"people": [{"photos": [url("obama")]}], "template": url("ardern")} | changes


def both() -> bytes:
    """Two faces beside each other."""
    buffer = io.BytesIO()
    Image.fromarray(beside(photo("ardern"), photo("obama"))).save(buffer, "png")
    return buffer.getvalue()


async def order_of(api: Any, answer: Any) -> PortraitOrder:
    assert answer.status_code == 202, answer.text
    task = await api.services.store.get(answer.json()["task_id"])
    assert (task.kind, task.queue) == (Kind.PORTRAIT, PORTRAIT_QUEUE)
    return PortraitOrder.model_validate(task.input)


def uploads(api: Any) -> list[str]:
    folder = Path(api.settings.data_dir, "objects", PORTRAIT_PREFIX)
    return [name for _, _, names in os.walk(folder) for name in names]


async def test_a_json_body_becomes_a_task_whose_pictures_are_kept(api):
    answer = await api.http.post(
        PATH, json=body(parameters={"more_like_me": 0.7}, seed=3, output_format="webp")
    )
    order = await order_of(api, answer)
    assert (order.seed, order.output_format, order.model) == (3, "webp", "embedded")
    assert order.parameters == {"more_like_me": 0.7}
    assert [person.name for person in order.people] == ["person 1"]
    assert await api.services.objects.get(order.template or "") == photo_file("ardern")
    (key,) = order.people[0].references
    assert await api.services.objects.get(key) == photo_file("obama")
    task = await api.task(answer.json()["task_id"])
    assert task["portrait"] == {"people": ["person 1"], "stage": None, "notes": []}
    assert task["status"] == "pending"
    listed = (await api.http.get("/api/v1/tasks")).json()["tasks"]
    assert [each["task_id"] for each in listed] == [task["task_id"]]


async def test_a_form_carries_files_and_parameters_by_their_names(api):
    files = [
        ("template", ("t.png", both())),
        ("people.0.photos", ("a.jpg", photo_file("collins"))),
        ("people.1.photos", ("b.jpg", photo_file("obama"))),
        ("people.1.photos", ("c.jpg", photo_file("ardern"))),
    ]
    fields = {
        "people.1.name": "Barack",
        "more_like_me": "0.25",
        "background_restore": "true",
        "style_name": "Anime",
        "parameters": json.dumps({"sharp_ratio": 0.5}),
        "seed": "9",
    }
    order = await order_of(api, await api.http.post(PATH, data=fields, files=files))
    assert [len(person.references) for person in order.people] == [1, 2]
    assert [person.name for person in order.people] == ["person 1", "Barack"]
    assert order.seed == 9
    assert order.parameters == {
        "more_like_me": 0.25,
        "background_restore": True,
        "style_name": "Anime",
        "sharp_ratio": 0.5,
    }


async def test_photos_of_one_person_need_no_number_in_a_form(api):
    files = [("template", ("t.jpg", photo_file("ardern")))]
    files += [("photos", (name, photo_file(name))) for name in ("obama", "collins")]
    order = await order_of(api, await api.http.post(PATH, files=files))
    assert len(order.people[0].references) == 2


async def test_the_same_key_and_body_again_are_one_task_whose_uploads_are_kept_once(api):
    headers = {"Idempotency-Key": "order-17"}
    first = await api.http.post(PATH, json=body(), headers=headers)
    again = await api.http.post(PATH, json=body(), headers=headers)
    assert first.json()["task_id"] == again.json()["task_id"]
    assert len(uploads(api)) == 2
    other = await api.http.post(PATH, json=body(template=url("collins")), headers=headers)
    assert other.status_code == 409
    assert len(uploads(api)) == 2


async def test_a_full_queue_leaves_no_uploads_behind(open_api):
    api = await open_api(limits={"max_queue": 1})
    assert (await api.http.post(PATH, json=body())).status_code == 202
    assert (await api.http.post(PATH, json=body())).status_code == 429
    assert len(uploads(api)) == 2


async def test_an_answer_of_the_store_that_is_lost_costs_no_uploads(api, monkeypatch):
    create, lost = api.services.store.create, StoreUnavailable("no answer in time")

    async def without_answer(*args: Any, **more: Any) -> None:
        await create(*args, **more)
        raise lost

    monkeypatch.setattr(api.services.store, "create", without_answer)
    assert (await api.http.post(PATH, json=body())).status_code == 503
    (task,) = (await api.http.get("/api/v1/tasks")).json()["tasks"]
    order = PortraitOrder.model_validate((await api.services.store.get(task["task_id"])).input)
    assert await api.services.objects.get(order.template or "") == photo_file("ardern")


@pytest.mark.parametrize("field", ["people", "template", "seed", "parameters"])
async def test_a_form_whose_fields_are_something_else_is_refused(api, field):
    files = [("photos", ("a.jpg", photo_file("obama")))]
    answer = await api.http.post(PATH, data={field: "x"}, files=files)
    assert answer.status_code == 422, answer.text


async def test_a_portrait_by_its_id_has_no_prompt(api):
    task_id = (await api.http.post(PATH, json=body())).json()["task_id"]
    (claimed,) = await api.services.store.claim(
        PORTRAIT_QUEUE, "worker", limit=1, request_id=uuid.uuid4().hex
    )
    key = f"results/{task_id}/1/0.png"
    await api.services.objects.put(key, both(), "image/png")
    done = Output(key=key, content_type="image/png", width=8, height=8)
    assert await api.services.store.succeed(claimed.claim, [done])
    image = (await api.http.get(f"/api/v1/images/{task_id}.0")).json()
    assert (image["prompt"], image["negative_prompt"], image["model"]) == ("", "", "embedded")


async def test_what_a_task_was_sent_goes_with_its_cancel(api):
    task_id = (await api.http.post(PATH, json=body())).json()["task_id"]
    assert len(uploads(api)) == 2
    assert (await api.http.delete(f"/api/v1/tasks/{task_id}")).json()["status"] == "canceled"
    assert not uploads(api)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no template": ({"template": None}, "template", "template must be given, or t2i_prompt"),
    "a template too many": (
        {"parameters": {"t2i_prompt": "a king"}}, "template", "given template, t2i_prompt"
    ),
    "nobody": ({"people": []}, "people", "people must be 1 to 20, given 0"),
    "no photos": ({"people": [{}]}, "people.0", "given neither"),
    "no picture": (
        {"people": [{"photos": [base64.b64encode(b"a text").decode()]}]},
        "people.0.photos.0",
        "people.0.photos.0 is not a picture",
    ),
    "out of range": ({"parameters": {"more_like_me": 2}}, "more_like_me", "0.0 ... 1.0, given 2"),
    "no address": ({"parameters": {"ipa_image_path": 5}}, "ipa_image_path", "a text, given 5"),
    "unknown parameter": ({"parameters": {"beauty": 2}}, "parameters", "unknown: beauty"),
    "unknown model": ({"model": "sd9"}, "model", "given 'sd9'"),
    "an address within": (
        {"template": "http://127.0.0.1/x.jpg"}, "template", "does not lead to a public address"
    ),
    "two faces wanted": (
        {"people": [{"photos": [url("obama")]}] * 2}, "template", "subjects, 2; it has 1"
    ),
    "unknown LoRA": ({"people": [{"lora": "ghost"}]}, "lora", "given 'ghost'"),
    "unknown field": ({"prompt": "a fox"}, "prompt", "unknown field"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "field", "message"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_wrong_is_named_with_limit_and_value(api, changes, field, message):
    answer = await api.http.post(PATH, json=body(**changes))
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["body", field]
    assert message in problem["msg"]
    assert not uploads(api)


async def test_a_template_without_a_face_is_refused_at_once(api, data_url, png):
    answer = await api.http.post(PATH, json=body(template=data_url(png(size=(256, 256)))))
    assert answer.status_code == 422
    assert answer.headers["x-error-code"] == "unfit_template"
    assert "no face in the template" in answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (
            {"portraits": {"max_photos": 2}},
            {"people": [{"photos": [url("obama")] * 3}]},
            "people.0.photos must be at most 2, given 3",
        ),
        (
            {"portraits": {"max_people": 1}},
            {"people": [{"photos": [url("obama")]}] * 2},
            "people must be 1 to 1, given 2",
        ),
        ({"portraits": {"max_photo_bytes": 2000}}, {}, "template may hold at most 2000 bytes"),
        ({"portraits": {"max_bytes": 10_000}}, {}, "at most 10000 bytes together"),
        ({"limits": {"max_input_pixels": 10_000}}, {}, "template may have at most 10000 pixels"),
    ],
    ids=["photos", "people", "bytes of one", "bytes of all", "pixels"],
)
async def test_what_is_beyond_a_limit_is_refused(open_api, settings, changes, message):
    api = await open_api(**settings)
    answer = await api.http.post(PATH, json=body(**changes))
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["detail"][0]["msg"]


async def test_a_loras_photos_stand_for_its_person(api, lora_file, tmp_path):
    (tmp_path / "lora").write_bytes(lora_file())
    references = [photo_file("obama"), photo_file("collins")]
    registry = api.services.loras.registry
    lora = await registry.publish(
        tmp_path / "lora",
        NewLora(name="Barack", owner="anonymous", trigger_words=("zorblax",)),
        call_id=uuid.uuid4().hex,
        references=references,
    )
    order = await order_of(api, await api.http.post(PATH, json=body(people=[{"lora": lora.id}])))
    (person,) = order.people
    assert (person.name, person.trigger) == ("Barack", "zorblax")
    assert person.lora
    assert person.lora.id == lora.id
    kept = [await api.services.objects.get(key) for key in person.references]
    assert kept == references


async def test_a_lora_that_keeps_no_photos_can_be_worn_but_shows_nobody(api):
    await api.lora("ink")
    answer = await api.http.post(PATH, json=body(people=[{"lora": "ink"}]))
    assert answer.status_code == 422
    assert "'ink' keeps no photos of its person" in answer.json()["detail"][0]["msg"]
    given = [{"lora": "ink", "photos": [url("obama")]}]
    order = await order_of(api, await api.http.post(PATH, json=body(people=given)))
    assert order.people[0].lora


async def test_a_scene_draws_the_template_of_its_trigger_words(api):
    await api.lora("harbour", trigger_words="at the harbour, evening")
    given = body(template=None, parameters={"scene_id": "harbour"})
    order = await order_of(api, await api.http.post(PATH, json=given))
    assert (order.template, order.prompt) == (None, "at the harbour, evening")
    assert order.scene


async def test_the_picture_of_an_ip_adapter_is_kept_beside_the_order(api):
    given = body(parameters={"ipa_control": True, "ipa_image_path": url("collins")})
    order = await order_of(api, await api.http.post(PATH, json=given))
    assert order.ipa_image
    assert await api.services.objects.get(order.ipa_image) == photo_file("collins")
    assert len(json.dumps(order.parameters)) < 200


async def test_portraits_that_are_turned_off_have_no_route_but_faces_are_checked(open_api):
    api = await open_api(portraits={"enabled": False})
    assert (await api.http.post(PATH, json=body())).status_code == 404
    assert (await api.http.post(CHECK, json={"photos": [url("obama")]})).status_code == 200


async def test_photos_are_judged_by_the_manuals_codes(api, png, data_url):
    photos = [url("obama"), data_url(png(size=(128, 128))), url("obama"), url("collins"), "YQ=="]
    photos.append("http://127.0.0.1/x.jpg")
    answer = await api.http.post(CHECK, json={"photos": photos})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [each["code"] for each in found["photos"]] == [1, 3, 1, 6, 2, 2]
    assert found["reference"] in (0, 2)
    first = found["photos"][0]
    assert first["message"] == "success"
    height, width, _ = photo("obama").shape
    x, y, box_width, box_height = first["box"]
    assert 0 < x + box_width / 2 < width
    assert 0 < y + box_height / 2 < height
    assert found["photos"][1]["box"] is None


async def test_photos_of_a_form_are_judged_in_their_order(api):
    files = [("photos", (name, photo_file(name))) for name in ("obama", "obama", "collins")]
    answer = await api.http.post(CHECK, files=files)
    assert [each["code"] for each in answer.json()["photos"]] == [1, 1, 6]


@pytest.mark.parametrize("photos", [[], ["YQ=="] * 21], ids=["none", "too many"])
async def test_too_few_or_too_many_photos_are_refused(api, photos):
    answer = await api.http.post(CHECK, json={"photos": photos})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "photos"]


async def test_another_content_type_is_refused(api):
    for path in (PATH, CHECK):
        answer = await api.http.post(path, content=b"x", headers={"content-type": "text/plain"})
        assert answer.status_code == 415
