"""LoRAs over HTTP: import, list, change, delete, download, and pictures that wear them."""

import asyncio
import json

import numpy as np
import pytest
from safetensors.numpy import save

from deployments.api.upkeep import Upkeep
from deployments.loras.model import is_id

LORAS = "/api/v1/loras"
IMPORT = f"{LORAS}/import"
NO_LORA = "lora_" + "0" * 26
KEYS = {"keys": ["ann", "bob"]}
ANN, BOB = {"X-API-Key": "ann"}, {"X-API-Key": "bob"}


@pytest.fixture
def small_file(lora_file):
    return lora_file()


@pytest.fixture
async def keyed(open_api):
    return await open_api(api=KEYS, headers=ANN)


async def importing(api, content, file_name="style.safetensors", headers=None, **fields):
    return await api.http.post(
        IMPORT, data=fields, files={"file": (file_name, content)}, headers=headers
    )


def message(answer):
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in answer.json()["detail"]
    )


async def test_an_imported_file_is_told_listed_and_given_back(api, small_file):
    fields = {"name": "Ink & Wash", "trigger_words": " ink , wash on paper,", "base_model": "sd15"}
    answer = await importing(api, small_file, **fields)
    assert answer.status_code == 200, answer.text
    lora = answer.json()
    assert is_id(lora["id"])
    told = {
        "name": "Ink & Wash", "trigger_words": ["ink", "wash on paper"], "base": "sd",
        "base_model": "sd15", "kind": "lora", "rank": 4, "version": 1, "mine": True,
        "visibility": "private", "size_bytes": len(small_file), "tag": "<lora:Ink & Wash:1>",
        "preview_url": None, "metadata": {"ss_network_dim": "4"},
    }  # fmt: skip
    assert told.items() <= lora.items()
    assert (await api.http.get(f"{LORAS}/{lora['id']}")).json() == lora
    listed = (await api.http.get(LORAS)).json()
    assert listed == {"loras": [lora | {"versions": None}], "next_cursor": None}
    file = await api.http.get(f"{LORAS}/{lora['id']}/file")
    assert file.content == small_file
    assert int(file.headers["content-length"]) == len(small_file)
    assert file.headers["content-disposition"].endswith("Ink%20%26%20Wash.safetensors")


async def test_without_a_name_the_file_s_own_counts(api, small_file):
    for given, name in (
        ("My Style v1.5.safetensors", "My Style v1.5"),
        ("a:b<c>.safetensors", "a_b_c_"),
        ("猫.safetensors", "猫"),
        ("x" * 150 + ".safetensors", "x" * 100),
    ):
        answer = await importing(api, small_file, given)
        assert answer.status_code == 200, answer.text
        assert answer.json()["name"] == name


async def test_the_same_name_again_is_a_version_and_both_can_be_had(api, lora_file):
    files = [lora_file(), lora_file()]
    first, second = [(await importing(api, file, name="ink")).json() for file in files]
    assert second["id"] == first["id"]
    assert [version["version"] for version in second["versions"]] == [2, 1]
    path = f"{LORAS}/{first['id']}/file"
    for number, content in ((1, files[0]), (2, files[1])):
        assert (await api.http.get(path, params={"version": number})).content == content
    missing = await api.http.get(path, params={"version": 3})
    assert missing.status_code == 422
    assert message(missing) == "query.version: version must be 1 to 2, given 3"


async def test_an_import_that_is_repeated_with_its_key_imports_nothing_twice(api, lora_file):
    content, key = lora_file(), {"Idempotency-Key": "k"}
    first = await importing(api, content, headers=key)
    assert (await importing(api, content, headers=key)).json() == first.json()
    other = await importing(api, lora_file(), headers=key)
    assert other.status_code == 409
    assert len((await importing(api, lora_file())).json()["versions"]) == 2


BAD_FILES = [
    (b"", "a.safetensors", "the file is empty"),
    (b"no tensors", "a.safetensors", "not a whole safetensors file"),
    (save({"a.weight": np.ones(3)}), "a.safetensors", "holds no LoRA weights"),
    (b"PK\x03\x04", "a.safetensors", "a pickle can run code"),
    (b"anything", "a.pt", "a pickle can run code"),
]


