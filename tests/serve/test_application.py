"""The whole application, as `serve run` starts it."""

import io
import os
import stat
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from PIL import Image
from ray import serve

from tests.support.serving import PROMPT, Served, until


def picture(client: httpx.Client, task: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(client.get(task["result_url"]).raise_for_status().content))


def until_it_runs(client: httpx.Client, task_id: str) -> None:
    path = f"/api/v1/tasks/{task_id}"
    until(lambda: client.get(path).json()["status"] == "processing" or None, 300)


def test_a_prompt_becomes_a_picture_through_a_durable_task(
    served: Served, client: httpx.Client
) -> None:
    task = served.wait(client, served.submit(client, num_inference_steps=20, seed=7))
    assert task["status"] == "completed", task
    assert task["result_urls"] is None
    image = picture(client, task)
    assert image.size == (128, 128)
    assert np.asarray(image).std() > 20


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_crowd(
    served: Served, client: httpx.Client
) -> None:
    alone = picture(client, served.wait(client, served.submit(client, seed=11)))
    crowd = [served.submit(client, seed=seed, num_inference_steps=6) for seed in range(6)]
    among = picture(client, served.wait(client, served.submit(client, seed=11)))
    for task_id in crowd:
        served.wait(client, task_id)
    difference = np.abs(np.asarray(alone).astype(int) - np.asarray(among).astype(int))
    assert difference.max() <= 1


def test_a_python_handle_joins_the_same_engine(served: Served, client: httpx.Client) -> None:
    handle = serve.get_deployment_handle("Generator-embedded", "daguerre")
    answer = handle.generate.remote(
        {"prompt": PROMPT, "num_inference_steps": 4, "seed": 11, "num_images": 2}
    ).result(timeout_s=600)
    assert answer.seeds == [11, 12]
    over_http = picture(client, served.wait(client, served.submit(client, seed=11)))
    by_handle = Image.open(io.BytesIO(answer.images[0]))
    difference = np.asarray(over_http).astype(int) - np.asarray(by_handle).astype(int)
    assert np.abs(difference).max() <= 1


def test_a_canceled_task_stops_and_stays_canceled(served: Served, client: httpx.Client) -> None:
    task_id = served.submit(client, num_inference_steps=150, num_images=10)
    until_it_runs(client, task_id)
    assert client.delete(f"/api/v1/tasks/{task_id}").status_code == 200
    assert client.get(f"/api/v1/tasks/{task_id}").json()["status"] == "canceled"
    after = served.wait(client, served.submit(client, seed=1))
    assert after["status"] == "completed"
    assert client.get(f"/api/v1/tasks/{task_id}").json()["status"] == "canceled"


def test_two_hundred_tasks_of_sixteen_clients_all_complete_in_bounded_memory(
    served: Served, client: httpx.Client
) -> None:
    # What the first full batches allocate once is not growth.
    for first in [served.submit(client, seed=seed, num_inference_steps=2) for seed in range(40)]:
        served.wait(client, first)
    before = served.resident_mb()
    done: list[str] = []
    lock = threading.Lock()

    def one_client(number: int) -> None:
        with served.client() as client:
            tasks = [
                served.submit(client, seed=number * 100 + i, num_inference_steps=2)
                for i in range(13 if number < 8 else 12)
            ]
            for task_id in tasks:
                status = served.wait(client, task_id)["status"]
                with lock:
                    done.append(status)

    threads = [threading.Thread(target=one_client, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == ["completed"] * 200
    grown = {name: served.resident_mb()[name] - mb for name, mb in before.items()}
    assert max(grown.values()) < 150, grown


def test_the_queue_order_is_honoured(served: Served, client: httpx.Client) -> None:
    """First come first served, but higher priority first, and `front` before all."""
    blocker = served.submit(client, num_inference_steps=150, num_images=10)
    until_it_runs(client, blocker)
    plain = [served.submit(client, num_images=10) for _ in range(3)]
    urgent = served.submit(client, num_images=10, priority=50)
    assert client.post(f"/api/v1/tasks/{plain[2]}/front").status_code == 200
    assert client.delete(f"/api/v1/tasks/{blocker}").status_code == 200, "it ran all the time"
    ended = {task_id: served.wait(client, task_id) for task_id in [*plain, urgent]}
    order = sorted([*plain, urgent], key=lambda task_id: ended[task_id]["updated_at"])
    assert order == [plain[2], urgent, plain[0], plain[1]]


def test_ray_answers_nobody_without_the_token(served: Served) -> None:
    token_file = Path(os.environ["HOME"]) / ".ray" / "auth_token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    dashboard = "http://" + ray.get_runtime_context().gcs_address.split(":")[0]
    url = ray._private.worker._global_node.webui_url
    dashboard = f"http://{url}"
    assert httpx.get(f"{dashboard}/api/serve/applications/", timeout=120).status_code == 401
    token = token_file.read_text().strip()
    answer = httpx.get(
        f"{dashboard}/api/serve/applications/",
        headers={"Authorization": f"Bearer {token}"},
        timeout=120,
    )
    assert answer.status_code == 200
    assert "daguerre" in answer.json()["applications"]


@pytest.mark.parametrize("header", ["x-request-timeout-seconds", "x-request-disconnect-disabled"])
def test_headers_that_steer_the_proxy_change_nothing_here(
    served: Served, client: httpx.Client, header: str
) -> None:
    answer = client.get("/health", headers={header: "0"})
    assert answer.status_code == 200


def test_metrics_are_on_the_prometheus_endpoint(served: Served, client: httpx.Client) -> None:
    served.wait(client, served.submit(client))
    address = ray.nodes()[0]
    url = f"http://{address['NodeManagerAddress']}:{address['MetricsExportPort']}/metrics"

    def exported() -> bool | None:
        text = httpx.get(url, timeout=120).text
        names = ("daguerre_queue_wait_s", "daguerre_denoise_s", "daguerre_tasks_total")
        return True if all(name in text for name in names) else None

    until(exported, 300, every_s=1)
