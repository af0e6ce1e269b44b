"""The manual's rows, byte for byte, and everything else in the same envelope."""

import json

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from deployments.api.errors import RULES, BodyTooLarge, TaskFailed
from deployments.api.pai.error import FAULTS, REASON_HEADER, Refused, Row, StillRunning, word
from deployments.loras.errors import LoraNotFound
from deployments.tasks.errors import QueueFull, StoreUnavailable, TaskNotFound
from pipelines.errors import InvalidImage, InvalidRequest
from pipelines.portrait.errors import Fault, PortraitError

MANUAL = """\
400|PARAMETER_ERROR|not found appid
400|EXCEEDED_QUOTA_ERROR|exceeded quota
401|PARAMETER_ERROR|sign error
404|PARAMETER_ERROR|model not found
462|error|Invalid input data. Please check the input dict.
462|error|Image not provided. Please check the template_image.
462|error|Prompts get error. Please check the model_id.
462|error|Roop image decord error. Pleace check the user's lora is trained or not.
462|error|Template image decord error. Please Give a new template.
462|error|There is not face in template. Please Give a new template.
462|error|Template image process error. Please Give a new template.
469|error|First Face Fusion Error, Can't get face in template image.
469|error|First Stable Diffusion Process error. Check the webui status.
469|error|Second Face Fusion Error, Can't get face in template image.
469|error|Second Stable Diffusion Process error. Check the webui status.
469|error|Please confirm if the number of faces in the template corresponds to the user ID.
469|error|Third Stable Diffusion Process error. Check the webui status.
500|error|Face id image decord error. Pleace check the user's lora is trained or not.
"""


def told(error):
    response = word(error, "r1")
    body = json.loads(response.body)
    assert list(body) == ["request_id", "code", "message", "data"]
    assert (body["request_id"], body["data"]) == ("r1", {})
    return f"{response.status_code}|{body['code']}|{body['message']}"


def test_the_table_is_the_manual_s_in_its_order():
    assert [told(Refused(row)) for row in Row] == MANUAL.splitlines()


@pytest.mark.parametrize("fault", Fault, ids=str)
def test_every_fault_of_a_portrait_has_a_row_now_and_after_its_task(fault):
    expected = told(Refused(FAULTS[fault]))
    assert told(PortraitError(fault, "why")) == expected
    assert told(TaskFailed(fault.value, "why")) == expected


@pytest.mark.parametrize(
    ("error", "row"),
    [
        (InvalidImage("template", "template is damaged"), Row.TEMPLATE_DECODING),
        (InvalidRequest("people.0.photos.0", "too large"), Row.NO_REFERENCE),
        (InvalidImage("ipa_image_path", "no picture"), Row.NO_REFERENCE),
        (InvalidRequest("lora", "lora must name a LoRA"), Row.UNKNOWN_PERSON),
        (LoraNotFound("x"), Row.UNKNOWN_PERSON),
        (InvalidRequest("more_like_me", "must be 0 to 1"), Row.INVALID_INPUT),
        (RequestValidationError([{"msg": "no"}]), Row.INVALID_INPUT),
    ],
    ids=lambda value: value.name if isinstance(value, Row) else type(value).__name__,
)
def test_a_refused_field_has_its_row(error, row):
    assert told(error) == told(Refused(row))


def test_why_stands_in_a_header_that_is_one_plain_line():
    response = word(Refused(Row.INVALID_INPUT, "a\r\nb: 人\x1b" + "x" * 9999), "r1")
    found = response.headers[REASON_HEADER]
    assert found.startswith("a b: ??x")
    assert len(found) < 400
    assert REASON_HEADER not in word(Refused(Row.NO_TEMPLATE), "r1").headers


def test_what_the_manual_does_not_list_is_in_the_envelope_too():
    assert told(HTTPException(405)) == "405|error|Method Not Allowed"
    assert told(BodyTooLarge(5)) == "413|error|the request body must be at most 5 bytes"
    assert told(TaskNotFound("7")) == "404|PARAMETER_ERROR|job not found"
    assert told(TaskFailed("worker_lost", "it died")) == "500|error|it died"
    assert told(ZeroDivisionError("secret")) == "500|error|Internal Server Error"
    assert "secret" not in told(StoreUnavailable("redis://secret@host"))
    assert word(QueueFull(5, 3), "r1").headers["retry-after"] == "3"
    assert word(BodyTooLarge(5), "r1").headers["connection"] == "close"


def test_one_that_is_still_running_names_its_stage_and_its_job():
    text = told(StillRunning(90, "repaint_first", 17, "t-1"))
    assert text.startswith(
        "469|error|The portrait took longer than 90 s and was in its stage repai"
    )
    assert "/api/v1/async_jobs/17 (task t-1)" in text


def test_every_error_of_the_one_table_can_be_told():
    own = [
        QueueFull(5, 3),
        BodyTooLarge(5),
        TaskFailed("worker_lost", "it died"),
        InvalidRequest("seed", "seed must be 0 or more"),
        PortraitError(Fault.FACE_COUNT, "two faces"),
    ]
    given = {type(error): error for error in own}
    for kind in RULES:
        error = given.get(kind) or kind.__new__(kind)
        assert told(error).count("|") == 2
