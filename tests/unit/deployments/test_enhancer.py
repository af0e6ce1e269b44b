"""The enhancer beside all else that a worker does in threads."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.settings import Settings
from deployments.enhancer import Enhancer
from deployments.storage.local import LocalStore
from deployments.tasks.enhancement import EnhanceOrder
from pipelines.enhancement import Enhancement
from pipelines.images import encode_image
from pipelines.upscaler.catalogue import Upscalers
from pipelines.upscaler.target import ByFactor

NAME = "R-ESRGAN 4x+"


async def test_pictures_that_wait_for_a_network_leave_threads_to_others(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    let_go = threading.Event()

    def slow(self, name, picture, between=lambda: None):
        assert let_go.wait(300)
        return picture.repeat(4, 0).repeat(4, 1)

    monkeypatch.setattr(Upscalers, "enlarge", slow)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3))
    objects = LocalStore(tmp_path, "")
    await objects.put("inputs/0", *encode_image(np.zeros((8, 8, 3), np.uint8), "png"))
    enhancer = Enhancer(Settings(data_dir=tmp_path), objects, torch.device("cpu"))
    order = EnhanceOrder(pictures=("inputs/0",), num_images=1, work=Enhancement(ByFactor(4), NAME))
    jobs = [
        SimpleNamespace(
            task=SimpleNamespace(id=f"task{i}", input=order.model_dump(mode="json")),
            claim=SimpleNamespace(fence=1),
            progress=None,
        )
        for i in range(6)
    ]
    running = [asyncio.create_task(enhancer.run(job)) for job in jobs]
    try:
        while not all(job.progress for job in jobs):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 60) == "free"
    finally:
        let_go.set()
    outputs = await asyncio.gather(*running)
    assert [(one.width, one.height) for (one,) in outputs] == [(32, 32)] * 6
