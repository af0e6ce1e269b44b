"""/docs, /redoc and /openapi.json: complete, true, and nobody else is asked for anything."""

import re
from typing import Any

import jsonschema
import pytest

from deployments.api.docs import ASSETS
from deployments.api.native.schema import GenerateBody

GALLERY = {
    "POST /api/models",
    "GET /api/models",
    "GET /api/models/{model_id}",
    "PATCH /api/models/{model_id}",
    "DELETE /api/models/{model_id}",
    "POST /api/dataset",
    "GET /api/dataset",
    "GET /api/dataset/{dataset_id}",
    "PATCH /api/dataset/{dataset_id}",
    "DELETE /api/dataset/{dataset_id}",
    "POST /api/tasks",
    "GET /api/tasks",
    "GET /api/tasks/{task_id}",
    "PATCH /api/tasks/{task_id}",
    "DELETE /api/tasks/{task_id}",
    "GET /api/images",
    "GET /api/images/{image_id}",
}


@pytest.fixture
async def schema(open_api) -> dict[str, Any]:
    api = await open_api(api={"keys": ["k"], "key_header": "X-My-Key"})
    return (await api.http.get("/openapi.json")).json()


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_a_page_asks_this_host_only_and_all_it_asks_for_is_there(api, page):
    answer = await api.http.get(page)
    assert answer.headers["content-type"].startswith("text/html")
    assert "//" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search("https?:", answer.headers["content-security-policy"])
    links = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    local = [link for link in links if not link.startswith("data:")]
    assert len(local) >= 2
    for link in local:
        assert (await api.http.get(f"/{link}")).status_code == 200, link


async def test_assets_are_served_with_fixed_types(api):
    for name, (_, kind) in ASSETS.items():
        answer = await api.http.get(f"/docs/assets/{name}")
        assert answer.headers["content-type"].split(";")[0] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert len(answer.content) > 50


def operations(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in schema["paths"].items()
        for method, operation in item.items()
    ]


def examples(media: dict[str, Any]) -> list[Any]:
    named = [each["value"] for each in media.get("examples", {}).values()]
    return named + ([media["example"]] if "example" in media else [])


def test_every_route_is_documented_with_examples_that_fit_their_schemas(schema):
    seen = 0
    for name, operation in operations(schema):
        assert operation["summary"], name
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        for part in bodies + list(operation["responses"].values()):
            for media in part["content"].values():
                found = examples(media)
                assert found, f"{name} has no example: {part}"
                for example in found:
                    root = {"components": schema["components"]} | media["schema"]
                    jsonschema.Draft202012Validator(root).validate(example)
                    seen += 1
    assert seen > 40
    assert {name for name, _ in operations(schema)} == {
        "POST /sdapi/v1/txt2img",
        "POST /sdapi/v1/img2img",
        "POST /sdapi/v1/extra-single-image",
        "POST /sdapi/v1/png-info",
        "GET /sdapi/v1/progress",
        "POST /sdapi/v1/interrupt",
        "GET /health",
        "POST /api/v1/generate",
        "GET /api/v1/tasks",
        "GET /api/v1/tasks/{task_id}",
        "DELETE /api/v1/tasks/{task_id}",
        "POST /api/v1/tasks/{task_id}/priority",
        "POST /api/v1/tasks/{task_id}/front",
        "POST /api/v1/tasks/{task_id}/pause",
        "POST /api/v1/tasks/{task_id}/resume",
        "POST /api/v1/tasks/{task_id}/retry",
        "GET /api/v1/tasks/{task_id}/events",
        "GET /api/v1/images/{image_id}",
        "POST /api/v1/schedules",
        "GET /api/v1/schedules",
        "GET /api/v1/schedules/{schedule_id}",
        "PATCH /api/v1/schedules/{schedule_id}",
        "DELETE /api/v1/schedules/{schedule_id}",
        "GET /api/v1/tasks/{task_id}/curve",
        "GET /api/v1/tasks/{task_id}/curve.png",
        "POST /api/v1/loras/import",
        "POST /api/v1/loras",
        "GET /api/v1/loras",
        "GET /api/v1/loras/{lora_id}",
        "PATCH /api/v1/loras/{lora_id}",
        "DELETE /api/v1/loras/{lora_id}",
        "GET /api/v1/loras/{lora_id}/file",
        "GET /api/v1/loras/{lora_id}/curve",
        "GET /api/v1/loras/{lora_id}/curve.png",
        "POST /api/v1/portraits",
        "POST /api/v1/faces/check",
        "POST /v1/images/generations",
        "POST /v1/images/edits",
        "POST /v1/images/variations",
        "GET /v1/models",
        "GET /v1/models/{model}",
        *GALLERY,
    }


async def test_the_documented_requests_are_accepted(api, schema, monkeypatch):
    async def anywhere(*args: Any, **kwargs: Any) -> None:
        """A name cannot be looked up in a test."""

    monkeypatch.setattr("deployments.api.services.check_url", anywhere)
    operation = schema["paths"]["/api/v1/generate"]["post"]
    for example in examples(operation["requestBody"]["content"]["application/json"]):
        answer = await api.http.post("/api/v1/generate", json=example)
        assert answer.status_code == 200, answer.text


def test_the_key_is_asked_for_by_its_configured_name_and_not_for_health(schema):
    schemes = schema["components"]["securitySchemes"]
    assert schemes == {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-My-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }
    for name, operation in operations(schema):
        scheme = "Bearer" if " /v1/" in name else "ApiKey"
        assert operation.get("security") == ([{scheme: []}] if "/health" not in name else None), (
            name
        )


def test_every_documented_field_is_there_with_its_default(schema):
    fields = schema["components"]["schemas"]["GenerateBody"]["properties"]
    documented = {
        "init_image": None,
        "negative_prompt": None,
        "width": None,
        "height": None,
        "num_images": 1,
        "num_inference_steps": None,
        "guidance_scale": None,
        "strength": None,
        "scheduler": None,
        "seed": None,
        "output_format": "png",
        "callback_url": None,
    }
    model = GenerateBody(prompt="x")
    for name, default in documented.items():
        assert fields[name]["description"]
        assert getattr(model, name) == default
    assert schema["components"]["schemas"]["GenerateBody"]["required"] == ["prompt"]


def test_no_external_address_is_in_the_documentation(schema):
    found = set(re.findall(r"https?://([^/\"' ]+)", str(schema)))
    assert found <= {"localhost:8000", "example.com"}