@pytest.mark.parametrize(("content", "name", "why"), BAD_FILES)
async def test_a_file_that_is_no_lora_is_refused_by_its_name_and_leaves_nothing(
    api, content, name, why
):
    answer = await importing(api, content, name)
    assert answer.status_code == 422
    assert message(answer).startswith(f"body.file: {name}: {why}")
    assert await api.services.objects.sweep("loras/", -1) == 0
    assert (await api.http.get(LORAS)).json()["loras"] == []


async def test_a_file_that_is_cut_short_is_refused(api, small_file):
    answer = await importing(api, small_file[:-1])
    assert "not a whole safetensors file" in message(answer)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "a:b"}, "body.name"),
        ({"name": NO_LORA}, "body.name"),
        ({"name": "x" * 101}, "body.name"),
        ({"visibility": "friends"}, "body.visibility"),
        ({"trigger_words": "a," * 21}, "body.trigger_words"),
        ({"trigger_words": "a\x1b[2J"}, "body.trigger_words"),
        ({"weight": "1"}, "body.weight"),
        ({"base_model": "x" * 201}, "body.base_model"),
    ],
)
async def test_a_field_of_a_form_that_is_refused_is_named(api, small_file, fields, named):
    answer = await importing(api, small_file, **fields)
    assert answer.status_code == 422, answer.text
    assert message(answer).startswith(named)


async def test_what_is_no_form_with_a_file_is_refused(api, small_file):
    for options, status, named in [
        ({"json": {"name": "a"}}, 415, "Content-Type"),
        ({"content": small_file}, 415, "Content-Type"),
        ({"data": {"file": "text"}, "files": {"name": (None, "a")}}, 422, "file"),
        ({"files": {"name": (None, "a")}}, 422, "file"),
        ({"files": [("file", b"1"), ("file", b"2")]}, 400, "Too many files"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"files": [(f"f{i}", (None, "1")) for i in range(30)]}, 400, "Too many fields"),
        ({"files": {"name": (None, "x" * 70_000)}}, 400, "maximum size"),
    ]:
        answer = await api.http.post(IMPORT, **options)
        assert answer.status_code == status, (options, answer.text)
        assert named in answer.text


async def test_a_file_beyond_the_limit_is_refused_and_other_bodies_keep_theirs(
    open_api, small_file
):
    limits = {"max_lora_bytes": 12_000}
    api = await open_api(limits=limits, http={"max_body_bytes": 1024})
    assert len(small_file) > 12_000
    answer = await importing(api, small_file)
    assert answer.status_code == 422
    assert f"file must be at most 12000 bytes, given {len(small_file)}" in message(answer)
    answer = await importing(api, b"x" * 100_000)
    assert answer.status_code == 413
    answer = await api.http.patch(f"{LORAS}/{NO_LORA}", json={"name": "x" * 2000})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": 5}, "name"),
        ({"visibility": "secret"}, "visibility"),
        ({"trigger_words": "ink"}, "trigger_words"),
        ({"trigger_words": ["x"] * 21}, "trigger_words"),
        ({"trigger_words": ["x" * 201]}, "trigger_words"),
        ({"preview": "data:image/png;base64,%%"}, "preview"),
        ({"preview": "http://127.0.0.1/x.png"}, "preview"),
        ({"owner": "bob"}, "owner"),
        ({"sha256": "0"}, "sha256"),
    ],
)
async def test_a_change_that_is_refused_names_its_field(api, body, named):
    lora = await api.lora("ink")
    answer = await api.http.patch(f"{LORAS}/{lora['id']}", json=body)
    assert answer.status_code == 422, answer.text
    assert named in message(answer)
    assert (await api.http.get(f"{LORAS}/{lora['id']}")).json() == lora


async def test_changes_are_kept_and_a_taken_name_is_a_conflict(api, png, data_url):
    lora, _ = await api.lora("ink"), await api.lora("wash")
    path = f"{LORAS}/{lora['id']}"
    taken = await api.http.patch(path, json={"name": "WASH"})
    assert (taken.status_code, taken.headers["x-error-code"]) == (409, "name_taken")
    body = {
        "name": "Ink 2", "visibility": "public", "trigger_words": ["a", "b"],
        "preview": data_url(png(size=(1024, 256))),
    }  # fmt: skip
    changed = (await api.http.patch(path, json=body)).json()
    assert {name: changed[name] for name in body if name != "preview"} == {
        name: value for name, value in body.items() if name != "preview"
    }
    preview = await api.http.get(changed["preview_url"])
    assert preview.headers["content-type"] == "image/jpeg"
    assert (await api.http.patch(path, json={})).json()["name"] == "Ink 2"


