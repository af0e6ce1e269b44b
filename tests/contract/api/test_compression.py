"""JSON answers are compressed for those who accept it; nothing else is."""

import gzip

import httpx
import pytest
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from deployments.api.compression import MAX_BYTES, JsonGzip

LONG = {"text": "a fox " * 400}


async def through(response: Response, encoding: str = "gzip") -> tuple[httpx.Response, bytes]:
    """The answer as it is sent, and its body undecoded."""
    app = JsonGzip(response, min_bytes=1000)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost"
    ) as client:
        request = client.build_request("GET", "/", headers={"Accept-Encoding": encoding})
        answer = await client.send(request, stream=True)
        return answer, b"".join([chunk async for chunk in answer.aiter_raw()])


@pytest.mark.parametrize(
    ("encoding", "compressed"),
    [
        ("gzip", True), ("deflate, gzip;q=0.5", True), ("*", True), ("br, GZIP", True),
        ("", False), ("br", False), ("gzip;q=0", False), ("gzip;q=0.0, br", False),
        ("x-gzip", False),
    ],
)  # fmt: skip
async def test_an_answer_is_compressed_as_its_client_says(encoding, compressed):
    plain = JSONResponse(LONG).body
    answer, sent = await through(JSONResponse(LONG), encoding)
    assert (answer.headers.get("content-encoding") == "gzip") is compressed
    assert (gzip.decompress(sent) if compressed else sent) == plain
    assert int(answer.headers["content-length"]) == len(sent)
    assert answer.headers["vary"] == "Accept-Encoding"


async def pieces():
    for _ in range(3):
        yield b'{"text": "' + b"a fox " * 400 + b'"}'


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse({"text": "a fox"}),
        JSONResponse({"image": "A" * MAX_BYTES}),
        PlainTextResponse("a fox " * 400),
        Response(bytes(5000), media_type="image/png"),
        StreamingResponse(pieces(), media_type="text/event-stream"),
        StreamingResponse(pieces(), media_type="application/json"),
        JSONResponse(LONG, headers={"Content-Encoding": "br"}),
        Response(status_code=204),
    ],
    ids=["short", "picture", "text", "file", "events", "stream", "compressed", "empty"],
)
async def test_all_else_goes_through_as_it_is(response):
    answer, sent = await through(response)
    assert answer.headers.get("content-encoding") != "gzip"
    if hasattr(response, "body"):
        assert sent == response.body
    else:
        assert len(sent) == 3 * 2412


async def test_the_application_compresses_unless_it_is_told_not_to(open_api):
    for least, encoding in ((1000, "gzip"), (0, None)):
        api = await open_api(http={"gzip_min_bytes": least})
        answer = await api.http.get("/sdapi/v1/options", headers={"Accept-Encoding": "gzip"})
        assert answer.headers.get("content-encoding") == encoding
        assert answer.json()["emphasis"] == "Original"
