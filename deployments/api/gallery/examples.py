"""Examples for the documentation pages; each is valid, and tested to be."""

from __future__ import annotations

from typing import Any

_ID = "550e8400-e29b-41d4-a716-446655440000"
_SET_ID = "7d444840-9dc0-41d1-b245-5ffdce74fad2"
_URL = "http://localhost:8000/files/4VkPKxw6bT2JxGf8qk3o1aZ0mY7dHc5R"
_TIMES = {
    "createdAt": "2026-01-01T12:00:00.125000+00:00",
    "updatedAt": "2026-01-01T12:00:30.500000+00:00",
    "user_id": "anonymous",
}

NEW_MODEL: dict[str, Any] = {
    "name": "zorblax",
    "type": "RoLa",
    "source": "embedded",
    "data": {"oss": ["https://example.com/1.png"], "images": [f"{_ID}.0"], "choices": [_SET_ID]},
    "trigger_words": "zorblax",
}
READY: dict[str, Any] = {"status": "ready"}
NEW_SET: dict[str, Any] = {
    "name": "walks",
    "data": {"oss": ["https://example.com/1.png"], "images": [f"{_ID}.0"]},
}
SET_NAME: dict[str, Any] = {"name": "long walks"}
NEW_TASK: dict[str, Any] = {
    "type": "Inference",
    "data": {"id": _ID, "prompt": "zorblax at sea", "scheduler": "K_EULER", "seed": 7},
}

MODEL: dict[str, Any] = {
    "id": _ID,
    "name": "zorblax",
    "type": "lora",
    "trigger_words": "zorblax",
    "base_model": "SD1.5",
    "model_path": "http://localhost:8000/api/v1/loras/lora_01KDVSRJ5N2QJ0B6V8P8RZ3C7D/file",
    "status": "success",
    "progress": 100,
    "image": f"{_URL}/loras/9b1deb4d3b7d4bad9bdd2b0d7b3dcb6d.jpg",
    "tags": "zorblax",
    "public": False,
    "error": "",
    **_TIMES,
}
PLANNED: dict[str, Any] = MODEL | {
    "base_model": "embedded",
    "model_path": "",
    "status": "initial",
    "progress": 0,
    "image": "",
}
QUEUED: dict[str, Any] = PLANNED | {"status": "waiting"}
DATASET: dict[str, Any] = {
    "id": _SET_ID,
    "name": "walks",
    "total": 2,
    "data": NEW_SET["data"] | {"choices": []},
    **_TIMES,
}
TRAINING: dict[str, Any] = {
    "id": _ID,
    "name": "zorblax",
    "type": "train",
    "status": "running",
    "progress": 34,
    "data": {"id": _ID, "loss": 0.12, "source": "embedded"},
    **_TIMES,
}
DRAWN: dict[str, Any] = {
    "id": "f81d4fae-7dec-41d0-a765-00a0c91e6bf6",
    "name": "zorblax at sea",
    "type": "Inference",
    "status": "success",
    "progress": 100,
    "data": {
        "id": "embedded",
        "prompt": "zorblax at sea",
        "seed": 7,
        "images": [f"{_URL}/results/f81d4fae-7dec-41d0-a765-00a0c91e6bf6/1/0.png"],
    },
    **_TIMES,
}
IMAGE: dict[str, Any] = {
    "id": "f81d4fae-7dec-41d0-a765-00a0c91e6bf6.0",
    "name": "zorblax at sea",
    "width": 128,
    "height": 128,
    "prompt": "zorblax at sea",
    "negative_prompt": "",
    "num_inference_steps": 25,
    "guidance_scale": 7.5,
    "scheduler": "K_EULER",
    "seed": 7,
    "image": f"{_URL}/results/f81d4fae-7dec-41d0-a765-00a0c91e6bf6/1/0.png",
    **_TIMES,
}


def listed(*objects: dict[str, Any]) -> dict[str, Any]:
    return {"page": 1, "pageSize": 20, "next": False, "list": list(objects)}


MISSING: dict[str, Any] = {"detail": f"There is no model {_ID}."}
LOCKED: dict[str, Any] = {
    "detail": f"The model {_ID} is running: until its training has ended it can be neither changed "
    "nor deleted; deleting the task of this id cancels it."
}