async def test_filters_choose_and_cursors_go_on(api):
    made = [await api.lora(f"style {i}") for i in range(5)]
    await api.lora("other", visibility="public")

    async def names(**params):
        answer = await api.http.get(LORAS, params=params)
        assert answer.status_code == 200, answer.text
        return [lora["name"] for lora in answer.json()["loras"]], answer.json()["next_cursor"]

    assert (await names(name="STYLE"))[0] == [lora["name"] for lora in reversed(made)]
    assert (await names(visibility="public"))[0] == ["other"]
    assert (await names(base="sdxl"))[0] == []
    first, cursor = await names(limit=4)
    rest, end = await names(limit=4, cursor=cursor)
    assert (len(first), rest, end) == (4, ["style 1", "style 0"], None)
    for params in (
        {"limit": 0},
        {"limit": 201},
        {"cursor": "x"},
        {"base": "flux"},
        {"mine": "no?"},
    ):
        refused = await api.http.get(LORAS, params=params)
        assert refused.status_code == 422
        assert next(iter(params)) in message(refused)


async def test_others_see_a_public_one_and_may_not_change_it_and_a_private_one_is_not_there(
    keyed, small_file
):
    private, public = await keyed.lora("mine"), await keyed.lora("ours", visibility="public")
    listed = (await keyed.http.get(LORAS, headers=BOB)).json()["loras"]
    assert [(lora["name"], lora["mine"]) for lora in listed] == [("ours", False)]
    assert (await keyed.http.get(LORAS, params={"mine": True}, headers=BOB)).json()["loras"] == []
    for method, path, lora, options in [
        ("GET", "", private, {}),
        ("GET", "/file", private, {}),
        ("PATCH", "", private, {"json": {"name": "x"}}),
        ("PATCH", "", public, {"json": {"name": "x"}}),
        ("DELETE", "", private, {}),
        ("DELETE", "", public, {}),
    ]:
        answer = await keyed.http.request(
            method, f"{LORAS}/{lora['id']}{path}", headers=BOB, **options
        )
        assert answer.status_code == 404, (method, path)
        nowhere = await keyed.http.request(method, f"{LORAS}/{NO_LORA}{path}", **options)
        assert answer.json() == json.loads(nowhere.text.replace(NO_LORA, lora["id"]))
    assert (await keyed.http.get(f"{LORAS}/{public['id']}/file", headers=BOB)).status_code == 200
    for lora in ({"name": "mine"}, {"id": private["id"]}):
        answer = await keyed.http.post(
            "/api/v1/generate", json={"prompt": "x", "lora": [lora]}, headers=BOB
        )
        assert answer.status_code == 422
        assert "near it" not in answer.text
    assert (await importing(keyed, small_file, name="ours", headers=BOB)).json()["mine"]


@pytest.mark.parametrize("lora_id", [NO_LORA, "x", "..%2f..%2fetc", "%00", "9" * 5000])
async def test_what_is_no_lora_is_404_for_every_route(api, lora_id):
    for method, path, options in [
        ("GET", "", {}), ("GET", "/file", {}), ("DELETE", "", {}), ("PATCH", "", {"json": {}}),
    ]:  # fmt: skip
        answer = await api.http.request(method, f"{LORAS}/{lora_id}{path}", **options)
        assert answer.status_code == 404


async def test_a_request_keeps_what_it_named_whatever_happens_to_that_later(api):
    lora = await api.lora("ink")
    fields = {"prompt": "a <lora:Ink:0.7:0.2>fox", "lora": [{"id": lora["id"], "weight": -1}]}
    task_id = await api.submit(**fields)
    await api.lora("ink")
    await api.http.delete(f"{LORAS}/{lora['id']}")
    claimed = await api.claim()
    assert claimed.task.id == task_id
    stored = claimed.task.input
    assert stored["prompt"] == fields["prompt"]
    assert [
        (each["id"], each["version"], each["sha256"], each["weight"], each["text_weight"])
        for each in stored["loras"]
    ] == [
        (lora["id"], 1, lora["sha256"], -1.0, -1.0),
        (lora["id"], 1, lora["sha256"], 0.7, 0.2),
    ]
    assert (await api.task(task_id))["prompt"] == fields["prompt"]


