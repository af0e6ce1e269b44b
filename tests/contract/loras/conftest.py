"""A registry of LoRAs on the real server, and small files to publish."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.settings import TaskSettings
from deployments.loras.model import Lora, NewLora
from deployments.loras.registry import LoraRegistry
from deployments.loras.store import LoraStore
from deployments.storage.local import LocalStore

MakeFile = Callable[..., Path]
Publish = Callable[..., Awaitable[Lora]]
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """make_file(width=768): a LoRA file; another one each time."""

    def make(width: int = 768, metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / f"{uuid4().hex}.safetensors"
        rng = np.random.default_rng()
        down = rng.random((4, width), np.float32)
        tensors = {f"{KEY}.lora_down.weight": down, f"{KEY}.lora_up.weight": down[:, :8].T.copy()}
        save_file(tensors, path, metadata)
        return path

    return make


@pytest.fixture
async def loras(redis_url: str, key_prefix: str) -> AsyncIterator[LoraStore]:
    store = LoraStore.connect(redis_url, TaskSettings(key_prefix=key_prefix, deadline_s=20))
    yield store
    await store.close()


@pytest.fixture
def objects(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "objects", "")


@pytest.fixture
def registry(loras: LoraStore, objects: LocalStore) -> LoraRegistry:
    return LoraRegistry(loras, objects)


@pytest.fixture
def publish(registry: LoraRegistry, make_file: MakeFile) -> Publish:
    """await publish("watercolour", owner="bob", visibility="public"): a registered file."""

    async def publish_one(name: str = "watercolour", **fields: Any) -> Lora:
        width, call_id = fields.pop("width", 768), fields.pop("call_id", uuid4().hex)
        new = NewLora(name=name, **{"owner": "ann", **fields})
        return await registry.publish(make_file(width), new, call_id=call_id)

    return publish_one
