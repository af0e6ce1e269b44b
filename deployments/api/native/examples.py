"""Examples for the documentation pages; each is valid, and tested to be."""

from __future__ import annotations

from typing import Any

TASK_ID = "550e8400-e29b-41d4-a716-446655440000"
_URL = f"http://localhost:8000/files/4VkPKxw6bT2JxGf8qk3o1aZ0mY7dHc5R/results/{TASK_ID}/1"
_TINY_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAFElEQVR42mP8zwABTAyjjFEGyQwAzx8Bf7QK4E8AAAAA"
    "SUVORK5CYII="
)

GENERATE: dict[str, dict[str, Any]] = {
    "text to image": {
        "prompt": "a beautiful landscape with mountains and lakes, sunset, highly detailed, 4k",
        "width": 512,
        "height": 512,
        "num_images": 1,
        "guidance_scale": 7.5,
        "num_inference_steps": 30,
        "output_format": "png",
    },
    "image to image": {
        "prompt": "anime style, vibrant colors",
        "init_image": f"data:image/png;base64,{_TINY_PNG}",
        "strength": 0.7,
        "guidance_scale": 7.5,
        "num_inference_steps": 30,
    },
    "three pictures, reproducible": {
        "prompt": "a magical forest with glowing mushrooms",
        "negative_prompt": "blurry",
        "num_images": 3,
        "seed": 12345,
        "scheduler": "EulerDiscreteScheduler",
        "output_format": "webp",
        "callback_url": "https://example.com/api/callback",
    },
}

PRIORITY: dict[str, Any] = {"priority": 10}

CREATED: dict[str, Any] = {
    "task_id": TASK_ID,
    "status": "pending",
    "message": "任务已创建，正在处理中",
}

_COMMON: dict[str, Any] = {
    "task_id": TASK_ID,
    "result_url": None,
    "result_urls": None,
    "error_message": None,
    "created_at": "2026-01-01T12:00:00.125000+00:00",
    "updated_at": "2026-01-01T12:00:30.500000+00:00",
    "model": "embedded",
    "prompt": "a magical forest with glowing mushrooms",
    "original_prompt": None,
    "seed": 12345,
    "priority": 0,
    "progress": {"step": 30, "steps": 30},
    "not_before": None,
    "position": None,
    "training": None,
    "portrait": None,
}

WAITING: dict[str, Any] = _COMMON | {
    "status": "pending",
    "progress": {"step": 0, "steps": 0},
    "position": {"ahead": 2, "eta_s": 41.5},
}
COMPLETED: dict[str, Any] = _COMMON | {"status": "completed", "result_url": f"{_URL}/0.png"}
COMPLETED_SEVERAL: dict[str, Any] = _COMMON | {
    "status": "completed",
    "result_urls": [f"{_URL}/0.png", f"{_URL}/1.png"],
}
FAILED: dict[str, Any] = _COMMON | {
    "status": "failed",
    "error_message": "生成过程中发生错误",
    "progress": {"step": 12, "steps": 30},
}
CANCELED: dict[str, Any] = _COMMON | {"status": "canceled"}
PAUSED: dict[str, Any] = _COMMON | {
    "status": "paused",
    "prompt": None,
    "seed": None,
    "progress": {"step": 340, "steps": 1000},
    "training": {
        "name": "zorblax",
        "lora_id": None,
        "loss": 0.12,
        "lr": 0.0001,
        "samples_per_s": None,
        "eta_s": None,
    },
}

PORTRAIT_TASK: dict[str, Any] = _COMMON | {
    "status": "processing",
    "prompt": None,
    "progress": {"step": 5, "steps": 15},
    "portrait": {"people": ["Ada"], "stage": "repaint_first", "notes": []},
}

TASKS: dict[str, dict[str, Any]] = {
    "completed, one picture": COMPLETED,
    "completed, several pictures": COMPLETED_SEVERAL,
    "failed": FAILED,
    "waiting": WAITING,
    "a portrait at work": PORTRAIT_TASK,
}

TASK_LIST: dict[str, Any] = {"tasks": [COMPLETED, CANCELED], "next_cursor": "0.41"}

