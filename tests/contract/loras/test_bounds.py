"""How many LoRAs one owner may have, and records that someone else wrote over."""

import pytest

from deployments.loras.errors import LoraNotFound, TooManyLoras
from deployments.loras.model import Filter, NewLora


@pytest.fixture
def named(registry, make_file):
    """await named("ink", most=2): a registered file."""

    async def register(name, owner="ann", most=2):
        new = NewLora(name=name, owner=owner, visibility="public")
        return await registry.publish(make_file(), new, call_id=f"{owner}:{name}", max_owned=most)

    return register


async def names(loras):
    return [lora.name for lora in (await loras.list("bob", Filter())).loras]


async def test_an_owner_has_as_many_loras_as_may_be_and_versions_are_not_counted(
    named, loras, registry, make_file
):
    first = await named("a")
    await named("b")
    with pytest.raises(TooManyLoras, match="You have 2"):
        await named("c")
    await registry.publish(
        make_file(), NewLora(name="A", owner="ann"), call_id="again", max_owned=2
    )
    await named("c", owner="bob")
    assert await loras.count("ann") == 2
    await loras.delete(first.id, owner="ann")
    await named("d")


@pytest.mark.parametrize("damage", ["a field", "the version", "the kind", "the words"])
async def test_a_damaged_record_is_left_out_of_lists_and_of_sweeps(
    named, loras, registry, store, redis, key_prefix, damage
):
    damaged, whole = await named("a"), await named("b")
    key, versions = (f"{{{key_prefix}}}:{name}:{damaged.id}" for name in ("lora", "lora_versions"))
    if damage == "a field":
        await redis.hdel(key, "fold")
    elif damage == "the version":
        await redis.hset(versions, "1", "nonsense")
    elif damage == "the kind":
        await redis.delete(key)
        await redis.set(key, "x")
    else:
        await redis.hset(key, "trigger_words", "[")
    assert await names(loras) == ["b"]
    with pytest.raises(LoraNotFound):
        await loras.get(damaged.id, owner="ann")
    await redis.zadd(f"{{{key_prefix}}}:lora_deleted", {damaged.id: 1})
    await loras.delete(whole.id, owner="ann")
    await registry.sweep(store)
    assert await names(loras) == []
    assert await redis.zcard(f"{{{key_prefix}}}:lora_deleted") == 0
