"""Prompts that are translated on their way, by servers that speak the services' protocols."""

import asyncio
import hashlib
import hmac
import json
from urllib.parse import parse_qs

import pytest

WORDS = {"猫": "a cat", "丑": "ugly"}


class Service:
    """Answers every request by `answer(head, body)`: a status and JSON, or None for never."""

    def __init__(self):
        self.requests = []
        self.answer = libretranslate

    async def connected(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((lines[0], headers, body))
        if (answer := self.answer(headers, body)) is not None:
            status, found = answer
            data = json.dumps(found).encode()
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n"
            writer.write(head.encode() + data)
        else:
            await reader.read()
        writer.close()


def translated(text):
    return "\n".join(WORDS[line] for line in text.split("\n"))


def libretranslate(headers, body):
    asked = json.loads(body)
    assert asked == {"q": asked["q"], "source": "zh", "target": "en", "format": "text",
                     "api_key": "s3cret"}  # fmt: skip
    return 200, {"translatedText": translated(asked["q"])}


def alibaba(headers, body):
    """Judges the signature as the service does, from what was received."""
    scheme, _, rest = headers["authorization"].partition(" ")
    given = dict(part.split("=", 1) for part in rest.split(","))
    assert (scheme, given["Credential"]) == ("ACS3-HMAC-SHA256", "id")
    assert headers["x-acs-content-sha256"] == hashlib.sha256(body).hexdigest()
    names = given["SignedHeaders"].split(";")
    assert {"host", "x-acs-action", "x-acs-version", "x-acs-date"} <= set(names)
    lines = "".join(f"{name}:{headers[name]}\n" for name in names)
    canonical = f"POST\n/\n\n{lines}\n{given['SignedHeaders']}\n{headers['x-acs-content-sha256']}"
    text = f"{scheme}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    wanted = hmac.new(b"s3cret", text.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(given["Signature"], wanted):
        return 400, {"Code": "SignatureDoesNotMatch", "Message": "no"}
    asked = {name: values[0] for name, values in parse_qs(body.decode()).items()}
    assert (asked["SourceLanguage"], asked["TargetLanguage"]) == ("zh", "en")
    found = {"Translated": translated(asked["SourceText"]), "WordCount": "1"}
    return 200, {"Code": "200", "RequestId": "x", "Data": found}


@pytest.fixture
async def service():
    """One on a loopback address; `settings` lead there."""
    found = Service()
    server = await asyncio.start_server(found.connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found.settings = {
        "backend": "libretranslate", "url": f"http://127.0.0.1:{port}", "source": "zh",
        "api_key": "s3cret", "timeout_s": 30,
    }  # fmt: skip
    yield found
    server.close()


async def generated(api, **fields):
    body = {"prompt": "猫", "negative_prompt": "丑", "translate": True} | fields
    return await api.http.post("/api/v1/generate", json=body)


@pytest.mark.parametrize("backend", ["libretranslate", "alibaba"])
async def test_a_translated_task_is_drawn_from_the_translation_and_keeps_both(
    open_api, service, backend
):
    settings = service.settings | {"backend": backend}
    if backend == "alibaba":
        service.answer = alibaba
        settings |= {"access_key_id": "id", "access_key_secret": "s3cret", "api_key": None}
    api = await open_api(translation=settings)
    task_id = (await generated(api)).json()["task_id"]
    task = await api.task(task_id)
    assert (task["prompt"], task["original_prompt"]) == ("a cat", "猫")
    stored = (await api.services.store.get(task_id)).input
    assert (stored["prompt"], stored["negative_prompt"]) == ("a cat", "ugly")
    assert stored["originals"] == ["猫", "丑"]
    await api.finish(await api.claim())
    image = (await api.http.get(f"/api/v1/images/{task_id}.0")).json()
    assert (image["prompt"], image["original_prompt"]) == ("a cat", "猫")
    assert (image["negative_prompt"], image["original_negative_prompt"]) == ("ugly", "丑")
    assert len(service.requests) == 2


async def test_openai_s_clients_are_told_the_translation(open_api, service):
    api = await open_api(translation=service.settings)
    body = {"prompt": "猫", "negative_prompt": "丑", "translate": True, "response_format": "url"}
    answering = asyncio.create_task(api.http.post("/v1/images/generations", json=body))
    while not (await api.services.store.depth(api.settings.default_model)).queued:
        assert not answering.done()
        await asyncio.sleep(0.02)
    await api.finish(await api.claim())
    (image,) = (await answering).json()["data"]
    assert image["revised_prompt"] == "a cat"


async def test_prompts_of_a_second_pass_are_translated_too(open_api, service):
    api = await open_api(translation=service.settings)
    hires = {"width": 128, "height": 128, "strength": 0.5, "prompt": "猫", "negative_prompt": "丑"}
    webui = {"sampler": "Euler", "hires": hires}
    task_id = (await generated(api, width=64, height=64, webui=webui)).json()["task_id"]
    stored = (await api.services.store.get(task_id)).input["webui"]["hires"]
    assert (stored["prompt"], stored["negative_prompt"]) == ("a cat", "ugly")
    del hires["negative_prompt"]
    task_id = (await generated(api, width=64, height=64, webui=webui)).json()["task_id"]
    stored = (await api.services.store.get(task_id)).input["webui"]["hires"]
    assert (stored["prompt"], stored["negative_prompt"]) == ("a cat", None)


async def test_only_those_who_ask_for_it_are_translated(open_api, service):
    api = await open_api(translation=service.settings)
    task = await api.task((await generated(api, translate=False)).json()["task_id"])
    assert (task["prompt"], task["original_prompt"]) == ("猫", None)
    assert service.requests == []


async def test_a_style_is_put_on_the_translation(open_api, service, tmp_path):
    styles_file = tmp_path / "styles.csv"
    styles_file.write_text("name,prompt,negative_prompt\nink,{prompt} in ink,blurry\n")
    api = await open_api(translation=service.settings, styles_file=styles_file)
    task = await api.task((await generated(api, styles=["ink"])).json()["task_id"])
    assert (task["prompt"], task["original_prompt"]) == ("a cat in ink", "猫")
    stored = (await api.services.store.get(task["task_id"])).input
    assert stored["negative_prompt"] == "ugly, blurry"


async def test_a_repeated_request_finds_its_task(open_api, service):
    api = await open_api(translation=service.settings)
    first, second = [await generated(api, idempotency_key="k") for _ in range(2)]
    assert first.json() == second.json()
    assert len(service.requests) == 2, "one for each prompt of the first"
    other = await generated(api, idempotency_key="k", translate=False)
    assert other.headers["x-error-code"] == "idempotency_conflict"


@pytest.mark.parametrize(
    "answer",
    [lambda *_: (500, {}), lambda *_: (302, {}), lambda *_: (200, {}), lambda *_: None],
    ids=["fault", "redirect", "empty", "silence"],
)
async def test_where_there_is_no_translation_nothing_is_drawn(open_api, service, answer, caplog):
    service.answer = answer
    api = await open_api(translation=service.settings | {"timeout_s": 0.5})
    refused = await generated(api)
    assert (refused.status_code, refused.headers["x-error-code"]) == (
        503, "translation_unavailable",
    )  # fmt: skip
    assert refused.headers["retry-after"] == "5"
    assert (await api.http.get("/api/v1/tasks")).json()["tasks"] == []
    assert "s3cret" not in caplog.text + refused.text


async def test_without_a_translator_asking_for_one_is_refused(api):
    answer = await api.http.post("/v1/images/generations", json={"prompt": "猫", "translate": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "translate")
    answer = await generated(api)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "translate"]


async def test_a_schedule_translates_each_time(open_api, service):
    api = await open_api(translation=service.settings)
    request = {"prompt": "猫", "translate": True}
    answer = await api.http.post("/api/v1/schedules", json={"cron": "@daily", "request": request})
    assert answer.json()["request"] == request
    assert service.requests == []
