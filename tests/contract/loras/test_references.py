"""Photos that a LoRA of a person keeps: written with its version, deleted with it."""

import json

import pytest

from deployments.loras.errors import UploadExpired
from deployments.loras.model import Filter, NewLora
from deployments.tasks.lora import NamedLora


async def test_photos_of_the_person_are_kept_with_a_version_and_deleted_with_it(
    registry, loras, objects, make_file, store, submit
):
    new = NewLora(name="me", owner="ann")
    first = await registry.publish(make_file(), new, call_id="1", references=[b"a", b"b"])
    lora = await registry.publish(make_file(), new, call_id="2", references=[b"c"])
    assert [len(version.references) for version in lora.versions] == [1, 2]
    assert lora == await loras.get(lora.id, owner="ann")
    await registry.sweep(store)
    assert [await objects.get(key) for key in first.newest.references] == [b"a", b"b"]
    task = await submit()
    await registry.order([NamedLora("me")], owner="ann", task_id=task.id)
    await loras.delete(lora.id, owner="ann")
    await registry.sweep(store)
    keys = [key for version in lora.versions for key in version.references]
    assert all([await objects.exists(key) for key in keys]), "a task may still read them"
    await store.cancel(task.id)
    await registry.sweep(store)
    assert not any([await objects.exists(key) for key in keys])


async def test_a_publication_that_is_repeated_keeps_its_photos_once(
    registry, objects, make_file, store, monkeypatch
):
    path, new = make_file(), NewLora(name="me", owner="ann")
    first = await registry.publish(path, new, call_id="c", references=[b"a"])
    monkeypatch.setattr("deployments.loras.store.ANNOUNCED_S", 0)
    again = await registry.publish(path, new, call_id="c", references=[b"a"])
    assert again.newest.references == first.newest.references
    await registry.sweep(store)
    assert await objects.sweep("loras/", -1) == 2, "the file and its photo alone are left"


async def test_photos_announced_too_long_ago_are_not_registered(
    registry, loras, make_file, monkeypatch
):
    keep = registry._keep

    async def late(data, *rest):
        monkeypatch.setattr("deployments.loras.store.ANNOUNCED_S", 0)
        return await keep(data, *rest)

    monkeypatch.setattr(registry, "_keep", late)
    with pytest.raises(UploadExpired):
        await registry.publish(
            make_file(), NewLora(name="a", owner="ann"), call_id="c", references=[b"a"]
        )
    assert not (await loras.list("ann", Filter())).loras


async def test_a_record_of_before_there_were_photos_reads_and_is_deleted(
    publish, loras, registry, store, objects, redis, key_prefix
):
    lora = await publish("old")
    name = f"{{{key_prefix}}}:lora_versions:{lora.id}"
    stored = json.loads(await redis.hget(name, "1"))
    del stored["version"]["references"]
    await redis.hset(name, "1", json.dumps(stored))
    assert (await loras.get(lora.id, owner="ann")).newest.references == ()
    await loras.delete(lora.id, owner="ann")
    await registry.sweep(store)
    assert not await objects.exists(lora.newest.key)
