"""kill -9 of everything, one after the other: no task is lost, none is done twice."""

import os
import signal

import httpx

from tests.support.serving import Served, until


def submit(served: Served, client: httpx.Client, seed: int) -> str:
    """As a good client: the same idempotency key until there is an answer."""

    def attempt() -> str | None:
        try:
            return served.submit(
                client, seed=seed, num_inference_steps=30, idempotency_key=f"fault-{seed}"
            )
        except (httpx.TransportError, AssertionError):
            return None

    task_id: str = until(attempt, 300)
    return task_id


def finished(client: httpx.Client, tasks: list[str]) -> int:
    count = 0
    for task_id in tasks:
        try:
            answer = client.get(f"/api/v1/tasks/{task_id}")
        except httpx.TransportError:
            continue
        count += answer.status_code == 200 and answer.json()["status"] == "completed"
    return count


def test_twenty_tasks_survive_the_death_of_generator_ingress_and_redis(served: Served) -> None:
    with served.client() as client:
        tasks = [submit(served, client, seed) for seed in range(20)]
        assert len(set(tasks)) == 20
        victims = [
            lambda: served.actor_pid("Generator-embedded"),
            lambda: served.actor_pid("Ingress"),
            served.redis_pid,
        ]
        for number, victim in enumerate(victims):
            until(lambda n=number: finished(client, tasks) >= 2 * (n + 1) or None, 600)
            pid = victim()
            os.kill(pid, signal.SIGKILL)
        ended = [served.wait(client, task_id) for task_id in tasks]
        assert [task["status"] for task in ended] == ["completed"] * 20, ended
        for task in ended:
            assert client.get(task["result_url"]).status_code == 200
        for task_id in tasks:
            events = client.get(f"/api/v1/tasks/{task_id}/events").text
            assert events.count('"completed"') == 1, events
