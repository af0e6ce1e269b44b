"""The gallery's lists and datasets: pages, filters, bounds."""

import uuid

import pytest

from deployments.api.upkeep import Upkeep

MODELS, SETS = "/api/models", "/api/dataset"
NOWHERE = str(uuid.UUID(int=0))


@pytest.fixture
async def keyed(open_api):
    return await open_api(api={"keys": ["ann", "bob"]}, headers={"X-API-Key": "ann"})


async def made(api, path, body):
    answer = await api.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def listed(api, path=MODELS, **params):
    answer = await api.http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ids(api, path=MODELS, **params):
    return [each["id"] for each in (await listed(api, path, **params))["list"]]


async def test_a_list_is_paged_and_filtered_as_the_document_says(keyed):
    for number in range(5):
        await keyed.lora(
            f"l{number}", trigger_words=("fox,hen", "fox", "hen", "owl", "cow")[number]
        )
    await keyed.http.patch(f"{MODELS}/{(await ids(keyed))[0]}", json={"public": True})
    every = await ids(keyed)
    first, second = [await listed(keyed, page=n, pageSize=4) for n in (1, 2)]
    assert [first["page"], first["pageSize"], first["next"]] == [1, 4, True]
    assert [second["page"], second["next"]] == [2, False]
    assert [each["id"] for each in first["list"] + second["list"]] == every
    names = lambda params: ids_of(keyed, params)  # noqa: E731
    assert await names([("tag", "fox")]) == ["l1", "l0"]
    assert await names([("tag", "FOX,owl")]) == ["l3", "l1", "l0"]
    assert await names([("tag", "fox"), ("tag", "hen")]) == ["l0"]
    assert await names([("public", "true")]) == ["l4", "embedded"]
    assert await names([("public", "false")]) == ["l3", "l2", "l1", "l0"]
    owner = first["list"][0]["user_id"]
    assert await names([("user", owner), ("tag", "cow")]) == ["l4"]
    assert await names([("user_id", f"{owner},nobody")]) == ["l4", "l3", "l2", "l1", "l0"]
    assert await names([("user", "nobody")]) == []


async def ids_of(api, params):
    answer = await api.http.get(MODELS, params=params)
    return [each["name"] for each in answer.json()["list"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("page=0", "page: Input should be greater than or equal to 1"),
        ("pageSize=201", "pageSize: Input should be less than or equal to 200"),
        (
            "page=1000&pageSize=100",
            "page: (page - 1) x pageSize must be at most 10000, given 99900",
        ),
        ("like=7", "like: unknown field"),
        ("public=maybe", "public: Input should be a valid boolean"),
    ],
)
async def test_a_query_that_is_not_heeded_is_refused(api, query, expected):
    answer = await api.http.get(f"{MODELS}?{query}")
    assert answer.status_code == 422
    (entry,) = answer.json()["detail"]
    assert entry["loc"][0] == "query"
    assert expected in f"{entry['loc'][1]}: {entry['msg']}"


async def test_datasets_are_made_changed_listed_and_deleted_by_their_owner(keyed):
    first = await made(
        keyed, SETS, {"name": "walks", "data": {"oss": ["https://example.com/1.png"]}}
    )
    second = await made(keyed, SETS, {"name": "talks", "data": {}})
    assert await ids(keyed, SETS) == [second["id"], first["id"]]
    assert (await listed(keyed, SETS, pageSize=1))["next"] is True
    url = f"{SETS}/{first['id']}"
    image = f"{NOWHERE}.1"
    changes = {"name": "long walks", "data": {"images": [image]}}
    changed = (await keyed.http.patch(url, json=changes)).json()
    assert (changed["name"], changed["data"]["images"], changed["data"]["oss"]) == (
        "long walks", [image], []
    )  # fmt: skip
    assert (await keyed.http.get(url)).json() == changed
    for method, options in (("GET", {}), ("DELETE", {}), ("PATCH", {"json": {"name": "x"}})):
        answer = await keyed.http.request(method, url, headers={"X-API-Key": "bob"}, **options)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "draft_not_found")
    assert (await keyed.http.delete(url)).json()["name"] == "long walks"
    assert await ids(keyed, SETS) == [second["id"]]
    refused = await keyed.http.post(SETS, json={"name": "x", "data": {"choices": [NOWHERE]}})
    assert refused.json()["detail"][0]["msg"].startswith("unknown field")


async def test_drafts_are_bounded_by_number_and_by_age(open_api, redis):
    api = await open_api(limits={"max_drafts": 2})
    for path, body in ((MODELS, {"name": "ink"}), (SETS, {"name": "walks", "data": {}})):
        for _ in range(2):
            last = await made(api, path, body)
        answer = await api.http.post(path, json=body)
        assert (answer.status_code, answer.headers["x-error-code"]) == (409, "too_many_drafts")
        assert "You have 2" in answer.json()["detail"]
    await Upkeep(api.services).sweep()
    assert len(await ids(api, SETS)) == 2
    ages = f"{{{api.settings.tasks.key_prefix}}}:draft_ages"
    await redis.zadd(ages, {f"dataset:{last['id']}": 1, "nonsense": 1})
    await Upkeep(api.services).sweep()
    assert len(await ids(api, SETS)) == 1
    assert len(await ids(api)) == 3
    assert await redis.zcard(ages) == 3


async def test_a_draft_that_someone_else_wrote_over_breaks_no_list(api, redis):
    first, second = [await made(api, MODELS, {"name": name}) for name in "ab"]
    key = f"{{{api.settings.tasks.key_prefix}}}:draft:model:{first['id']}"
    await redis.hset(key, "body", "nonsense")
    assert await ids(api) == [second["id"], "embedded"]
    await redis.delete(key)
    await redis.set(key, "not a hash")
    assert await ids(api) == [second["id"], "embedded"]
    assert (await api.http.get(f"{MODELS}/{first['id']}")).status_code == 404
