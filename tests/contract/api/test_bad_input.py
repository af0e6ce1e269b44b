"""Bad requests: each is refused with a 4xx that names its field, and the service goes on."""

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

GENERATE = "/api/v1/generate"
JSON = {"content-type": "application/json"}
NO_TASK = "00000000-0000-4000-8000-000000000000"

Case = tuple[str, str, dict[str, Any], int, str]
"""Method, path, options, status, and what the answer must name."""


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def claimed_png(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG of one bit a pixel, all the same: few bytes, many pixels."""
    row = b"\0" * (1 + (width + 7) // 8)
    packed = zlib.compress(row * height, 9) if width * height < 10**8 else b""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def text_bomb() -> bytes:
    return claimed_png(64, 64, chunk(b"zTXt", b"note\0\0" + zlib.compress(b"\0" * 100_000_000, 9)))


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def field(name: str, value: Any) -> Case:
    return ("POST", GENERATE, {"json": {"prompt": "a fox", name: value}}, 422, name)


def raw(content: bytes, named: str, status: int = 422, **headers: str) -> Case:
    return ("POST", GENERATE, {"content": content, "headers": JSON | headers}, status, named)


FIELDS: list[Case] = [
    field("prompt", None),
    field("prompt", 7),
    field("prompt", ["a fox"]),
    field("prompt", {"text": "a fox"}),
    field("prompt", "x" * 4001),
    field("prompt", "a\0fox"),
    field("negative_prompt", False),
    field("negative_prompt", "x" * 4001),
    field("negative_prompt", "\0"),
    field("width", "wide"),
    field("width", 512.5),
    field("width", True),
    field("width", -512),
    field("width", 0),
    field("width", 56),
    field("width", 513),
    field("width", 20000),
    field("width", 10**400),
    field("width", [512]),
    field("height", "tall"),
    field("height", 8),
    field("height", 2056),
    field("height", -(10**30)),
    field("num_images", 0),
    field("num_images", 11),
    field("num_images", -1),
    field("num_images", "many"),
    field("num_images", 1.5),
    field("num_inference_steps", 0),
    field("num_inference_steps", 151),
    field("num_inference_steps", "30 steps"),
    field("num_inference_steps", True),
    field("guidance_scale", -0.1),
    field("guidance_scale", 30.1),
    field("guidance_scale", "high"),
    field("guidance_scale", 10**400),
    field("guidance_scale", "NaN"),
    field("guidance_scale", "1e999"),
    field("strength", 1.01),
    field("strength", -0.01),
    field("strength", "strong"),
    field("scheduler", "DPM++ 2M Karras"),
    field("scheduler", ""),
    field("scheduler", 3),
    field("scheduler", "../../etc/passwd"),
    field("seed", -1),
    field("seed", 2**63),
    field("seed", 10**100),
    field("seed", 1.5),
    field("seed", "lucky"),
    field("output_format", "gif"),
    field("output_format", "PNG "),
    field("output_format", 1),
    field("callback_url", "ftp://example.com/x"),
    field("callback_url", "not a url"),
    field("callback_url", "http://127.0.0.1/hook"),
    field("callback_url", "http://[::1]/hook"),
    field("callback_url", "http://2130706433/hook"),
    field("callback_url", "http://169.254.169.254/latest/meta-data"),
    field("callback_url", "file:///etc/passwd"),
    field("callback_url", "http://user@example.com\r\nX: y/"),
    field("callback_url", "http://example.com/" + "x" * 3000),
    field("callback_url", 5),
    field("priority", 101),
    field("priority", -101),
    field("priority", "high"),
    field("delay_s", -1),
    field("delay_s", 10**9),
    field("delay_s", "soon"),
    field("model", "gpt"),
    field("model", "../embedded"),
    field("idempotency_key", ""),
    field("idempotency_key", "k" * 256),
    field("schedule", "Karras"),
    (
        "POST",
        GENERATE,
        {"json": {"prompt": "", "scheduler": "LCMScheduler", "schedule": "karras"}},
        422,
        "schedule must be one of default for LCMScheduler",
    ),
    field("eta", 1.5),
    field("eta", "inf"),
    field("prompt_weighting", "perhaps"),
    field("long_prompt", 7),
    field("clip_skip", -1),
    field("clip_skip", 12),
    field("clip_skip", True),
    field("guidance_rescale", 1.1),
    field("guidance_rescale", "NaN"),
    field("guidance_interval", [0.5]),
    field("guidance_interval", [0.8, 0.2]),
    field("guidance_interval", [-0.1, 0.5]),
    field("guidance_interval", [0, "end"]),
    field("deep_cache", 0),
    field("deep_cache", 11),
    field("tiny_decode", True),  # this model has no tiny VAE
    field("tiling", "perhaps"),
    field("output_quality", 0),
    field("output_quality", 101),
    field("webui", {"sampler": "Karras"}),
    field("webui", {"sampler": "Euler", "scheduler": "karras"}),
    field("webui", {"sampler": "Euler", "hires": {"width": 128}}),
    field("mask_image", url(b"this is not a picture")),
    field("mask_image", url(claimed_png(128, 128))),  # with no initial picture
    field("lora", [{"name": "watercolour", "scale": 0.8}]),
    field("lora", "watercolour"),
    field("owner", "someone else"),
    field("status", "completed"),
    field("negativ_prompt", "a slip of the pen"),
    field("__proto__", {}),
]

IMAGES: list[Case] = [
    field("init_image", ""),
    field("init_image", 5),
    field("init_image", "data:image/png;base64,"),
    field("init_image", "data:image/png;base64,%%%%"),
    field("init_image", "data:image/png;base64,iVBORw0KGgoAAAANS..."),
    field("init_image", "data:text/html;base64,PGI+aGk8L2I+"),
    field("init_image", "http://127.0.0.1/secret.png"),
    field("init_image", url(b"this is not a picture")),
    field("init_image", url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml")),
    field("init_image", url(b"GIF89a" + b"\1\0\1\0\0\0\0" * 4)),
    field("init_image", url(b"\x89PNG\r\n\x1a\n" + b"\0" * 64)),
    field("init_image", url(claimed_png(1, 1))),
    field("init_image", url(claimed_png(64, 63))),
    field("init_image", url(claimed_png(8000, 8000))),
    field("init_image", url(claimed_png(20000, 20000))),
    field("init_image", url(claimed_png(100_000, 100))),
    field("init_image", url(claimed_png(16000, 64))),
    field("init_image", url(claimed_png(2**31 - 1, 2**31 - 1))),
    field("init_image", url(claimed_png(200, 200)[:-30])),
    field("init_image", url(text_bomb())),
]

BODIES: list[Case] = [
    raw(b"", "body"),
    raw(b"{", "JSON"),
    raw(b"null", "body"),
    raw(b"[]", "body"),
    raw(b'"a fox"', "body"),
    raw(b"{}", "prompt"),
    raw(b'{"prompt": "a fox",}', "JSON"),
    raw(b'{"prompt": "\xff\xfe"}', "UTF-8"),
    raw(b'{"prompt": "\xed\xa0\x80"}', "UTF-8"),
    raw(b'{"prompt": "\\ud800"}', "prompt"),
    raw(b'{"prompt": "x", "model": "\\udfff"}', "model"),
    raw(b'{"prompt": "x", "\\ud800": 1}', "body"),
    raw(b'{"prompt": "x", "prompt": "y"}', "prompt"),
    raw(b'{"prompt": "x", "guidance_scale": NaN}', "NaN"),
    raw(b'{"prompt": "x", "guidance_scale": Infinity}', "Infinity"),
    raw(b'{"prompt": "x", "guidance_scale": 1e999}', "guidance_scale"),
    raw(b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "JSON"),
    raw(b'{"prompt": "x", "lora": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested"),
    raw(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested"),
    raw(b"[" + b"1," * 100_000 + b"1]", "values"),
    raw(b'\xef\xbb\xbf{"prompt": "a fox"}', "JSON"),
    raw(b"x" * 2_000_000, "1048576", 413),
    ("POST", GENERATE, {"data": {"prompt": "a fox"}}, 415, "Content-Type"),
    ("POST", GENERATE, {"files": {"prompt": b"a fox"}}, 415, "Content-Type"),
    (
        "POST",
        GENERATE,
        {"content": b'{"prompt":"x"}', "headers": {"content-type": "text/plain"}},
        415,
        "Content-Type",
    ),
    ("POST", GENERATE, {"content": b'{"prompt":"x"}'}, 415, "Content-Type"),
]

ROUTES: list[Case] = [
    ("GET", GENERATE, {}, 405, "Method"),
    ("PUT", GENERATE, {"json": {"prompt": "x"}}, 405, "Method"),
    ("PATCH", f"/api/v1/tasks/{NO_TASK}", {"json": {}}, 405, "Method"),
    ("POST", "/health", {"json": {}}, 405, "Method"),
    ("OPTIONS", GENERATE, {}, 405, "Method"),
    ("GET", "/api/v1/nothing", {}, 404, "Not Found"),
    ("GET", "/api/v2/generate", {}, 404, "Not Found"),
    ("GET", f"/api/v1/tasks/{NO_TASK}", {}, 404, "任务不存在"),
    ("GET", "/api/v1/tasks/not-an-id", {}, 404, "任务不存在"),
    ("GET", "/api/v1/tasks/..%2f..%2fetc", {}, 404, "Not Found"),
    ("GET", "/api/v1/tasks/%00", {}, 404, "任务不存在"),
    ("GET", "/api/v1/tasks/%ff", {}, 404, "任务不存在"),
    ("GET", "/api/v1/tasks/" + "9" * 5000, {}, 404, "任务不存在"),
    ("DELETE", f"/api/v1/tasks/{NO_TASK}", {}, 404, "任务不存在"),
    ("GET", f"/api/v1/tasks/{NO_TASK}/events", {}, 404, "任务不存在"),
    ("POST", f"/api/v1/tasks/{NO_TASK}/front", {}, 404, "任务不存在"),
    ("POST", f"/api/v1/tasks/{NO_TASK}/priority", {"json": {"priority": 1}}, 404, "任务不存在"),
    ("POST", f"/api/v1/tasks/{NO_TASK}/priority", {"json": {}}, 422, "priority"),
    ("POST", f"/api/v1/tasks/{NO_TASK}/priority", {"json": {"priority": 1e9}}, 422, "priority"),
    ("POST", f"/api/v1/tasks/{NO_TASK}/priority", {"content": b"1"}, 415, "Content-Type"),
    ("GET", "/api/v1/tasks?status=succeeded", {}, 422, "status"),
    ("GET", "/api/v1/tasks?limit=0", {}, 422, "limit"),
    ("GET", "/api/v1/tasks?limit=201", {}, 422, "limit"),
    ("GET", "/api/v1/tasks?limit=all", {}, 422, "limit"),
    ("GET", "/api/v1/tasks?cursor=../1", {}, 422, "cursor"),
    ("GET", "/api/v1/tasks?cursor=9.1", {}, 422, "cursor"),
    ("GET", "/api/v1/tasks?cursor=0.%D9%A3", {}, 422, "cursor"),
    ("GET", "/api/v1/tasks?cursor=" + "1" * 3000, {}, 422, "cursor"),
    ("GET", "/files/token/results/x.png", {}, 404, "Not Found"),
    ("GET", "/files/%ff/%ff", {}, 404, "Not Found"),
    ("GET", "/files/a/..%2f..%2fetc%2fpasswd", {}, 404, "Not Found"),
    ("DELETE", "/files/token/results/x.png", {}, 405, "Method"),
    ("GET", "/docs/assets/..%2f..%2fapp.py", {}, 404, "Not Found"),
    (
        "POST",
        GENERATE,
        {"json": {"prompt": "x"}, "headers": {"idempotency-key": "k" * 300}},
        422,
        "idempotency",
    ),
]

CASES = FIELDS + IMAGES + BODIES + ROUTES


@pytest.fixture
async def small(open_api: Callable[..., Any]) -> Any:
    return await open_api(http={"max_body_bytes": 2**20}, limits={"max_input_pixels": 2_000_000})


async def test_every_bad_request_is_a_4xx_that_names_its_fault_and_creates_nothing(small):
    assert len(CASES) >= 60
    wrong = []
    for method, path, options, status, named in CASES:
        answer = await small.http.request(method, path, **options)
        shown = f"{method} {path[:80]} {str(options)[:90]} -> {answer.status_code}"
        if answer.status_code != status or named not in where(answer.json()):
            wrong.append(f"{shown} {answer.text[:200]}, wanted {status} and {named}")
    assert not wrong, "\n".join(wrong)
    assert (await small.http.get("/api/v1/tasks")).json()["tasks"] == []
    await small.submit()


def where(body: dict[str, Any]) -> str:
    """Where the answer says the fault is: not in what it repeats of the request."""
    detail = body["detail"]
    if isinstance(detail, str):
        return detail
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))} {each['type']}: {each['msg'].partition(', given')[0]}"
        for each in detail
    )


async def test_refusals_have_the_documented_shape(small):
    answer = await small.http.post(GENERATE, json={})
    assert answer.json() == {
        "detail": [
            {"loc": ["body", "prompt"], "msg": "field required", "type": "value_error.missing"}
        ]
    }
    missing = await small.http.get(f"/api/v1/tasks/{NO_TASK}")
    assert missing.json() == {"detail": "任务不存在"}


@pytest.mark.parametrize(
    ("body", "limit", "given"),
    [
        ({"num_images": 11}, "10", "11"),
        ({"width": 4096}, "2048", "4096"),
        ({"width": 2048, "height": 2048}, "1048576", "4194304"),
        ({"num_inference_steps": 500}, "150", "500"),
        ({"guidance_scale": 31.5}, "30", "31.5"),
        ({"strength": 1.5}, "1", "1.5"),
        ({"prompt": "x" * 5000}, "4000", "5000"),
        ({"scheduler": "Euler"}, "EulerDiscreteScheduler", "Euler"),
        ({"priority": 1000}, "100", "1000"),
        ({"model": "sdxl"}, "embedded", "sdxl"),
    ],
)
async def test_a_refusal_says_the_limit_and_the_given_value(small, body, limit, given):
    answer = await small.http.post(GENERATE, json={"prompt": "a fox"} | body)
    (problem,) = answer.json()["detail"]
    assert limit in problem["msg"]
    assert given in problem["msg"]


async def test_a_refusal_never_repeats_a_long_value(small):
    for name in ("scheduler", "callback_url", "x" * 10_000):
        answer = await small.http.post(GENERATE, json={"prompt": "x", name: "y" * 100_000})
        assert len(answer.content) < 1000


async def test_a_body_that_grows_past_the_limit_without_saying_so_is_cut_off(small):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 65536
            yield b"x" * 65536

    answer = await small.http.post(GENERATE, content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "the request body must be at most 1048576 bytes"
    assert sent < 2 * 2**20


async def test_a_body_declared_too_long_is_refused_before_it_is_read(small):
    async def never():
        raise AssertionError("the body was read")
        yield b""

    for length in ("1048577", "9" * 30, "9" * 5000):
        headers = JSON | {"content-length": length}
        answer = await small.http.post(GENERATE, content=never(), headers=headers)
        assert answer.status_code == 413


async def test_bad_and_good_requests_at_once_do_not_disturb_each_other(small):
    bad = [small.http.request(case[0], case[1], **case[2]) for case in IMAGES]
    good = [small.submit(prompt=f"fox {i}") for i in range(20)]
    answers, ids = await asyncio.gather(asyncio.gather(*bad), asyncio.gather(*good))
    assert {answer.status_code for answer in answers} == {422}
    assert len(set(ids)) == 20


async def test_an_image_to_image_refusal_leaves_no_blob_behind(small, png, data_url):
    body = {"prompt": "x", "init_image": data_url(png()), "num_images": 99}
    answer = await small.http.post(GENERATE, json=body)
    assert answer.status_code == 422
    assert await small.services.objects.sweep("inputs/", -1) == 0


def test_the_table_is_all_different():
    assert len({json.dumps(case, default=repr) for case in CASES}) == len(CASES)


async def test_many_unknown_fields_are_not_answered_one_by_one(open_api):
    api = await open_api()
    body = {"prompt": "x"} | {f"k{i}": 0 for i in range(5000)}
    answer = await api.http.post(GENERATE, json=body)
    assert answer.status_code == 422
    assert "more than 100 keys" in answer.text
    assert len(answer.content) < 1000
