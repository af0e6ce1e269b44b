"""The gallery's models and datasets: planned, queued, trained, and the same LoRAs as everywhere."""

import asyncio
import re
import uuid

import pytest

from deployments.drafts.errors import Locked
from deployments.drafts.model import Kind
from deployments.loras.model import NewLora
from deployments.tasks.exchange import Beat
from deployments.tasks.model import Output, Progress, TaskError
from deployments.tasks.training import LORA_QUEUE, LoraOrder

MODELS, SETS = "/api/models", "/api/dataset"
KEYS = {"keys": ["ann", "bob"]}
ANN, BOB = {"X-API-Key": "ann"}, {"token": "bob"}
NOWHERE = str(uuid.UUID(int=0))
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")


@pytest.fixture
async def keyed(open_api):
    return await open_api(api=KEYS, headers=ANN)


async def drawn(api):
    """The id of a picture."""
    task_id = await api.submit()
    await api.finish(await api.claim())
    return f"{task_id}.0"


async def made(api, path, body, **options):
    answer = await api.http.post(path, json=body, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def planned(api, name="ink", **fields):
    """A model with one picture."""
    data = {"images": [await drawn(api)]}
    return await made(api, MODELS, {"name": name, "type": "RoLa", "data": data} | fields)


async def ready(api, model_id):
    return await api.http.patch(f"{MODELS}/{model_id}", json={"status": "ready"})


async def claimed(api):
    found = await api.services.store.claim(LORA_QUEUE, "w", limit=1, request_id=uuid.uuid4().hex)
    return found[0]


async def trained(api, job, path):
    """End a claimed training as a Trainer does."""
    name = job.task.input["name"]
    lora = await api.services.loras.registry.publish(
        path,
        NewLora(name=name, owner=job.task.owner, task_id=job.task.id),
        call_id=job.task.id,
        claim=job.claim,
    )
    output = Output(key=lora.newest.key, content_type="application/octet-stream", lora_id=lora.id)
    assert await api.services.store.succeed(job.claim, [output])
    return lora


@pytest.fixture
def file(tmp_path, lora_file):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(lora_file())
    return path


async def listed(api, path=MODELS, **params):
    answer = await api.http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ids(api, path=MODELS, **params):
    return [each["id"] for each in (await listed(api, path, **params))["list"]]


async def test_a_model_goes_its_documented_way_and_ends_as_a_lora_under_its_id(api, file):
    model = await planned(api, trigger_words="zorblax", public=True)
    url = f"{MODELS}/{model['id']}"
    assert (model["status"], model["progress"], model["type"]) == ("initial", 0, "lora")
    assert (model["trigger_words"], model["tags"], model["public"]) == ("zorblax",) * 2 + (True,)
    assert (model["base_model"], model["user_id"], model["model_path"]) == (
        "embedded",
        "anonymous",
        "",
    )
    assert TIME.fullmatch(model["createdAt"])
    assert TIME.fullmatch(model["updatedAt"])

    queued = await ready(api, model["id"])
    assert queued.status_code == 200, queued.text
    assert (queued.json()["id"], queued.json()["status"]) == (model["id"], "waiting")
    native = await api.task(model["id"])
    assert (native["status"], native["training"]["name"]) == ("pending", "ink")
    job = await claimed(api)
    order = LoraOrder.model_validate(job.task.input)
    assert (order.pictures, order.visibility, order.job.trigger) == (1, "public", "zorblax")
    await api.services.store.renew([Beat(job.claim, Progress(step=1, steps=3, loss=0.5))])
    running = (await api.http.get(url)).json()
    assert (running["status"], running["progress"]) == ("running", 33)

    lora = await trained(api, job, file)
    done = (await api.http.get(url)).json()
    assert (done["id"], done["status"], done["progress"]) == (model["id"], "success", 100)
    assert (await api.http.get(done["model_path"])).content == file.read_bytes()
    assert await ids(api) == [model["id"], "embedded"]
    loras = (await api.http.get("/api/v1/loras")).json()["loras"]
    assert [each["id"] for each in loras] == [lora.id]
    assert (await api.http.get(f"{MODELS}/{lora.id}")).json() == done
    prompt = {"prompt": "a fox", "lora": [{"name": "ink"}]}
    assert (await api.http.post("/api/v1/generate", json=prompt)).status_code == 200
    await api.services.store.delete(model["id"])  # its record expires, the model stays
    assert (await api.http.get(url)).json() == done


async def test_what_the_native_api_made_is_a_model_and_a_model_can_be_changed(api, png):
    answer = await api.http.post(
        "/api/v1/loras", files={"pictures": ("a.png", png())}, data={"name": "sea"}
    )
    imported = await api.lora("ink", trigger_words="zorblax, fox")
    assert await ids(api) == [answer.json()["task_id"], imported["id"], "embedded"]
    url = f"{MODELS}/{imported['id']}"
    changes = {"name": "pen", "public": True, "trigger_words": "hen"}
    changed = (await api.http.patch(url, json=changes)).json()
    assert (changed["name"], changed["public"], changed["tags"]) == ("pen", True, "hen")
    native = (await api.http.get(f"/api/v1/loras/{imported['id']}")).json()
    assert (native["name"], native["visibility"]) == ("pen", "public")
    assert (await api.http.delete(url)).json()["name"] == "pen"
    assert (await api.http.get(url)).status_code == 404
    assert (await api.http.delete(url)).headers["x-error-code"] == "lora_not_found"


async def locked(answer, *words):
    assert (answer.status_code, answer.headers["x-error-code"]) == (409, "locked"), answer.text
    for word in words:
        assert word in answer.json()["detail"]


async def test_a_model_is_locked_while_it_is_trained_and_the_reason_is_told(api):
    model = await planned(api)
    url = f"{MODELS}/{model['id']}"
    await ready(api, model["id"])
    for change in ({"name": "x"}, {"status": "ready"}, {"data": {"oss": []}}):
        await locked(await api.http.patch(url, json=change), model["id"], "is queued")
    await locked(await api.http.delete(url), "is queued")
    job = await claimed(api)
    await locked(await api.http.delete(url), "is running", "deleting the task")
    assert (await api.services.store.pause(model["id"])).status == "paused"
    assert (await api.http.get(url)).json()["status"] == "waiting"
    await locked(await api.http.delete(url), "is paused")
    await api.services.store.resume(model["id"])
    job = await claimed(api)
    broken = TaskError(code="generation_failed", message="It broke.")
    await api.services.store.fail(job.claim, broken, retryable=False)
    failed = (await api.http.get(url)).json()
    assert (failed["status"], failed["error"]) == ("error", "It broke.")
    await locked(await ready(api, model["id"]), "has failed", "only be deleted")
    assert (await api.http.delete(url)).status_code == 200
    assert (await api.http.get(url)).headers["x-error-code"] == "draft_not_found"


async def test_a_trained_model_and_the_servers_own_cannot_be_made_ready(api):
    lora = await api.lora("ink")
    await locked(await ready(api, lora["id"]), "is trained")
    for answer in (await ready(api, "embedded"), await api.http.delete(f"{MODELS}/embedded")):
        await locked(answer, "embedded", "server's own")
    own = (await api.http.get(f"{MODELS}/embedded")).json()
    assert (own["type"], own["status"], own["public"], own["createdAt"]) == (
        "ckp", "success", True, None
    )  # fmt: skip


async def test_a_model_may_be_changed_in_every_field_until_it_is_queued(api):
    model = await planned(api)
    url = f"{MODELS}/{model['id']}"
    changes = {
        "name": "pen", "source": "embedded", "public": True, "trigger_words": "zorblax",
        "job": {"steps": 7, "kind": "style"}, "status": "initial",
    }  # fmt: skip
    changed = (await api.http.patch(url, json=changes)).json()
    assert (changed["name"], changed["status"], changed["tags"]) == ("pen", "initial", "zorblax")
    queued = await api.http.patch(url, json={"name": "hen", "status": "ready"})
    assert (queued.json()["name"], queued.json()["status"]) == ("hen", "waiting")
    order = LoraOrder.model_validate((await claimed(api)).task.input)
    assert (order.name, order.job.steps, order.job.trigger) == ("hen", 7, "zorblax")


async def test_pictures_come_from_images_and_datasets(api):
    one, two = await drawn(api), await drawn(api)
    dataset = await made(api, SETS, {"name": "walks", "data": {"images": [one, two]}})
    assert (dataset["total"], dataset["data"]["images"]) == (2, [one, two])
    data = {"images": [one.replace(".", "/")], "choices": [dataset["id"]]}
    model = await made(api, MODELS, {"name": "ink", "type": "lora", "data": data})
    assert (await ready(api, model["id"])).status_code == 200
    assert (await claimed(api)).task.input["pictures"] == 3


BAD = {
    "no name": ({"type": "lora"}, "name: field required"),
    "a tag's name": ({"name": "a:b"}, "name: must not contain"),
    "another type": ({"name": "a", "type": "SD2"}, "type: must be RoLa or lora"),
    "an unknown source": ({"name": "a", "source": "sd9"}, "source must be one of ['embedded'], g"),
    "an unknown field": ({"name": "a", "color": 1}, "color: unknown field"),
    "no address": ({"name": "a", "data": {"oss": ["ftp://x"]}}, "data.oss.0: String should match"),
    "no image id": ({"name": "a", "data": {"images": ["7"]}}, "data.images.0: String should match"),
    "no dataset": (
        {"name": "a", "data": {"choices": [NOWHERE]}}, "data.choices.0: there is no dataset '000"
    ),
    "too many pictures": (
        {"name": "a", "data": {"oss": ["http://a/1.png"] * 4}}, "at most 3 pictures, given 4"
    ),
    "too many bytes": (
        {"name": "a", "data": {"oss": ["http://a/" + "x" * 1000] * 2}}, "at most 1024 bytes of JSON"
    ),
    "too many words": ({"name": "a", "trigger_words": "a," * 30}, "trigger_words: must be print"),
    "no trigger": ({"name": "a", "job": {"kind": "portrait"}}, "job: trigger must be given"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), BAD.values(), ids=BAD)
async def test_a_bad_model_is_refused_and_its_field_named(open_api, body, expected):
    api = await open_api(training={"max_pictures": 3}, limits={"max_draft_bytes": 1024})
    answer = await api.http.post(MODELS, json=body)
    assert answer.status_code == 422, answer.text
    (entry,) = answer.json()["detail"]
    assert expected in f"{'.'.join(map(str, entry['loc'][1:]))}: {entry['msg']}"
    assert await ids(api) == ["embedded"]


READY_BAD = {
    "no pictures": ({}, "data: pictures must be 1..1000 in number, given 0"),
    "an address within": (
        {"oss": ["http://127.0.0.1:8000/a.png"]}, "data.oss.0: the URL does not lead to a public"
    ),
    "a picture of nobody": (
        {"images": [f"{NOWHERE}.3"]}, f"data.images.0: there is no picture {NOWHERE}/3"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), READY_BAD.values(), ids=READY_BAD)
async def test_a_model_that_cannot_be_trained_stays_initial_and_the_reason_is_told(
    api, data, expected
):
    model = await made(api, MODELS, {"name": "ink", "data": data})
    answer = await ready(api, model["id"])
    assert answer.status_code == 422, answer.text
    (entry,) = answer.json()["detail"]
    assert (entry["loc"], expected.partition(": ")[2][:20] in entry["msg"]) == (
        ["body", "data"],
        True,
    )
    assert expected.removeprefix("data: ") in entry["msg"]
    assert (await api.http.get(f"{MODELS}/{model['id']}")).json()["status"] == "initial"
    right = {"images": [await drawn(api)]}
    changed = {"data": right, "status": "ready"}
    assert (await api.http.patch(f"{MODELS}/{model['id']}", json=changed)).status_code == 200


async def test_a_model_whose_dataset_was_deleted_stays_initial_and_the_dataset_is_named(api):
    dataset = await made(api, SETS, {"name": "walks", "data": {"images": [await drawn(api)]}})
    model = await made(api, MODELS, {"name": "ink", "data": {"choices": [dataset["id"]]}})
    await api.http.delete(f"{SETS}/{dataset['id']}")
    answer = await ready(api, model["id"])
    assert answer.status_code == 422, answer.text
    (entry,) = answer.json()["detail"]
    expected = f"data.choices.0: there is no dataset '{dataset['id']}'"
    assert (entry["loc"], entry["msg"]) == (["body", "data"], expected)
    assert (await api.http.get(f"{MODELS}/{model['id']}")).json()["status"] == "initial"


async def test_anothers_model_is_no_source_and_anothers_dataset_no_choice(keyed):
    model = await planned(keyed)
    dataset = await made(keyed, SETS, {"name": "walks", "data": {}})
    theirs = ({"source": model["id"]}, {"data": {"choices": [dataset["id"]]}})
    for fields, told in zip(theirs, ("source must be one of", "there is no dataset"), strict=True):
        body = {"name": "pen"} | fields
        answer = await keyed.http.post(MODELS, json=body, headers={"X-API-Key": "bob"})
        assert answer.status_code == 422, answer.text
        assert told in answer.json()["detail"][0]["msg"]


async def test_a_status_that_the_server_alone_sets_is_refused(api):
    model = await planned(api)
    for status in ("running", "success", "nonsense"):
        answer = await api.http.patch(f"{MODELS}/{model['id']}", json={"status": status})
        assert answer.status_code == 422
        assert f"given '{status}'" in answer.json()["detail"][0]["msg"]


async def test_a_name_that_is_taken_is_told_when_it_is_queued(api):
    await api.lora("ink")
    model = await planned(api, name="Ink")
    answer = await ready(api, model["id"])
    assert (answer.status_code, answer.headers["x-error-code"]) == (409, "name_taken")
    assert (await api.http.get(f"{MODELS}/{model['id']}")).json()["status"] == "initial"


async def test_a_full_queue_is_told_and_the_model_stays_as_it_was(open_api):
    api = await open_api(limits={"max_queue": 1})
    first, second = [await planned(api, name) for name in "ab"]
    assert (await ready(api, first["id"])).status_code == 200
    answer = await ready(api, second["id"])
    assert (answer.status_code, answer.headers["x-error-code"]) == (429, "queue_full")
    assert "retry-after" in answer.headers
    assert (await api.http.get(f"{MODELS}/{second['id']}")).json()["status"] == "initial"


async def test_where_training_is_off_no_model_can_be_made_ready(open_api):
    api = await open_api(training={"enabled": False})
    answer = await ready(api, (await planned(api))["id"])
    assert answer.status_code == 422
    assert "nothing is trained here" in answer.json()["detail"][0]["msg"]


async def test_made_ready_twice_at_once_there_is_one_training(api):
    model = await planned(api)
    answers = await asyncio.gather(*(ready(api, model["id"]) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert (await api.services.store.depth(LORA_QUEUE)).queued == 1
    assert await ids(api) == [model["id"], "embedded"]


async def test_a_model_that_is_being_queued_shows_ready_and_a_dead_ones_lock_ends(api, redis):
    model = await planned(api)
    store = api.services.models.drafts
    draft = await store.get(Kind.MODEL, model["id"], owner="anonymous")
    lock = store.becoming_a_task(draft)
    await lock.__aenter__()  # and its process dies
    assert (await api.http.get(f"{MODELS}/{model['id']}")).json()["status"] == "ready"
    with pytest.raises(Locked):
        await store.delete(draft)
    key = f"{{{api.settings.tasks.key_prefix}}}:draft:model:{model['id']}"
    await redis.hset(key, "locked_until", 1)  # long ago
    assert (await ready(api, model["id"])).json()["status"] == "waiting"


async def test_others_see_public_models_only_and_change_none(keyed, lora_file):
    plan = await planned(keyed)
    private, public = await keyed.lora("ink"), await keyed.lora("pen", visibility="public")
    seen = (await keyed.http.get(MODELS, headers=BOB)).json()["list"]
    del keyed.http.headers["X-API-Key"]
    seen = (await keyed.http.get(MODELS, headers=BOB)).json()["list"]
    assert [each["id"] for each in seen] == [public["id"], "embedded"]
    for model_id in (plan["id"], private["id"]):
        for method, options in (("GET", {}), ("DELETE", {}), ("PATCH", {"json": {"name": "x"}})):
            url = f"{MODELS}/{model_id}"
            answer = await keyed.http.request(method, url, headers=BOB, **options)
            assert answer.status_code == 404, (method, model_id)
    answer = await keyed.http.patch(f"{MODELS}/{public['id']}", json={"name": "x"}, headers=BOB)
    assert answer.headers["x-error-code"] == "lora_not_found"
    for path in (MODELS, SETS, "/api/tasks", "/api/images"):
        assert (await keyed.http.get(path)).status_code == 401
