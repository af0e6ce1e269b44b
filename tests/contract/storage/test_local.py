"""What only a local folder can get wrong: links, a full disk, half-written files, its secret."""

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.storage.local import LocalStore
from deployments.storage.store import StorageUnavailable


def files(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())


def token_of(url):
    return url.removeprefix("http://pictures.test/files/").split("/", 1)[0]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "objects"


async def test_a_url_holds_a_token_for_this_key_only(local_store):
    url = await local_store.url("a/b.png")
    token = token_of(url)
    assert url == f"http://pictures.test/files/{token}/a/b.png"
    assert len(token) >= 32
    assert local_store.verify(token, "a/b.png")
    assert not local_store.verify(token, "a/c.png")
    for wrong in ("", token[:-1], token + "A", token.swapcase(), "ä" * 32, "\ud800"):
        assert not local_store.verify(wrong, "a/b.png")


async def test_urls_survive_a_restart(local_store, root):
    url = await local_store.url("a.png")
    again = LocalStore(root, url_base="http://pictures.test")
    assert await again.url("a.png") == url
    assert again.verify(token_of(url), "a.png")


async def test_another_store_knows_other_tokens(local_store, tmp_path):
    other = LocalStore(tmp_path / "other", url_base="")
    assert not other.verify(token_of(await local_store.url("a.png")), "a.png")
    assert (await other.url("a.png")).startswith("/files/")


async def test_the_secret_and_the_objects_are_for_their_owner_alone(local_store, root):
    await local_store.url("a.png")
    await local_store.put("a/b.png", b"x", "image/png")
    assert len((root / "~url-secret").read_bytes()) == 32
    for path in [root, *root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


async def test_a_sweep_of_everything_spares_the_secret(local_store, root):
    url = await local_store.url("a.png")
    await local_store.put("a.png", b"x", "image/png")
    os.utime(root / "~url-secret", (0, 0))
    assert await local_store.sweep("", older_than_s=-1) == 1
    assert await LocalStore(root, url_base="http://pictures.test").url("a.png") == url


def test_processes_that_start_at_once_agree_on_one_secret(root):
    program = (
        "import asyncio, pathlib, sys\n"
        "from deployments.storage.local import LocalStore\n"
        "store = LocalStore(pathlib.Path(sys.argv[1]), url_base='')\n"
        "sys.stdin.readline()\n"
        "print(asyncio.run(store.url('a.png')))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert len({process.communicate(timeout=300)[0] for process in processes}) == 1


async def test_a_folder_that_links_out_is_not_followed(local_store, root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "private.png").write_bytes(b"private")
    root.mkdir()
    (root / "door").symlink_to(outside)
    for verb in (
        local_store.get("door/private.png"),
        local_store.exists("door/private.png"),
        local_store.delete("door/private.png"),
        local_store.put("door/private.png", b"mine", "image/png"),
        local_store.put("door/deep/new.png", b"mine", "image/png"),
    ):
        with pytest.raises(ValueError, match="link"):
            await verb
    await local_store.sweep("", older_than_s=-1)
    assert files(outside) == ["private.png"]
    assert (outside / "private.png").read_bytes() == b"private"


async def test_a_file_that_is_a_link_is_not_read_or_written(local_store, root, tmp_path):
    (tmp_path / "private.png").write_bytes(b"private")
    root.mkdir()
    (root / "a.png").symlink_to(tmp_path / "private.png")
    for verb in (local_store.get("a.png"), local_store.put("a.png", b"mine", "image/png")):
        with pytest.raises(ValueError, match="link"):
            await verb
    assert (tmp_path / "private.png").read_bytes() == b"private"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
async def test_a_failing_disk_leaves_the_old_object_and_no_litter(
    local_store, root, monkeypatch, call, error
):
    await local_store.put("a/b.png", b"old", "image/png")

    def fail(*args):
        raise OSError(error, os.strerror(error))

    target = "os.fsync" if call == "fsync" else "deployments.storage.local._replace.__kwdefaults__"
    if call == "fsync":
        monkeypatch.setattr(target, fail)
    else:
        monkeypatch.setattr(target, {"place": fail})
    with pytest.raises(StorageUnavailable, match=os.strerror(error)):
        await local_store.put("a/b.png", b"new", "image/png")
    with pytest.raises(StorageUnavailable):
        await local_store.put("a/new.png", b"new", "image/png")
    monkeypatch.undo()
    assert files(root) == ["a/b.png"]
    assert await local_store.get("a/b.png") == b"old"
    await local_store.put("a/b.png", b"new", "image/png")
    assert await local_store.get("a/b.png") == b"new"


@pytest.mark.parametrize("first", ["a", "a/b/c"])
async def test_an_object_cannot_also_be_a_folder(local_store, first):
    second = "a/b/c" if first == "a" else "a"
    await local_store.put(first, b"x", "image/png")
    with pytest.raises(ValueError, match="above or below another object"):
        await local_store.put(second, b"y", "image/png")
    assert await local_store.get(first) == b"x"


async def test_files_left_by_a_killed_writer_are_swept_once_stale(local_store, root):
    await local_store.put("a/b.png", b"x", "image/png")
    for name, age_s in (("~fresh", 60), ("~stale", 7200)):
        (root / "a" / name).write_bytes(b"half")
        os.utime(root / "a" / name, (time.time() - age_s,) * 2)
    assert await local_store.sweep("", older_than_s=10_000) == 0
    assert files(root) == ["a/b.png", "a/~fresh"]


async def test_folders_that_became_empty_go(local_store, root):
    await local_store.put("tasks/1/2/a.png", b"x", "image/png")
    await local_store.put("tasks/2/a.png", b"x", "image/png")
    await local_store.delete("tasks/1/2/a.png")
    assert not (root / "tasks" / "1").exists()
    await local_store.sweep("tasks/", older_than_s=-1)
    assert list(root.iterdir()) == []


def test_a_writer_killed_at_any_moment_leaves_a_whole_object(root):
    program = (
        "import asyncio, itertools, pathlib, sys\n"
        "from deployments.storage.local import LocalStore\n"
        "store = LocalStore(pathlib.Path(sys.argv[1]), url_base='')\n"
        "async def write():\n"
        "    for n in itertools.count():\n"
        "        await store.put('a.bin', bytes([n % 256]) * 2_000_000, '')\n"
        "        print(n, flush=True)\n"
        "asyncio.run(write())\n"
    )
    for delay_s in (0.0, 0.003, 0.01):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(root)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        ) as process:
            process.stdout.readline()
            time.sleep(delay_s)
            process.kill()
            rest = process.stdout.read().split()
        data = (root / "a.bin").read_bytes()
        assert len(data) == 2_000_000
        assert len(set(data)) == 1
        assert data[0] >= int(rest[-1] if rest else 0) % 256  # what was acknowledged is there
    assert all(name == "a.bin" or name.startswith("~") for name in files(root))
