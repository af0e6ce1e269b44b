"""LoRA trainings over HTTP: what is refused, what is queued, and what comes of it."""

import io
import json
import uuid
import zipfile

import pytest
from PIL import Image

from deployments.api.upkeep import Upkeep
from deployments.loras.model import NewLora
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Output, Progress
from deployments.tasks.training import (
    LORA_QUEUE,
    Curve,
    CurvePoint,
    LoraOrder,
    pictures_key,
)
from training.lora.source import read_archive

LORAS = "/api/v1/loras"
KEYS = {"keys": ["ann", "bob"]}
ANN, BOB = {"X-API-Key": "ann"}, {"X-API-Key": "bob"}


@pytest.fixture
async def keyed(open_api):
    return await open_api(api=KEYS, headers=ANN)


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("_", "."), data)
    return buffer.getvalue()


async def training(api, *files, headers=None, **fields):
    """A form with pictures of (name, data)."""
    parts = [("pictures", file) for file in files]
    for name, value in ({"name": "ink"} | fields).items():
        parts += [(name, (None, each)) for each in ([value] if isinstance(value, str) else value)]
    return await api.http.post(LORAS, files=parts, headers=headers)


async def claimed(api):
    found = await api.services.store.claim(
        LORA_QUEUE, "worker", limit=1, request_id=uuid.uuid4().hex
    )
    return found[0]


async def archived(api, task_id, tmp_path):
    path = tmp_path / "archive"
    await api.services.objects.fetch(pictures_key(task_id), path)
    return read_archive(path)


def message(answer):
    return "; ".join(
        f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in answer.json()["detail"]
    )


async def test_a_form_with_files_captions_and_an_archive_becomes_a_task(api, png, tmp_path):
    cat, dog = png(size=(64, 64)), png(size=(64, 65))
    answer = await training(
        api,
        ("cat.png", cat),
        ("cat.txt", b"a red cat"),
        ("more.zip", zipped(dog_png=dog, dog_txt=b"a dog", _DS_Store=b"x")),
        kind="portrait",
        trigger="zorblax",
        steps="12",
        job=json.dumps({"rank": 4}),
        validation_prompts=["zorblax", "zorblax at sea"],
        visibility="public",
    )
    assert answer.status_code == 202, answer.text
    created = answer.json()
    assert created["status"] == "pending"
    task = await api.task(created["task_id"])
    assert task["model"] == "embedded"
    assert task["training"] == {
        "name": "ink", "lora_id": None, "loss": None, "lr": None, "samples_per_s": None,
        "eta_s": None,
    }  # fmt: skip
    order = LoraOrder.model_validate((await claimed(api)).task.input)
    assert (order.name, order.pictures, order.visibility) == ("ink", 2, "public")
    assert (order.job.kind, order.job.steps, order.job.rank) == ("portrait", 12, 4)
    assert order.job.validation_prompts == ("zorblax", "zorblax at sea")
    assert order.job.checkpoint_every == api.settings.training.checkpoint_every
    found = await archived(api, created["task_id"], tmp_path)
    assert [(each.name, each.data, each.caption) for each in found] == [
        ("cat.png", cat, "a red cat"), ("dog.png", dog, "a dog")
    ]  # fmt: skip


async def test_pictures_come_as_data_urls_or_as_those_that_were_drawn(api, png, data_url, tmp_path):
    drawn = await api.submit()
    await api.finish(await api.claim())
    key = (await api.services.store.get(drawn)).outputs[0].key
    pictures = [
        {"image": data_url(png(size=(80, 64))), "caption": "a cat"}, {"image": f"{drawn}/0"},
        {"image": f"{drawn}.0"}, {"image": key},
    ]  # fmt: skip
    answer = await api.http.post(LORAS, json={"name": "ink", "pictures": pictures})
    assert answer.status_code == 202, answer.text
    found = await archived(api, answer.json()["task_id"], tmp_path)
    assert [(Image.open(io.BytesIO(e.data)).size, e.caption) for e in found] == [
        ((80, 64), "a cat"), ((64, 64), None), ((64, 64), None), ((64, 64), None)
    ]  # fmt: skip


def body(**changes):
    return {"name": "ink", "pictures": [{"image": "%data%"}]} | changes


