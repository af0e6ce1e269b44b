"""kill -9 beneath a training: it ends with the unbroken one's file, and is published once."""

import os
import random
import signal
from collections.abc import Callable

import httpx
import pytest

from tests.support.serving import Served
from tests.support.training import follow, train

STEPS, CHECKPOINT_EVERY = 250, 10
"""It is killed in its first 50 steps, and must not have ended by then on any machine."""
FIELDS = {"steps": str(STEPS), "job": f'{{"seed": 7, "checkpoint_every": {CHECKPOINT_EVERY}}}'}

VICTIMS: dict[str, tuple[Callable[[Served, str], int], set[int]]] = {
    "the process that trains": (lambda served, task: served.actor_pid(f"lora:{task}"), {2}),
    "the trainer": (lambda served, task: served.actor_pid("Trainer"), {2}),
    # back before the lease runs out on most machines, and nobody notices
    "redis": (lambda served, task: served.redis_pid(), {1, 2}),
}
"""Whom to kill, and how many attempts the training may take."""


def published(client: httpx.Client, lora_id: str) -> tuple[list[int], bytes]:
    """Numbers of its versions, and the newest file."""
    lora = client.get(f"/api/v1/loras/{lora_id}").raise_for_status().json()
    file = client.get(f"/api/v1/loras/{lora_id}/file").raise_for_status().content
    return [version["version"] for version in lora["versions"]], file


@pytest.fixture(scope="module")
def unbroken(client: httpx.Client) -> bytes:
    """The file of a training that nobody disturbed."""
    *_, (_, task) = follow(client, train(client, "unbroken", **FIELDS))
    assert task["status"] == "completed", task
    return published(client, task["training"]["lora_id"])[1]


@pytest.mark.parametrize(("find", "attempts"), VICTIMS.values(), ids=VICTIMS)
def test_a_killed_training_ends_as_the_unbroken_one(
    served: Served,
    client: httpx.Client,
    unbroken: bytes,
    find: Callable[[Served, str], int],
    attempts: set[int],
    request: pytest.FixtureRequest,
) -> None:
    name = request.node.callspec.id
    kill_at = random.Random(name).randrange(20, 50)
    print(f"{name} is killed at step {kill_at} or soon after")
    task_id = train(client, name, **FIELDS)
    killed_at, attempt, first = 0, 0, dict[int, int]()
    for kind, data in follow(client, task_id):
        attempt = data.get("attempt", attempt)
        if kind == "progress":
            first.setdefault(attempt, data["step"])
        if not killed_at and data.get("step", 0) >= kill_at:
            killed_at = data["step"]
            os.kill(find(served, task_id), signal.SIGKILL)
    print(f"killed at step {killed_at} of {STEPS}; first step seen of each attempt: {first}")
    assert data["status"] == "completed", data
    assert attempt in attempts
    assert first.get(2, STEPS) > killed_at - CHECKPOINT_EVERY, "it did not begin anew"
    assert published(client, data["training"]["lora_id"]) == ([1], unbroken)
    names = [lora["name"] for lora in client.get("/api/v1/loras").json()["loras"]]
    assert names.count(name) == 1