IMAGE: dict[str, Any] = {
    "id": f"{TASK_ID}.0",
    "task_id": TASK_ID,
    "index": 0,
    "url": f"{_URL}/0.png",
    "content_type": "image/png",
    "width": 512,
    "height": 512,
    "seed": 12345,
    "model": "embedded",
    "prompt": "an orange cat on the moon",
    "negative_prompt": "",
    "original_prompt": "月球上的橘猫",
    "original_negative_prompt": "",
    "parameters": {"prompt": "an orange cat on the moon", "num_inference_steps": 30, "seed": 12345},
    "infotext": "an orange cat on the moon\nSteps: 30, Seed: 12345, Size: 512x512",
    "created_at": "2026-01-01T12:00:00.125000+00:00",
    "started_at": "2026-01-01T12:00:01.250000+00:00",
    "finished_at": "2026-01-01T12:00:30.500000+00:00",
}
SCHEDULED: dict[str, Any] = {
    "cron": "30 8 * * mon-fri",
    "timezone": "Asia/Shanghai",
    "name": "picture of the day",
    "request": {"prompt": "a landscape at dawn", "width": 512, "height": 512},
}
PAUSE: dict[str, Any] = {"paused": True}
SCHEDULE: dict[str, Any] = SCHEDULED | {
    "id": "7d444840-9dc0-11d1-b245-5ffdce74fad2",
    "paused": False,
    "next_run_at": "2026-01-02T00:30:00+00:00",
    "last_runs": [{"at": "2026-01-01T00:30:00+00:00", "task_id": TASK_ID, "error": None}],
    "created_at": "2025-12-24T12:00:00.125000+00:00",
    "updated_at": "2025-12-24T12:00:00.125000+00:00",
}
SCHEDULE_LIST: dict[str, Any] = {"schedules": [SCHEDULE | {"request": None}]}

EVENTS = """\
id: 1767268800125-0
event: status
data: {"status": "processing", "attempt": 1}

id: 1767268801250-0
event: progress
data: {"step": 12, "steps": 30}

id: 1767268801300-0
event: preview
data: {"image": "data:image/jpeg;base64,/9j/4AAQSkZJRg..."}

"""

HEALTH: dict[str, Any] = {"status": "ok", "model_loaded": True}
UNAVAILABLE: dict[str, Any] = {"status": "unavailable", "model_loaded": False}

UNAUTHORIZED: dict[str, Any] = {"detail": "API Key无效或缺失"}
NOT_FOUND: dict[str, Any] = {"detail": "任务不存在"}
ALREADY_ENDED: dict[str, Any] = {"detail": "The task has already succeeded."}
NOT_QUEUED: dict[str, Any] = {"detail": "The task is running, not waiting in a queue."}
NOT_PAUSABLE: dict[str, Any] = {
    "detail": "Only a training can be paused, this is a task of kind image."
}
NOT_PAUSED: dict[str, Any] = {"detail": "The task is running, not paused."}
NOT_RETRYABLE: dict[str, Any] = {
    "detail": "Only a task of kind image that failed or was canceled can be retried, this is one "
    "of kind image and succeeded."
}
IMAGE_NOT_FOUND: dict[str, Any] = {"detail": f"There is no image {TASK_ID}.3."}
SCHEDULE_NOT_FOUND: dict[str, Any] = {"detail": f"There is no schedule {TASK_ID}."}
TOO_MANY_SCHEDULES: dict[str, Any] = {
    "detail": "You have 20 schedules, as many as you may: delete one."
}
TOO_LARGE: dict[str, Any] = {"detail": "the request body must be at most 33554432 bytes"}
QUEUE_FULL: dict[str, Any] = {"detail": "The queue is full: 1000 tasks are waiting."}
TOO_MANY_STREAMS: dict[str, Any] = {
    "detail": "Too many event streams are open: ask for the task itself, or try again."
}
STORE_AWAY: dict[str, Any] = {"detail": "The task store is unavailable, try again."}
IDEMPOTENCY: dict[str, Any] = {
    "detail": "The idempotency key 'order-17' was used with another request."
}
INVALID: dict[str, Any] = {
    "detail": [{"loc": ["body", "prompt"], "msg": "field required", "type": "value_error.missing"}]
}
NOT_JSON: dict[str, Any] = {
    "detail": [
        {
            "loc": ["header", "Content-Type"],
            "msg": "Content-Type must be application/json, given 'text/plain'",
            "type": "content_type",
        }
    ]
}