BAD = {
    "no pictures": (body(pictures=[]), "pictures: pictures must be 1..1000 in number, given 0"),
    "no field of pictures": ({"name": "ink"}, "pictures: field required"),
    "no name": ({"pictures": [{"image": "%data%"}]}, "name: field required"),
    "a tag's name": (body(name="a:b"), "name: must not contain"),
    "an unknown model": (
        body(model="sd9"), "model: model must be one of ['embedded'], given 'sd9'"
    ),
    "rank 0": (
        body(job={"rank": 0}),
        "job.rank: Input should be greater than or equal to 1, given 0",
    ),
    "rank 10,000": (
        body(job={"rank": 10_000}),
        "job.rank: Input should be less than or equal to 512, given 10000",
    ),
    "no trigger": (body(job={"kind": "portrait"}), "job: trigger must be given"),
    "an unknown field": (body(job={"rnak": 4}), "job.rnak: unknown field"),
    "one that is no picture": (
        body(pictures=[{"image": "%data%"}, {"image": "data:image/png;base64,AAAA"}]),
        "pictures: 1 of 2 pictures are refused: pictures.1 is not a picture",
    ),
    "a picture cut short": (
        body(pictures=[{"image": "%data%"}, {"image": "%cut%"}]),
        "pictures: 1 of 2 pictures are refused: pictures.1 is damaged",
    ),
    "more held out than there are": (
        body(job={"validation_pictures": 3}),
        "validation_pictures must be fewer than the 1 pictures, given 3",
    ),
    "one that is not base64": (
        body(pictures=[{"image": "nonsense!"}]),
        "pictures: 1 of 1 pictures are refused: pictures.0 is not valid base64",
    ),
    "an address within": (
        body(pictures=[{"image": "http://127.0.0.1:8000/secret.png"}]),
        "pictures.0: the URL does not lead to a public address",
    ),
    "a picture of nobody": (
        body(pictures=[{"image": f"{uuid.UUID(int=0)}/0"}]),
        "pictures.0: there is no picture 00000000",
    ),
    "a file of nobody": (
        body(pictures=[{"image": f"results/{uuid.UUID(int=0)}/1/0.png"}]),
        "pictures.0: there is no picture results/00000000",
    ),
    "another's place in the store": (
        body(pictures=[{"image": "loras/lora.safetensors"}]), "pictures.0 is not valid base64"
    ),
    "a scene without captions": (
        body(job={"kind": "scene"}), "pictures.0 has no caption, which kind scene needs"
    ),
    "pictures too small for the resolution": (
        body(job={"resolution": 512}), "pictures.0 must be at least 256"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), BAD.values(), ids=BAD)
