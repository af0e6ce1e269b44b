"""Portraits and face checks through the whole application."""

import io
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.support.serving import Served
from tests.unit.pipelines.portrait.pictures import photo, photo_file


def picture(client: httpx.Client, task: dict[str, Any]) -> np.ndarray:
    content = client.get(task["result_url"]).raise_for_status().content
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_photo_goes_into_a_template_through_a_durable_task(
    served: Served, client: httpx.Client
) -> None:
    files = [
        ("template", ("t.jpg", photo_file("ardern"))),
        ("photos", ("o.jpg", photo_file("obama"))),
    ]
    answer = client.post("/api/v1/portraits", files=files)
    assert answer.status_code == 202, answer.text
    task = served.wait(client, answer.json()["task_id"])
    assert task["status"] == "completed", task
    template, made = photo("ardern"), picture(client, task)
    assert made.shape == template.shape
    changed = (made != template).any(axis=2)
    assert 0.02 < changed.mean() < 0.5, "the face, and it alone"
    assert task["portrait"]["notes"], "the shipped model draws no photos, which is said"


def test_a_generator_draws_the_template_of_a_prompt(served: Served, client: httpx.Client) -> None:
    fields = {"t2i_prompt": "portrait of a person with light skin, short brown hair", "seed": 3}
    files = [("photos", ("o.jpg", photo_file("obama")))]
    answer = client.post("/api/v1/portraits", data=fields, files=files)
    assert answer.status_code == 202, answer.text
    task = served.wait(client, answer.json()["task_id"])
    assert task["status"] == "completed", task
    assert picture(client, task).shape == (128, 128, 3)


def test_face_models_answer_many_photos_at_once(served: Served, client: httpx.Client) -> None:
    names = ["obama", "collins", "obama", "obama"]
    files = [("photos", (name, photo_file(name))) for name in names]
    answer = client.post("/api/v1/faces/check", files=[*files, ("photos", ("x", b"nothing"))])
    assert answer.status_code == 200, answer.text
    assert [each["code"] for each in answer.json()["photos"]] == [1, 6, 1, 1, 2]
    two = [
        ("photos", ("o.jpg", photo_file("obama"))),
        ("people.1.photos", ("c", photo_file("collins"))),
    ]
    refused = client.post(
        "/api/v1/portraits", files=[("template", ("t.jpg", photo_file("ardern"))), *two]
    )
    assert refused.status_code == 422
    assert "it has 1" in refused.json()["detail"][0]["msg"]