_LORA_VERSION: dict[str, Any] = {
    "version": 1,
    "kind": "lora",
    "rank": 16,
    "base": "sd",
    "base_model": None,
    "size_bytes": 37870216,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "task_id": None,
    "metadata": {"ss_network_dim": "16", "ss_network_alpha": "8"},
    "created_at": "2026-01-01T12:00:00.125000+00:00",
}
LORA: dict[str, Any] = _LORA_VERSION | {
    "id": "lora_01JGGZ1M5D0Q3V7X8K2R4T6W9Y",
    "name": "watercolour",
    "mine": True,
    "visibility": "private",
    "trigger_words": ["in watercolour"],
    "tag": "<lora:watercolour:1>",
    "preview_url": None,
    "updated_at": "2026-01-01T12:00:00.125000+00:00",
    "versions": [_LORA_VERSION],
}
LORA_LIST: dict[str, Any] = {"loras": [LORA | {"versions": None}], "next_cursor": None}
LORA_IMPORT: dict[str, Any] = {
    "file": "(a .safetensors file)",
    "name": "watercolour",
    "trigger_words": "in watercolour",
}
LORA_CHANGES: dict[str, Any] = {"visibility": "public", "trigger_words": ["in watercolour"]}
TRAIN: dict[str, Any] = {
    "name": "zorblax",
    "job": {"kind": "subject", "trigger": "zorblax", "class_word": "dog", "steps": 800},
    "pictures": [
        {"image": "https://example.com/zorblax/1.jpg", "caption": "zorblax dog on a beach"},
        {"image": f"data:image/png;base64,{_TINY_PNG}"},
        {"image": f"{TASK_ID}/0"},
    ],
}
TRAIN_FORM: dict[str, Any] = {
    "name": "zorblax",
    "kind": "portrait",
    "trigger": "zorblax",
    "steps": 800,
    "pictures": ["(a JPEG file)", "(a zip archive)"],
}
PORTRAIT: dict[str, dict[str, Any]] = {
    "a person in a template": {
        "people": [
            {
                "photos": [
                    "https://example.com/ada/1.jpg",
                    f"data:image/png;base64,{_TINY_PNG}",
                ],
                "name": "Ada",
            }
        ],
        "template": "https://example.com/templates/astronaut.jpg",
        "parameters": {"more_like_me": 0.6, "skin_retouching_bool": True},
        "seed": 7,
    },
    "two people whose LoRAs were trained, in a drawn template": {
        "people": [{"lora": "ada"}, {"lora": "lora_01JGGZ1M5D0Q3V7X8K2R4T6W9Y"}],
        "parameters": {"t2i_prompt": "two people at a harbour, evening light"},
        "callback_url": "https://example.com/api/callback",
    },
}
PORTRAIT_FORM: dict[str, Any] = {
    "template": "(a JPEG file)",
    "photos": ["(a JPEG file)", "(a PNG file)"],
    "more_like_me": 0.6,
}
CHECK: dict[str, Any] = {
    "photos": ["https://example.com/ada/1.jpg", f"data:image/png;base64,{_TINY_PNG}"]
}
CHECK_FORM: dict[str, Any] = {"photos": ["(a JPEG file)", "(a PNG file)"]}
CHECKED: dict[str, Any] = {
    "photos": [
        {
            "code": 1,
            "message": "success",
            "faces": 1,
            "box": [212.5, 140.25, 180.0, 231.5],
            "frontal": True,
            "frontal_score": 0.9312,
            "likeness": 0.8841,
        },
        {
            "code": 3,
            "message": "Number of face is not 1.",
            "faces": 0,
            "box": None,
            "frontal": False,
            "frontal_score": 0.0,
            "likeness": 0.0,
        },
    ],
    "reference": 0,
}
CURVE: dict[str, Any] = {
    "steps": 800,
    "points": [
        {"step": 1, "loss": 0.142, "lr": 0.0001, "validation_loss": None, "likeness": None},
        {"step": 10, "loss": 0.128, "lr": 0.0001, "validation_loss": None, "likeness": None},
        {"step": 800, "loss": 0.081, "lr": 0.0001, "validation_loss": 0.094, "likeness": None},
    ],
}
LORA_NOT_FOUND: dict[str, Any] = {"detail": "There is no LoRA lora_01JGGZ1M5D0Q3V7X8K2R4T6W9Y."}
NAME_TAKEN: dict[str, Any] = {"detail": "You have another LoRA named 'watercolour'."}
LORA_IDEMPOTENCY: dict[str, Any] = {"detail": "The idempotency key was used with another file."}
