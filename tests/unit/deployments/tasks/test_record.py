from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from deployments.tasks.model import Output, Progress, Status, Task, TaskError
from deployments.tasks.record import damaged, read_event, read_task

FIELDS = {
    "id": "t",
    "v": "1",
    "kind": "lora",
    "queue": "sd",
    "owner": "ann",
    "status": "failed",
    "priority": "-3",
    "input": '{"prompt": "猫"}',
    "outputs": '[{"key": "a", "content_type": "image/png", "width": 1, "height": 2, "seed": 3}]',
    "error": '{"code": "c", "message": "m"}',
    "step": "4",
    "steps": "9",
    "attempt": "2",
    "errors": "1",
    "lost": "1",
    "worker": "w",
    "created": "1700000000123456",
    "updated": "1700000001000001",
    "started": "1700000000999999",
    "finished": "1700000001000001",
    "a field of a later release": "x",
}


def flat(fields):
    return [word.encode() for pair in fields.items() for word in pair]


def test_a_record_reads_back_whole():
    task = read_task(flat(FIELDS))
    assert not damaged(task)
    assert (task.id, task.kind, task.queue, task.owner) == ("t", "lora", "sd", "ann")
    assert (task.status, task.priority, task.input) == (Status.FAILED, -3, {"prompt": "猫"})
    assert task.outputs == (Output(key="a", content_type="image/png", width=1, height=2, seed=3),)
    assert task.error == TaskError(code="c", message="m")
    assert task.progress == Progress(step=4, steps=9)
    assert (task.attempt, task.errors, task.lost, task.worker) == (2, 1, 1, "w")
    assert task.created_at == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert task.started_at.microsecond == 999999
    assert task.not_before is None


junk = st.one_of(st.binary(max_size=40), st.integers().map(lambda n: str(n).encode()))


@given(st.dictionaries(st.sampled_from([*FIELDS, "not_before", "callback_url"]), junk))
@example({"created": b"9" * 30})
@example({"created": b"-" + b"9" * 16})
@example({"input": b"[" * 100_000})
@example({"attempt": b"9" * 5000})
@example({"attempt": "²".encode()})
@example({"error": b'{"code": "c", "message": "\\ud83d"}'})
def test_no_damage_makes_reading_raise(changes):
    fields = {name: value.encode() for name, value in FIELDS.items()} | changes
    task = read_task([word for pair in fields.items() for word in (pair[0].encode(), pair[1])])
    assert isinstance(task, Task)
    if damaged(task):
        assert task.status is Status.FAILED
        assert task.model_dump_json()


def test_an_empty_record_reads_as_a_failed_task():
    task = read_task([])
    assert damaged(task)
    assert task.error.code == "record_damaged"


def test_a_salvaged_task_keeps_its_name_owner_and_times():
    task = read_task(flat({**FIELDS, "input": "junk"}))
    assert damaged(task)
    assert (task.id, task.owner, task.queue, task.attempt) == ("t", "ann", "sd", 2)
    assert task.created_at.year == 2023


def test_a_foreign_stream_entry_is_no_event():
    assert read_event(b"1-0", {b"type": b"status", b"data": b"{}"}).data == {}
    for fields in (
        {},
        {b"type": b"status"},
        {b"type": b"status", b"data": b"x"},
        {b"type": b"status", b"data": b"[1]"},
        {b"type": b"\xff", b"data": b"{}"},
        {b"type": b"status", b"data": b"[" * 100_000},
    ):
        assert read_event(b"1-0", fields) is None
