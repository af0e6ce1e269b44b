"""LoRA files on a worker's disk."""

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.loras.cache import LoraFiles
from deployments.storage.store import ObjectNotFound
from deployments.tasks.lora import OrderedLora
from pipelines.errors import InvalidRequest


class Objects:
    """Holds some bytes by key and counts what is fetched."""

    def __init__(self):
        self.data, self.fetched = {}, []

    def lora(self, text, **fields):
        data = text.encode() * 100
        self.data[text] = data
        digest = hashlib.sha256(data).hexdigest()
        return OrderedLora(**{"id": text, "name": text, "key": text, "sha256": digest, **fields})

    async def fetch(self, key, path):
        self.fetched.append(key)
        await asyncio.sleep(0.01)
        if key not in self.data:
            raise ObjectNotFound(key)
        path.write_bytes(self.data[key])


@pytest.fixture
def objects():
    return Objects()


@pytest.fixture
def files(objects, tmp_path):
    """files(max_bytes=250): two files of one letter fit."""

    def opened(max_bytes=10**6):
        return LoraFiles(tmp_path / "cache", objects.fetch, max_bytes=max_bytes)

    return opened


def locking(path):
    """Another process that uses the file."""
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH)"
    code += "; print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def kept(tmp_path):
    return {path.read_bytes()[:1].decode() for path in (tmp_path / "cache").iterdir()}


async def test_a_file_is_fetched_once_and_is_the_same_file_ever_after(files, objects, tmp_path):
    lora, cache = objects.lora("a", weight=0.5, text_weight=0.25), files()

    async def wear():
        async with cache.worn([lora, lora]) as uses:
            return uses

    answers = await asyncio.gather(*(wear() for _ in range(10)))
    assert objects.fetched == ["a"]
    assert len(set(answers)) == 1
    use = answers[0][0]
    assert (use.weight, use.text_weight, use.path.read_bytes()) == (0.5, 0.25, objects.data["a"])
    before = use.path.stat()
    use.path.unlink()
    async with cache.worn([lora]):
        assert use.path.stat().st_mtime_ns == before.st_mtime_ns
    assert kept(tmp_path) == {"a"}


async def test_the_longest_unused_go_first_and_those_in_use_never(files, objects, tmp_path):
    cache = files(max_bytes=250)
    a, b, c, d = (objects.lora(letter) for letter in "abcd")
    async with cache.worn([a]):
        for lora in (b, c, d):
            async with cache.worn([lora]):
                pass
        assert kept(tmp_path) == {"a", "d"}
    async with cache.worn([a]):  # used again, so younger than d
        pass
    async with cache.worn([b]):
        assert kept(tmp_path) == {"a", "b"}


async def test_a_file_that_another_process_uses_stays_until_that_dies(files, objects, tmp_path):
    cache = files(max_bytes=0)
    a, b, c = (objects.lora(letter) for letter in "abc")
    async with cache.worn([a]) as (use,):
        other = locking(use.path)
        assert other.stdout.readline() == b"held\n"
    async with cache.worn([b]):
        assert kept(tmp_path) == {"a", "b"}
    other.kill()
    other.communicate()
    async with cache.worn([c]):
        assert kept(tmp_path) == {"c"}


async def test_a_file_removed_while_it_is_locked_is_fetched_anew(files, objects, monkeypatch):
    lora, cache = objects.lora("a"), files()
    async with cache.worn([lora]) as (use,):
        pass
    import fcntl

    flock, removals = fcntl.flock, iter([1])

    def remove_first(file, how):
        if next(removals, None):
            use.path.unlink()
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", remove_first)
    async with cache.worn([lora]) as (again,):
        assert again.path.read_bytes() == objects.data["a"]
    assert objects.fetched == ["a", "a"]


async def test_a_file_that_is_gone_or_damaged_is_refused_by_name_and_not_kept(
    files, objects, tmp_path
):
    gone, damaged = objects.lora("a", name="gone one"), objects.lora("b", name="damaged one")
    del objects.data["a"]
    objects.data["b"] = b"other bytes"
    for lora, why in ((gone, "LoRA gone one was deleted"), (damaged, "damaged one is damaged")):
        with pytest.raises(InvalidRequest, match=why) as refused:
            async with files().worn([lora]):
                pass
        assert refused.value.field == "lora"
    assert kept(tmp_path) == set()


async def test_a_refusal_from_within_names_the_lora_and_not_the_path(files, objects):
    lora = objects.lora("a", name="watercolour")
    with pytest.raises(InvalidRequest, match=r"^watercolour: does not fit$"):
        async with files().worn([lora]) as (use,):
            raise InvalidRequest("lora", f"{use.path}: does not fit")


async def test_parts_that_a_dead_process_left_are_removed_by_age(files, objects, tmp_path):
    old, young = tmp_path / "cache" / "~old", tmp_path / "cache" / "~young"
    old.parent.mkdir()
    for path in (old, young):
        path.write_bytes(b"~")
    os.utime(old, (1, 1))
    async with files().worn([objects.lora("a")]):
        assert not old.exists()
        assert young.exists()


async def test_nothing_is_locked_for_ever(files, objects, tmp_path):
    before = open_files()
    for _ in range(20):
        async with files().worn([objects.lora("a"), objects.lora("b")]):
            pass
    assert open_files() == before
