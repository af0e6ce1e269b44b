"""Replicas by queued work."""

import asyncio
from types import SimpleNamespace

import pytest

from deployments.autoscaling import QueueDepthPolicy, desired_replicas
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.model import Depth


@pytest.mark.parametrize(
    ("work", "least", "most", "wanted"),
    [
        (0, 0, 4, 0),
        (0, 1, 4, 1),
        (1, 0, 4, 1),
        (16, 0, 4, 1),
        (17, 0, 4, 2),
        (1000, 0, 4, 4),
    ],
)
def test_one_replica_for_each_full_target_within_bounds(
    work: float, least: int, most: int, wanted: int
) -> None:
    assert desired_replicas(work, 16, least, most) == wanted


class Store:
    """Answers as the task store does; its depth is set by the test."""

    def __init__(self) -> None:
        self.answer: Depth | Exception = Depth()

    async def depth(self, queue: str) -> Depth:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def context(target: int, open_calls: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        target_num_replicas=target,
        total_num_requests=open_calls,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
    )


async def tick(policy: QueueDepthPolicy, ctx: SimpleNamespace) -> int:
    """Two calls of the controller with time for the poll between them."""
    policy(ctx)
    for _ in range(100):
        await asyncio.sleep(0)
    return policy(ctx)[0]


async def test_a_model_with_queued_work_gets_replicas_and_an_idle_one_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store()
    policy = QueueDepthPolicy("m", 4, "daguerre", "redis://unused", poll_interval_s=0)
    monkeypatch.setattr(policy, "_connect", lambda: store)
    store.answer = Depth(queued=9, running=2)
    assert await tick(policy, context(0)) == 3
    store.answer = Depth()
    assert await tick(policy, context(3)) == 0
    assert await tick(policy, context(3, open_calls=5)) == 2


@pytest.mark.parametrize("fault", [StoreUnavailable("down"), RuntimeError("unforeseen")])
async def test_replicas_stay_as_they_are_while_the_depth_is_unknown(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    store = Store()
    policy = QueueDepthPolicy("m", 4, "daguerre", "redis://unused", poll_interval_s=0)
    monkeypatch.setattr(policy, "_connect", lambda: store)
    store.answer = Depth(queued=100)
    assert await tick(policy, context(5)) == 8
    store.answer = fault
    assert await tick(policy, context(5)) == 5


async def test_a_known_address_needs_no_settings_where_the_policy_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAGUERRE_CONFIG", "/not/on/this/node.yaml")
    await QueueDepthPolicy("m", 4, "daguerre", "redis://unused")._connect().close()
