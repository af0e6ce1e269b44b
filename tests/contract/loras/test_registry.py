"""The registry of LoRAs: registering, finding, changing, using and deleting them."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from deployments.loras import registry as module
from deployments.loras.errors import CallConflict, LoraNotFound, NameTaken, UploadExpired
from deployments.loras.model import Changes, Filter, NewLora, is_id
from deployments.tasks.lora import NamedLora
from pipelines.errors import InvalidRequest, ModelError

PUBLIC = {"visibility": "public"}


def wanted(name, **fields):
    return NamedLora(name, **fields)


@pytest.fixture
def order(registry):
    """await order("a", "b", owner="bob"): what a new task would wear."""

    async def order_some(*names, owner="ann", task_id=None):
        named = [wanted(name) if isinstance(name, str) else name for name in names]
        return await registry.order(named, owner=owner, task_id=task_id or uuid4().hex)

    return order_some


async def test_a_published_file_reads_back_with_what_it_tells(registry, loras, objects, make_file):
    path = make_file(2048, {"ss_network_dim": "4", "ss_dataset_dirs": "/home/me/pictures"})
    new = NewLora(name="  Aquarell ", owner="ann", trigger_words=("wash ", "paper"), task_id="t")
    made = await registry.publish(path, new, call_id="c")
    assert is_id(made.id)
    assert made == await loras.get(made.id, owner="ann")
    assert (made.name, made.visibility, made.trigger_words) == (
        "Aquarell",
        "private",
        ("wash", "paper"),
    )
    version = made.newest
    assert (version.number, version.kind, version.rank, version.base) == (1, "lora", 4, "sdxl")
    assert (version.size_bytes, version.task_id) == (path.stat().st_size, "t")
    assert version.metadata == {"ss_network_dim": "4"}
    assert await objects.get(version.key) == path.read_bytes()
    assert made.created_at == version.created_at
    assert made.created_at.utcoffset() == timedelta(0)


async def test_a_name_again_is_another_version_and_keeps_what_is_not_said(publish, loras):
    first = await publish("Style", trigger_words=("ink",), **PUBLIC)
    second = await publish("STYLE", width=2048)
    assert (second.id, second.name) == (first.id, "Style")
    assert [version.number for version in second.versions] == [2, 1]
    assert second.versions[1] == first.newest
    assert second.trigger_words == ("ink",)
    assert second.visibility == "public"
    (listed,) = (await loras.list("ann", Filter(base="sdxl"))).loras
    assert [version.number for version in listed.versions] == [2]


async def test_a_call_that_is_repeated_registers_nothing_twice(publish, registry, make_file):
    path, new = make_file(), NewLora(name="a", owner="ann")
    answers = await asyncio.gather(*(registry.publish(path, new, call_id="c") for _ in range(20)))
    assert {(lora.id, len(lora.versions)) for lora in answers} == {(answers[0].id, 1)}
    with pytest.raises(CallConflict):
        await registry.publish(make_file(), new, call_id="c")
    assert len((await publish("a")).versions) == 2


async def test_versions_published_at_once_are_all_there(publish):
    made = await asyncio.gather(*(publish("a") for _ in range(20)))
    assert len({lora.id for lora in made}) == 1
    numbers = sorted(lora.newest.number for lora in made)
    assert numbers == list(range(1, 21))


async def test_what_is_no_lora_is_refused_under_the_name_its_sender_gave_it(registry, tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"my\.pt: a pickle"):
        await registry.publish(path, NewLora(name="a", owner="ann"), call_id="c", file_name="my.pt")
    assert await registry.store.trash() == []


async def test_private_ones_are_their_owners_alone_and_public_ones_everyones(publish, loras, order):
    mine, public = await publish("mine"), await publish("ours", **PUBLIC)
    for call in (
        loras.get(mine.id, owner="bob"),
        loras.update(public.id, Changes(name="x"), owner="bob"),
        loras.delete(public.id, owner="bob"),
        loras.get("lora_" + "0" * 26, owner="ann"),
        loras.get("../x", owner="ann"),
    ):
        with pytest.raises(LoraNotFound):
            await call
    assert await loras.get(public.id, owner="bob") == public
    for name in ("mine", wanted(None, id=mine.id), mine.id):
        with pytest.raises(InvalidRequest, match="must name a LoRA that you may use"):
            await order(name, owner="bob")
    assert [found.id for found in await order("ours", mine.id)] == [public.id, mine.id]


async def test_ones_own_goes_before_a_public_one_and_the_older_public_one_before_the_newer(
    publish, order
):
    older, newer = await publish("style", **PUBLIC), await publish("style", owner="bob", **PUBLIC)
    for owner, expected in (("ann", older), ("bob", newer), ("cid", older)):
        ((found),) = await order("Style", owner=owner)
        assert found.id == expected.id


async def test_an_order_keeps_version_file_and_weights(publish, order):
    first, second = await publish("a"), await publish("a")
    new, old = await order(
        wanted("a", weight=0.5, text_weight=0.25, tagged=True), wanted(None, id=first.id, version=1)
    )
    assert (new.version, new.key, new.sha256) == (2, second.newest.key, second.newest.sha256)
    assert (new.weight, new.text_weight, new.tagged, new.name) == (0.5, 0.25, True, "a")
    assert (old.version, old.key) == (1, first.newest.key)
    with pytest.raises(InvalidRequest, match="has versions 1 to 2, given 3"):
        await order(wanted("a", version=3))


async def test_an_unknown_name_is_answered_with_the_nearest_ones(publish, order):
    for name in ("Watercolour", "ink", "oil"):
        await publish(name)
    await publish("watercolours", owner="bob")
    with pytest.raises(InvalidRequest) as refused:
        await order("ink", "watercolor")
    assert refused.value.field == "lora"
    assert "near it: 'Watercolour'" in str(refused.value)
    assert "watercolours" not in str(refused.value)


async def test_names_are_unique_for_an_owner_in_any_case(publish, loras):
    one, other = await publish("One"), await publish("Straße")
    with pytest.raises(NameTaken):
        await loras.update(one.id, Changes(name="STRASSE"), owner="ann")
    renamed = await loras.update(one.id, Changes(name="ONE"), owner="ann")
    assert renamed.name == "ONE"
    await loras.update(other.id, Changes(name="two"), owner="ann")
    assert (await loras.update(one.id, Changes(name="strasse"), owner="ann")).name == "strasse"
    assert (await publish("One")).id not in (one.id, other.id)


async def test_changes_change_what_they_name(publish, loras, order):
    lora = await publish("a", trigger_words=("x",))
    changed = await loras.update(lora.id, Changes(visibility="public"), owner="ann")
    assert (changed.name, changed.trigger_words) == ("a", ("x",))
    assert changed.updated_at > lora.updated_at
    assert await order("a", owner="bob")
    await loras.update(lora.id, Changes(visibility="private", trigger_words=()), owner="ann")
    with pytest.raises(InvalidRequest):
        await order("a", owner="bob")
    assert (await loras.get(lora.id, owner="ann")).trigger_words == ()


async def test_lists_are_newest_first_filtered_and_page_to_the_end(publish, loras):
    made = [await publish(f"N{i}", width=(768, 2048)[i % 2]) for i in range(7)]
    shared = await publish("shared", owner="bob", **PUBLIC)
    await publish("hidden", owner="bob")

    async def ids(limit=3, **chosen):
        found, cursor = [], None
        while True:
            page = await loras.list("ann", Filter(**chosen), limit=limit, cursor=cursor)
            assert len(page.loras) <= limit
            found += [lora.id for lora in page.loras]
            if (cursor := page.next_cursor) is None:
                return found

    mine = [lora.id for lora in reversed(made)]
    assert await ids() == [shared.id, *mine]
    assert await ids(mine=True) == mine
    assert await ids(visibility="public") == [shared.id]
    assert await ids(base="sdxl") == [lora.id for lora in reversed(made[1::2])]
    assert await ids(prefix="n3") == [made[3].id]
    with pytest.raises(InvalidRequest):
        await loras.list("ann", Filter(), cursor="(1")


async def test_long_lists_are_read_in_parts(publish, loras, redis, key_prefix):
    lora = await publish("a", **PUBLIC)
    prefix = f"{{{key_prefix}}}:"
    many = {f"gone{i}": 10_000 + i for i in range(450)}
    await redis.zadd(f"{prefix}loras:own:ann", many)
    await redis.zadd(f"{prefix}loras:public", {name: score + 450 for name, score in many.items()})
    page = await loras.list("ann", Filter())
    assert [found.id for found in page.loras] == [lora.id]


async def test_a_deleted_one_is_gone_for_all_that_is_new_and_its_name_is_free(
    publish, loras, order, registry, store, objects
):
    lora = await publish("a", call_id="c", **PUBLIC)
    assert (await loras.delete(lora.id, owner="ann")).id == lora.id
    for call in (
        loras.get(lora.id, owner="ann"),
        loras.delete(lora.id, owner="ann"),
        publish("a", call_id="c"),
    ):
        with pytest.raises((LoraNotFound, CallConflict)):
            await call
    assert (await loras.list("ann", Filter())).loras == ()
    for name in ("a", lora.id):
        with pytest.raises(InvalidRequest):
            await order(name)
    again = await publish("a")
    assert again.id != lora.id
    await registry.sweep(store)
    assert not await objects.exists(lora.newest.key)
    assert await objects.exists(again.newest.key)


async def test_files_of_a_deleted_one_stay_until_the_tasks_that_use_them_have_ended(
    publish, loras, order, registry, store, objects, submit, take
):
    lora = await publish("a")
    await publish("a")
    keys = [version.key for version in (await loras.get(lora.id, owner="ann")).versions]
    queued, running = await submit("queued"), await submit("running", priority=5)
    for task in (queued, running):
        await order("a", task_id=task.id)
    (claimed,) = await take()
    assert claimed.task.id == running.id
    await loras.delete(lora.id, owner="ann")
    await registry.sweep(store)
    assert all([await objects.exists(key) for key in keys])
    await store.succeed(claimed.claim, [])
    await registry.sweep(store)
    assert all([await objects.exists(key) for key in keys])
    await store.cancel(queued.id)
    await registry.sweep(store)
    assert not any([await objects.exists(key) for key in keys])


async def test_a_hold_whose_task_never_came_ends_by_age(
    publish, loras, order, registry, store, objects, monkeypatch
):
    lora = await publish("a")
    await order("a")
    await loras.delete(lora.id, owner="ann")
    await registry.sweep(store)
    assert await objects.exists(lora.newest.key)
    monkeypatch.setattr(module, "HOLD_S", 0)
    await registry.sweep(store)
    assert not await objects.exists(lora.newest.key)


async def test_nothing_is_left_of_deleted_ones(
    publish, loras, order, registry, store, submit, redis, key_prefix
):
    task = await submit()
    await store.cancel(task.id)
    prefix = f"{{{key_prefix}}}:"
    before = set(await redis.keys(f"{prefix}*"))
    lora = await publish("a", **PUBLIC)
    preview = await registry.keep_preview(b"jpeg")
    await loras.update(lora.id, Changes(preview_key=preview), owner="ann")
    await order("a", task_id=task.id)
    await loras.delete(lora.id, owner="ann")
    await registry.sweep(store)
    assert set(await redis.keys(f"{prefix}*")) - before == {f"{prefix}lora_seq"}


async def test_sweeps_that_die_between_two_steps_are_finished_by_the_next(
    publish, loras, registry, store, objects, monkeypatch
):
    lora = await publish("a")
    await loras.delete(lora.id, owner="ann")

    async def die(*args):
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr(objects, "delete", die)
        with pytest.raises(ConnectionError):
            await registry.sweep(store)
    assert await objects.exists(lora.newest.key)
    with monkeypatch.context() as broken:
        broken.setattr(loras, "forget", die)
        with pytest.raises(ConnectionError):
            await registry.sweep(store)
    await registry.sweep(store)
    assert not await objects.exists(lora.newest.key)
    assert await loras.trash() == []


async def test_an_upload_that_was_never_registered_is_deleted_and_a_late_one_refused(
    registry, loras, store, objects, make_file, publish, monkeypatch
):
    kept = await publish("a")
    monkeypatch.setattr("deployments.loras.store.ANNOUNCED_S", 0)
    with pytest.raises(UploadExpired):
        await registry.publish(make_file(), NewLora(name="b", owner="ann"), call_id="late")
    await registry.sweep(store)
    assert await objects.sweep("loras/", -1) == 1, "the kept file alone is left"
    assert (await loras.list("ann", Filter())).loras[0].id == kept.id


async def test_a_new_preview_takes_the_place_of_the_old(publish, loras, registry, store, objects):
    lora = await publish("a")
    first, second = await registry.keep_preview(b"1"), await registry.keep_preview(b"2")
    await loras.update(lora.id, Changes(preview_key=first), owner="ann")
    await loras.update(lora.id, Changes(preview_key=first), owner="ann")
    await registry.sweep(store)
    assert await objects.get(first) == b"1"
    changed = await loras.update(lora.id, Changes(preview_key=second), owner="ann")
    assert changed.preview_key == second
    await registry.sweep(store)
    assert not await objects.exists(first)
    assert await objects.get(second) == b"2"


async def test_a_lost_reply_changes_nothing(lossy, registry, objects, make_file, key_prefix):
    from configs.settings import TaskSettings
    from deployments.loras.registry import LoraRegistry
    from deployments.loras.store import LoraStore

    terms = TaskSettings(key_prefix=key_prefix, deadline_s=20)
    store = LoraStore.connect(lossy.url, terms)
    unsure = LoraRegistry(store, objects)
    lossy.lose_replies("register")
    lora = await unsure.publish(make_file(), NewLora(name="a", owner="ann"), call_id="c")
    assert len(lora.versions) == 1
    lossy.lose_replies("delete")
    assert (await store.delete(lora.id, owner="ann")).id == lora.id
    await store.close()


@pytest.mark.parametrize(
    "name", ["", " ", "a:b", "a<b", "a/b", "a\\b", "a\nb", "x" * 101, "a\0", "lora_" + "A" * 26]
)
def test_a_name_fits_into_a_prompt(name):
    with pytest.raises(ValueError):
        NewLora(name=name, owner="ann")