async def test_a_bad_job_is_refused_and_its_field_named(api, png, data_url, given, expected):
    text = json.dumps(given).replace("%data%", data_url(png()))
    text = text.replace("%cut%", data_url(png()[:-40]))
    answer = await api.http.post(LORAS, content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert expected in message(answer)
    assert (await api.services.store.depth(LORA_QUEUE)).queued == 0


async def test_a_portrait_s_unfit_photos_are_left_to_its_attempt_while_two_can_be_read(
    api, png, tmp_path
):
    files = [("a.png", png()), ("b.png", b"nonsense"), ("c.png", png(size=(80, 64)))]
    words = {"kind": "portrait", "trigger": "zorblax"}
    answer = await training(api, *files, **words)
    assert answer.status_code == 202, answer.text
    found = await archived(api, answer.json()["task_id"], tmp_path)
    assert [each.name for each in found] == ["a.png", "b.png", "c.png"]
    answer = await training(api, *files[:2], name="pen", **words)
    assert answer.status_code == 422, answer.text
    assert "1 of 2 pictures are refused: b.png is not a picture" in message(answer)


async def test_a_bad_form_is_refused_and_its_field_named(open_api, png):
    api = await open_api(training={"max_picture_bytes": 2000, "max_bytes": 4000, "max_pictures": 3})
    good = ("a.png", png())
    for expected, files, fields in (
        ("pictures: pictures must be 1..3 in number, given 0", [], {}),
        ("pictures must be 1..3 in number, given 4", [good] * 4, {}),
        ("pictures: b.png may have at most 2000 bytes", [good, ("b.png", bytes(2001))], {}),
        ("b.png has 2001 bytes, at most 2000", [("z.zip", zipped(b_png=bytes(2001)))], {}),
        ("the zip archive is damaged", [("z.zip", zipped(a_png=png())[:-20])], {}),
        ("1 of 2 pictures are refused: b.png is not a pic", [good, ("b.png", b"nonsense")], {}),
        ("job.steps: Input should be a valid integer", [good], {"steps": "many"}),
        ("job: must be JSON, given '{'", [good], {"job": "{"}),
        ("color: unknown field", [good], {"color": "red"}),
    ):
        answer = await training(api, *files, **fields)
        assert answer.status_code == 422, answer.text
        assert expected in message(answer), message(answer)


async def test_other_types_and_broken_json_are_refused(api):
    for kind, text, status in (
        ("text/plain", "x", 415), ("application/json", "{", 422), ("application/json", "[]", 422),
    ):  # fmt: skip
        answer = await api.http.post(LORAS, content=text, headers={"content-type": kind})
        assert answer.status_code == status, answer.text


async def test_a_name_is_taken_among_its_owners_alone(keyed, png, lora_file):
    imported = {"file": ("x.safetensors", lora_file())}
    await keyed.http.post(f"{LORAS}/import", data={"name": "Ink"}, files=imported, headers=ANN)
    answer = await training(keyed, ("a.png", png()), headers=ANN)
    assert (answer.status_code, answer.headers["x-error-code"]) == (409, "name_taken")
    assert (await training(keyed, ("a.png", png()), headers=BOB)).status_code == 202


async def test_an_owner_who_has_as_many_loras_as_may_be_trains_and_imports_no_more(
    open_api, png, lora_file
):
    api = await open_api(limits={"max_owned_loras": 1})
    await api.lora("pen")
    imported = {"file": ("x.safetensors", lora_file())}
    for answer in (
        await training(api, ("a.png", png())),
        await api.http.post(f"{LORAS}/import", data={"name": "Ink"}, files=imported),
    ):
        assert (answer.status_code, answer.headers["x-error-code"]) == (409, "too_many_loras")
        assert "You have 1 LoRAs" in answer.json()["detail"]


async def test_another_owner_s_pictures_trainings_and_loras_are_not_there(
    keyed, png, data_url, lora_file
):
    own = {"name": "ink", "pictures": [{"image": data_url(png())}]}
    task_id = (await keyed.http.post(LORAS, json=own, headers=ANN)).json()["task_id"]
    answer = await keyed.http.post(
        LORAS, json=own | {"pictures": [{"image": f"{task_id}/0"}]}, headers=BOB
    )
    assert answer.status_code == 422
    assert f"pictures.0: there is no picture {task_id}/0" in message(answer)
    drawn = (await keyed.http.post("/api/v1/generate", json={"prompt": "x"})).json()["task_id"]
    await keyed.finish(await keyed.claim())
    stolen = {"pictures": [{"image": (await keyed.services.store.get(drawn)).outputs[0].key}]}
    answer = await keyed.http.post(LORAS, json=own | stolen, headers=BOB)
    assert f"pictures.0: there is no picture results/{drawn}" in message(answer)
    task = f"/api/v1/tasks/{task_id}"
    for method, path in (("GET", task), ("DELETE", task), ("GET", f"{task}/events")):
        answer = await keyed.http.request(method, path, headers=BOB)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "task_not_found")
    imported = {"file": ("x.safetensors", lora_file())}
    lora = (await keyed.http.post(f"{LORAS}/import", files=imported, headers=ANN)).json()
    answer = await keyed.http.get(f"{LORAS}/{lora['id']}/curve", headers=BOB)
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "lora_not_found")
    assert (await keyed.http.get(task, headers=ANN)).json()["status"] == "pending"


async def test_the_same_key_again_gives_the_same_task_and_keeps_one_archive(api, png):
    headers = {"Idempotency-Key": "order-17"}
    one, two = [await training(api, ("a.png", png()), headers=headers) for _ in range(2)]
    assert one.json()["task_id"] == two.json()["task_id"]
    folder = api.settings.data_dir
    assert len(list(folder.rglob("pictures.zip"))) == 1
    other = await training(api, ("a.png", png(size=(70, 70))), headers=headers)
    assert other.headers["x-error-code"] == "idempotency_conflict"
    assert len(list(folder.rglob("pictures.zip"))) == 1


