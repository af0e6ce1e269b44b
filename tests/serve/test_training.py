"""A LoRA trained over HTTP by a Ray Task, and worn at once."""

import io

import httpx
import numpy as np
import psutil
from PIL import Image

from tests.support.serving import Served
from tests.support.training import follow, train


def test_a_lora_trained_over_http_is_worn_by_the_next_request(
    served: Served, client: httpx.Client
) -> None:
    task_id = train(client, "ink", steps="4")
    *_, (_, task) = follow(client, task_id)
    assert task["status"] == "completed", task
    pictures = []
    for prompt in ("a red hoodie", "a red hoodie <lora:ink:1>"):
        drawn = served.wait(client, served.submit(client, prompt=prompt, seed=3))
        assert drawn["status"] == "completed", drawn
        pictures.append(client.get(drawn["result_url"]).content)
    plain, worn = (np.asarray(Image.open(io.BytesIO(each)), int) for each in pictures)
    assert np.abs(plain - worn).max() > 5
    curve = client.get(f"/api/v1/loras/{task['training']['lora_id']}/curve").json()
    assert [point["step"] for point in curve["points"]] == [1, 4]


def test_a_training_yields_to_serving_and_canceled_makes_room_for_the_next(
    served: Served, client: httpx.Client
) -> None:
    endless = train(client, "endless", steps="100000")
    shown = {"step", "loss", "eta_s", "lr"}
    assert any(
        kind == "progress" and shown <= data.keys() for kind, data in follow(client, endless)
    )
    trains, serves = served.actor_pid(f"lora:{endless}"), served.actor_pid("Generator-embedded")
    apart = psutil.Process(trains).nice() - psutil.Process(serves).nice()
    assert apart == served.settings.training.nice, "it yields to those who serve"
    assert client.delete(f"/api/v1/tasks/{endless}").json()["status"] == "canceled"
    after = served.wait(client, train(client, "after", steps="1"))
    assert after["status"] == "completed", after
