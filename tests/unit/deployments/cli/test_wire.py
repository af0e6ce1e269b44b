"""Answers and event streams as values."""

import json

import pytest

from deployments.cli.wire import ApiError, RemoteTask, ServerEvent, parse_error, parse_events


def test_a_single_result_and_many_results_read_alike() -> None:
    one = RemoteTask.parse(
        {"task_id": "t", "status": "completed", "result_url": "/a.png", "result_urls": None}
    )
    many = RemoteTask.parse(
        {"task_id": "t", "status": "completed", "result_url": None, "result_urls": ["/a", "/b"]}
    )
    assert one.urls == ("/a.png",)
    assert many.urls == ("/a", "/b")
    assert one.ended


def test_a_task_with_null_progress_and_position_is_understood() -> None:
    task = RemoteTask.parse(
        {"task_id": "t", "status": "pending", "progress": None, "position": None}
    )
    assert task.is_waiting
    assert (task.step, task.steps, task.ahead) == (0, 0, None)


def test_an_answer_that_is_no_task_is_an_api_error() -> None:
    with pytest.raises(ApiError, match="task_id"):
        RemoteTask.parse({"status": "completed"})


@pytest.mark.parametrize(
    ("stored", "native"),
    [
        ("scheduled", "pending"),
        ("queued", "pending"),
        ("running", "processing"),
        ("succeeded", "completed"),
        ("canceled", "canceled"),
    ],
)
def test_events_in_the_stores_words_become_the_apis_words(stored: str, native: str) -> None:
    event = ServerEvent("status", {"status": stored})
    assert event.applied_to(RemoteTask("t", "pending")).status == native


def test_an_event_of_the_past_does_not_send_a_running_task_back_to_the_queue() -> None:
    running = RemoteTask("t", "processing", step=3, steps=4)
    assert ServerEvent("status", {"status": "pending"}).applied_to(running) == running


def test_progress_events_move_the_steps_and_previews_change_nothing() -> None:
    task = ServerEvent("progress", {"step": 3, "steps": 8}).applied_to(RemoteTask("t", "pending"))
    assert (task.status, task.step, task.steps) == ("processing", 3, 8)
    assert ServerEvent("preview", {"jpeg": "..."}).applied_to(task) == task


def test_an_event_stream_is_read_as_the_standard_says() -> None:
    lines = [
        ": hello",
        "id: 1-0",
        "event: progress",
        'data: {"step":',
        "data: 2}",
        "",
        "event: noise",
        "data: not json",
        "",
        'data:{"bare": true}',
        "",
        'data: {"unfinished": true}',
    ]
    assert list(parse_events(lines)) == [
        ServerEvent("keepalive", {}),
        ServerEvent("progress", {"step": 2}, "1-0"),
        ServerEvent("message", {"bare": True}, "1-0"),
    ]


def test_field_errors_keep_the_fields_name() -> None:
    detail = [{"loc": ["body", "width"], "msg": "must be a multiple of 8", "type": "x"}]
    error = parse_error(422, json.dumps({"detail": detail}).encode(), {})
    assert [(each.field, each.message) for each in error.fields] == [
        ("width", "must be a multiple of 8")
    ]


@pytest.mark.parametrize("content", [b"Internal Server Error", b"\xff\xfe", b"[]", b""])
def test_an_error_without_a_json_body_still_names_its_status(content: bytes) -> None:
    assert "500" in str(parse_error(500, content, {}))
