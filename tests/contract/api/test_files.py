"""GET /files: pictures of a local store at addresses that cannot be guessed."""

import pytest


@pytest.fixture
async def url(api):
    task_id = await api.submit()
    await api.finish(await api.claim())
    return (await api.task(task_id))["result_url"]


async def test_a_picture_is_served_inert_and_for_ever(api, url, png):
    answer = await api.http.get(url)
    assert answer.content == png()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == 'inline; filename="0.png"'
    assert "immutable" in answer.headers["cache-control"]
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_head_tells_the_length_and_sends_nothing(api, url, png):
    answer = await api.http.head(url)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(png())
    assert answer.content == b""


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=10-999999999999999999", slice(10, None)),
        ("bytes=-999999999999999999", slice(None)),
    ],
)
async def test_one_range_is_served(api, url, png, wanted, part):
    answer = await api.http.get(url, headers={"range": wanted})
    assert answer.status_code == 206
    assert answer.content == png()[part]
    start = len(png()) - len(png()[part]) if part.start is None or part.start < 0 else part.start
    end = start + len(answer.content) - 1
    assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(png())}"


@pytest.mark.parametrize("wanted", ["bytes=100000-", "bytes=100000-100001", "bytes=-0"])
async def test_a_range_past_the_end_is_416(api, url, png, wanted):
    answer = await api.http.get(url, headers={"range": wanted})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(png())}"


@pytest.mark.parametrize(
    "wanted",
    [
        "bytes=0-1,3-4", "bytes=" + ",".join(f"{i}-{i}" for i in range(10_000)), "bytes=-",
        "bytes=5-1", "lines=1-2", "bytes=a-b", "bytes=\u0661-", "", "bytes=" + "9" * 50 + "-",
    ],
)  # fmt: skip
async def test_many_ranges_or_none_that_can_be_read_give_the_whole(api, url, png, wanted):
    answer = await api.http.get(url, headers={"range": wanted.encode()})
    assert answer.status_code == 200
    assert answer.content == png()


async def test_without_its_token_nothing_of_the_store_shows(api, url):
    _, _, token, *key = url.removeprefix("http://").split("/")
    path = "/".join(key)
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for address in (
        f"/files/{wrong}/{path}",
        f"/files/{token}/{path}x",
        f"/files/{token}/results/%2e%2e/{path}",
        f"/files/{token}//{path}",
        f"/files/{token}/~url-secret",
        f"/files/{token}/",
        f"/files/{path}",
    ):
        answer = await api.http.get(address)
        assert answer.status_code == 404, address
        assert answer.json() == {"detail": "Not Found"}


async def test_a_good_token_of_a_removed_picture_is_404(api, url):
    await api.services.objects.delete(url.split("/", 5)[5])
    assert (await api.http.get(url)).status_code == 404
