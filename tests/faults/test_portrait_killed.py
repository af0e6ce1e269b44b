"""kill -9 beneath a portrait: what was done is not done again, and it ends once."""

import os
import signal
from typing import Any

import cv2
import httpx

from deployments.tasks.portrait import state_key
from pipelines.images import encode_image
from tests.support.serving import Served
from tests.support.training import follow
from tests.unit.pipelines.portrait.pictures import beside, photo, photo_file

PEOPLE = ("collins", "ardern", "obama")
PHOTOS = 12
"""Of each: to read them takes more than the second that a saved state is worth."""


def template() -> bytes:
    """Three people on 2,400 pixels: every stage takes its time."""
    row = beside(photo("obama"), photo("collins"), photo("ardern"))
    height = row.shape[0] * 2400 // row.shape[1]
    return encode_image(cv2.resize(row, (2400, height)), "jpeg")[0]


def ask(client: httpx.Client) -> str:
    files: list[Any] = [("template", ("t.jpg", template()))]
    for number, name in enumerate(PEOPLE):
        sent = (f"{name}.jpg", photo_file(name))
        files += [(f"people.{number}.photos", sent)] * PHOTOS
    answer = client.post("/api/v1/portraits", files=files)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def test_a_killed_portrait_goes_on_with_the_stage_that_was_running(
    served: Served, client: httpx.Client
) -> None:
    stages: dict[int, list[str]] = {}
    victim = served.actor_pid("ServeReplica:daguerre:Portraits")
    attempt, killed_in, task_id = 0, "", ask(client)
    state = served.settings.data_dir / "objects" / state_key(task_id, 1)
    for kind, data in follow(client, task_id):
        attempt = data.get("attempt", attempt)
        if kind == "progress":
            stages.setdefault(attempt, []).append(data["stage"])
            if not killed_in and state.exists():
                killed_in = data["stage"]
                os.kill(victim, signal.SIGKILL)
    print(f"killed in {killed_in}; stages seen of each attempt: {stages}")
    assert data["status"] == "completed", data
    assert attempt == 2
    # The first attempt's beginning may go unseen: nobody watched yet. The second's cannot.
    assert "read_pictures" not in stages.get(2, []), "it began anew"
    events = client.get(f"/api/v1/tasks/{task_id}/events").text
    assert events.count('"completed"') == 1, events
    assert client.get(data["result_url"]).status_code == 200