@pytest.mark.parametrize(
    ("fields", "named", "told"),
    [
        ({"lora": [{"name": "inc"}]}, "body.lora", "near it: 'ink'"),
        ({"prompt": "<lora:inc>"}, "body.lora", "near it: 'ink'"),
        ({"lora": [{"name": "zzz"}]}, "body.lora", "given 'zzz'"),
        ({"lora": [{"id": NO_LORA}]}, "body.lora", NO_LORA),
        ({"lora": [{"name": "ink", "version": 2}]}, "body.lora", "versions 1 to 1, given 2"),
        ({"lora": [{"name": "ink", "version": 0}]}, "body.lora.0.version", "1"),
        ({"lora": [{"name": "ink", "weight": 4.5}]}, "body.lora", "-4 to 4, given 4.5"),
        ({"lora": [{"name": "ink", "weight": "strong"}]}, "body.lora.0.weight", "number"),
        ({"lora": [{"name": "ink", "weight": True}]}, "body.lora.0.weight", "number"),
        ({"lora": [{"name": "ink", "text_encoder_weight": "1e999"}]}, "body.lora.0.text", "finite"),
        ({"lora": [{"weight": 1}]}, "body.lora.0", "id or name"),
        ({"lora": [{"name": "a\0"}]}, "body.lora.0.name", "NUL"),
        ({"lora": [{"name": "ink"}] * 9}, "body.lora", "at most 8 LoRAs, given 9"),
        ({"lora": {"name": "ink"}}, "body.lora", "list"),
        ({"prompt": "<lora:ink:big>"}, "body.prompt", "<lora:name:weight>"),
        ({"prompt": "<lora:ink:9>"}, "body.lora", "-4 to 4, given 9"),
    ],
)
async def test_a_bad_lora_of_a_request_is_named_and_creates_nothing(api, fields, named, told):
    await api.lora("ink")
    answer = await api.http.post("/api/v1/generate", json={"prompt": "a fox"} | fields)
    assert answer.status_code == 422, answer.text
    assert message(answer).startswith(named)
    assert told in message(answer)
    assert (await api.http.get("/api/v1/tasks")).json()["tasks"] == []


async def test_a_repeated_request_holds_nothing_once_more(api):
    await api.lora("ink")
    body = {"prompt": "<lora:ink>", "idempotency_key": "k"}
    ids = {await api.submit(**body) for _ in range(3)}
    assert len(ids) == 1
    assert [task for task, _ in await api.services.loras.registry.store.holds()] == [*ids]


async def test_a_repeated_request_finds_its_task_though_its_lora_was_deleted(api):
    lora = await api.lora("ink")
    body = {"lora": [{"name": "ink"}], "idempotency_key": "k"}
    first = await api.submit(**body)
    await api.http.delete(f"{LORAS}/{lora['id']}")
    assert await api.submit(**body) == first


async def test_a_deleted_one_s_file_goes_when_the_task_that_named_it_has_ended(api):
    lora = await api.lora("ink")
    await api.submit(prompt="<lora:ink>")
    claimed = await api.claim()
    assert (await api.http.delete(f"{LORAS}/{lora['id']}")).json()["id"] == lora["id"]
    (key,) = {each["key"] for each in claimed.task.input["loras"]}
    await Upkeep(api.services).sweep()
    assert await api.services.objects.exists(key)
    await api.finish(claimed)
    await Upkeep(api.services).sweep()
    assert not await api.services.objects.exists(key)


async def test_imports_and_deletes_at_once_leave_one_or_none(api, lora_file):
    async def come_and_go(i):
        lora = (await importing(api, lora_file(), name="ink")).json()
        if i % 2:
            await api.http.delete(f"{LORAS}/{lora['id']}")

    await asyncio.gather(*(come_and_go(i) for i in range(10)))
    await Upkeep(api.services).sweep()
    listed = (await api.http.get(LORAS)).json()["loras"]
    assert len(listed) <= 1
    if listed:
        file = await api.http.get(f"{LORAS}/{listed[0]['id']}/file")
        assert file.status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", IMPORT), ("GET", LORAS), ("GET", f"{LORAS}/{NO_LORA}"),
     ("PATCH", f"{LORAS}/{NO_LORA}"), ("DELETE", f"{LORAS}/{NO_LORA}"),
     ("GET", f"{LORAS}/{NO_LORA}/file")],
)  # fmt: skip
async def test_a_key_is_asked_for_before_anything_is_read(open_api, method, path):
    api = await open_api(api=KEYS)

    async def never():
        raise AssertionError("the body was read")
        yield b""

    answer = await api.http.request(method, path, content=never())
    assert answer.status_code == 401