async def test_the_same_key_finds_its_task_even_once_its_lora_has_the_name(open_api, png):
    api = await open_api(limits={"max_owned_loras": 1})
    headers = {"Idempotency-Key": "order-17"}
    first = await training(api, ("a.png", png()), headers=headers)
    await api.lora("ink")  # as its end publishes it
    again = await training(api, ("a.png", png()), headers=headers)
    assert (again.status_code, again.json()["task_id"]) == (202, first.json()["task_id"])
    other = await training(api, ("a.png", png()), headers=headers, name="pen")
    assert other.headers["x-error-code"] == "idempotency_conflict"
    fresh = await training(api, ("a.png", png()), headers={"Idempotency-Key": "order-18"})
    assert fresh.headers["x-error-code"] == "name_taken"


async def test_a_canceled_training_s_pictures_are_gone_and_so_are_an_expired_one_s(api, png, redis):
    first = (await training(api, ("a.png", png()))).json()["task_id"]
    assert (await api.http.delete(f"/api/v1/tasks/{first}")).json()["status"] == "canceled"
    assert not await api.services.objects.exists(pictures_key(first))
    second = (await training(api, ("a.png", png()))).json()["task_id"]
    job = await claimed(api)
    assert await api.services.store.succeed(job.claim, [])
    await redis.zadd(f"{{{api.settings.tasks.key_prefix}}}:ended", {second: 1}, xx=True)
    await Upkeep(api.services).sweep()
    assert not await api.services.objects.exists(pictures_key(second))


async def test_its_view_tells_loss_and_time_left_and_at_its_end_the_lora_with_its_curve(
    api, png, lora_file, tmp_path
):
    task_id = (await training(api, ("a.png", png()), trigger="zorblax")).json()["task_id"]
    job = await claimed(api)
    told = Progress(step=3, steps=9, loss=0.25, lr=1e-4, samples_per_s=2.0, eta_s=12.5)
    await api.services.store.renew([Beat(claim=job.claim, progress=told)])
    task = await api.task(task_id)
    assert task["progress"] == {"step": 3, "steps": 9}
    assert (task["training"]["loss"], task["training"]["eta_s"]) == (0.25, 12.5)

    path = tmp_path / "lora.safetensors"
    path.write_bytes(lora_file())
    points = [CurvePoint(step=i, loss=1 / i, lr=1e-4, validation_loss=i % 2 or None)
              for i in range(1, 10)]  # fmt: skip
    curve = Curve(steps=9, points=tuple(points))
    lora = await api.services.loras.registry.publish(
        path, NewLora(name="ink", owner=job.task.owner, task_id=task_id),
        call_id=task_id, claim=job.claim, curve=curve.model_dump_json().encode(),
    )  # fmt: skip
    key = f"results/{task_id}/1/lora.safetensors"
    await api.services.objects.put_file(key, path, "application/octet-stream")
    output = Output(key=key, content_type="application/octet-stream", lora_id=lora.id)
    assert await api.services.store.succeed(job.claim, [output])
    task = await api.task(task_id)
    assert (task["status"], task["training"]["lora_id"]) == ("completed", lora.id)
    assert (await api.http.get(task["result_url"])).content == path.read_bytes()
    assert task["result_urls"] == [task["result_url"]]

    shown = (await api.http.get(f"{LORAS}/{lora.id}/curve")).json()
    assert shown == curve.model_dump(mode="json")
    picture = await api.http.get(f"{LORAS}/{lora.id}/curve.png")
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (800, 450)
    assert (await api.http.delete(f"{LORAS}/{lora.id}")).status_code == 200
    await Upkeep(api.services).sweep()
    assert not await api.services.objects.exists(lora.newest.curve_key)


async def test_an_imported_lora_has_no_curve(api):
    lora = await api.lora("ink")
    answer = await api.http.get(f"{LORAS}/{lora['id']}/curve")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "no_curve")


async def test_where_training_is_off_there_is_no_route_for_it(open_api, png):
    api = await open_api(training={"enabled": False})
    assert (await training(api, ("a.png", png()))).status_code == 405
