"""One suite for every object store: a local folder and a real S3 server."""

import asyncio

import pytest

from deployments.storage.store import ObjectNotFound

BAD_KEYS = [
    "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/../b", "a/./b", "..%2fa", "a b",
    "a\\b", "a\0b", "a\n", "\na", "ä", "猫", "~", "~url-secret", "a/~x", "a:b", "C:/a", "a*", "a?b",
    "%2e%2e/a", "\u2025/a", "a" * 201, "a/" * 451, "a/b\u2215c", "a/..\n", "$(id)", "a;b",
]  # fmt: skip


async def test_what_was_put_is_got(store):
    await store.put("a/b/c.png", b"\x00\xff picture", "image/png")
    assert await store.get("a/b/c.png") == b"\x00\xff picture"


async def test_the_same_key_again_replaces_the_object(store):
    await store.put("a.png", b"one", "image/png")
    await store.put("a.png", b"second", "image/png")
    assert await store.get("a.png") == b"second"


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_objects_of_any_size_come_back_whole(store, size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    await store.put("blob.bin", data, "application/octet-stream")
    assert await store.get("blob.bin") == data


@pytest.mark.parametrize("size", [0, 3_000_000])
async def test_files_go_in_and_out_as_objects_do(store, size, tmp_path):
    data, path = b"0123456789" * (size // 10), tmp_path / "a file"
    path.write_bytes(data)
    await store.put("a/b.bin", b"what was there before", "application/octet-stream")
    await store.put_file("a/b.bin", path, "application/octet-stream")
    assert await store.get("a/b.bin") == data
    path.write_bytes(b"x" * (size + 7))
    await store.fetch("a/b.bin", path)
    assert path.read_bytes() == data


async def test_a_key_that_was_never_put_is_not_found(store, tmp_path):
    with pytest.raises(ObjectNotFound):
        await store.get("never/put.png")
    with pytest.raises(ObjectNotFound):
        await store.fetch("never/put.png", tmp_path / "file")
    assert not await store.exists("never/put.png")


async def test_a_folder_is_not_an_object(store):
    await store.put("a/b/c.png", b"x", "image/png")
    with pytest.raises(ObjectNotFound):
        await store.get("a/b")
    assert not await store.exists("a/b")
    await store.delete("a/b")
    assert await store.get("a/b/c.png") == b"x"


async def test_nothing_lies_below_an_object(store):
    await store.put("a/b", b"x", "image/png")
    with pytest.raises(ObjectNotFound):
        await store.get("a/b/c")
    assert not await store.exists("a/b/c")
    await store.delete("a/b/c")


async def test_exists_says_what_get_would_find(store):
    await store.put("a.png", b"x", "image/png")
    assert await store.exists("a.png")
    await store.delete("a.png")
    assert not await store.exists("a.png")


async def test_delete_removes_and_repeating_it_is_no_error(store):
    await store.put("a/b.png", b"x", "image/png")
    await store.put("a/c.png", b"y", "image/png")
    await store.delete("a/b.png")
    await store.delete("a/b.png")
    with pytest.raises(ObjectNotFound):
        await store.get("a/b.png")
    assert await store.get("a/c.png") == b"y"


async def test_an_emptied_folder_can_be_used_again(store):
    for _ in range(3):
        await store.put("deep/er/a.png", b"x", "image/png")
        await store.delete("deep/er/a.png")
    await store.put("deep", b"now an object", "image/png")
    assert await store.get("deep") == b"now an object"


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
async def test_a_bad_key_is_refused_by_every_verb(store, key):
    with pytest.raises(ValueError):
        await store.put(key, b"x", "image/png")
    for verb in (store.get, store.exists, store.delete, store.url):
        with pytest.raises(ValueError):
            await verb(key)


async def test_dots_inside_a_name_are_fine(store):
    for key in ("..a", "a..b/c...d", ".hidden", "a.b.c/...", "-_."):
        await store.put(key, key.encode(), "image/png")
        assert await store.get(key) == key.encode()


async def test_writers_of_one_key_leave_one_whole_object(store):
    versions = [bytes([n]) * 200_000 for n in range(8)]
    readings = []

    async def read():
        for _ in range(10):
            try:
                readings.append(await store.get("shared.png"))
            except ObjectNotFound:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(store.put("shared.png", v, "image/png") for v in versions), read())
    assert await store.get("shared.png") in versions
    assert all(reading in versions for reading in readings)


async def test_many_objects_come_and_go_in_one_folder_at_once(store):
    async def live(n):
        await store.put(f"busy/{n % 3}/{n}.png", b"%d" % n, "image/png")
        assert await store.get(f"busy/{n % 3}/{n}.png") == b"%d" % n
        await store.delete(f"busy/{n % 3}/{n}.png")

    await asyncio.gather(*(live(n) for n in range(60)))
    assert await store.sweep("busy/", -1) == 0


async def test_a_sweep_deletes_old_objects_under_its_prefix_only(store):
    for key in ("tasks/1/a.png", "tasks/2/a.png", "tasks-of-others/a.png", "uploads/a.png"):
        await store.put(key, b"x", "image/png")
    assert await store.sweep("tasks/", older_than_s=3600) == 0
    await asyncio.sleep(1.1)  # S3 knows the time of an object by the second
    assert await store.sweep("tasks/", older_than_s=0) == 2
    assert not await store.exists("tasks/1/a.png")
    assert await store.exists("tasks-of-others/a.png")
    assert await store.exists("uploads/a.png")


async def test_a_sweep_of_nothing_is_zero(store):
    assert await store.sweep("nothing/here/", older_than_s=0) == 0


@pytest.mark.parametrize("prefix", ["../", "/", "a//", "..", "~"])
async def test_a_sweep_under_a_bad_prefix_is_refused(store, prefix):
    with pytest.raises(ValueError):
        await store.sweep(prefix, older_than_s=0)


async def test_the_urls_of_two_keys_share_no_secret(store):
    one, two = await store.url("a/1.png"), await store.url("a/2.png")
    assert one.replace("1.png", "2.png") != two
    assert "a/1.png" in one
