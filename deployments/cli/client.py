"""A small synchronous client of the native API, for the command line and for Python.

with Client("http://127.0.0.1:8000") as client:
    task = client.run({"prompt": "a fox"})
    pictures = [client.download(url) for url in task.urls]
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

import httpx

from deployments.address import is_loopback
from deployments.cli.wire import (
    ApiError,
    BadAddress,
    RemoteTask,
    ServerEvent,
    Unreachable,
    parse_error,
    parse_events,
)

API = "api/v1"
SCHEDULES = f"{API}/schedules"
FIRST_PATIENCE_S = 2.0
"""How long a server that never answered is called again."""
PATIENCE_S = 60.0
"""How long one that has answered is given to come back: a replica restarts in seconds."""
POLL_S = 0.5
REFRESH_S = 3.0
"""A waiting task is asked for its queue position this often."""
CRASH_PATIENCE_S = 10.0
"""How long a 500 is asked again: a replica that died under a request answers so, once."""
UPLOAD_TIMEOUT_S = 600.0
"""For the answer to a file, which the server stores before."""
RETRIED = frozenset({408, 429, 500, 502, 503, 504})


class Client:
    """Speaks to one server. Every request is repeatable, so connection faults are retried.

    All verbs raise ApiError (the server refused), Unreachable (no usable answer in time).
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        on_retry: Callable[[str], None] = lambda reason: None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base = _checked(url)
        self._key: dict[str, Any] = {}
        if api_key:
            # a bearer token too, for a server whose settings name another header
            key = api_key.encode()
            self._key = {"X-API-Key": key, "Authorization": b"Bearer " + key}
        self._http = httpx.Client(
            timeout=httpx.Timeout(30.0, connect=5.0),
            transport=transport,
            # a proxy for the wide world must not be asked for this machine's own server
            trust_env=not is_loopback(self.base.host),
            headers={"user-agent": "daguerre-cli"},
        )
        self._on_retry = on_retry
        self._sleep = sleep
        self._clock = clock
        self._answered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release connections."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """The server's own word on its state."""
        return self._json("GET", "health")

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> RemoteTask:
        """Create a task; the same key again gives the same task."""
        key = idempotency_key or str(uuid.uuid4())
        answer = self._json(
            "POST", f"{API}/generate", json=dict(body), headers={"Idempotency-Key": key}
        )
        return RemoteTask.parse(answer)

    def task(self, task_id: str) -> RemoteTask:
        """One task as it stands."""
        return RemoteTask.parse(self._json("GET", _task_path(task_id)))

    def tasks(self, *, status: str | None = None, limit: int = 20) -> list[RemoteTask]:
        """The newest tasks first, at most `limit`."""
        found: list[RemoteTask] = []
        cursor: str | None = None
        while len(found) < limit:
            params = {"limit": str(min(limit - len(found), 100))}
            params |= {"status": status} if status else {}
            params |= {"cursor": cursor} if cursor else {}
            page = self._json("GET", f"{API}/tasks", params=params)
            found += [RemoteTask.parse(each) for each in page["tasks"]]
            cursor = page.get("next_cursor")
            if not cursor:
                break
        return found[:limit]

    def cancel(self, task_id: str) -> RemoteTask:
        """Cancel it; a canceled task stays canceled, an ended one is an ApiError 409."""
        return RemoteTask.parse(self._json("DELETE", _task_path(task_id)))

    def pause(self, task_id: str) -> RemoteTask:
        """Pause a training; other tasks are an ApiError 409."""
        return RemoteTask.parse(self._json("POST", f"{_task_path(task_id)}/pause"))

    def resume(self, task_id: str) -> RemoteTask:
        """Resume a paused training; others are an ApiError 409.

        A call that is repeated because its answer was lost may be refused as not paused.
        """
        return RemoteTask.parse(self._json("POST", f"{_task_path(task_id)}/resume"))

    def retry(self, task_id: str) -> RemoteTask:
        """A new task like one that failed or was canceled, the same whenever this is repeated."""
        return RemoteTask.parse(self._json("POST", f"{_task_path(task_id)}/retry"))

    def schedules(self) -> list[dict[str, Any]]:
        """All of one's own, newest first."""
        found: list[dict[str, Any]] = self._json("GET", SCHEDULES)["schedules"]
        return found

    def create_schedule(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """With its id and its next time."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._json("POST", SCHEDULES, json=dict(body), headers=headers)

    def change_schedule(self, schedule_id: str, **changes: Any) -> dict[str, Any]:
        """What is not named stays."""
        return self._json("PATCH", _schedule_path(schedule_id), json=changes)

    def delete_schedule(self, schedule_id: str) -> None:
        """Tasks that it made stay."""
        self._json("DELETE", _schedule_path(schedule_id))

    def loras(self, *, name: str | None = None, mine: bool = False) -> list[dict[str, Any]]:
        """All that one may use, newest first; `name` is how the name begins."""
        found: list[dict[str, Any]] = []
        params = {"limit": "200", "mine": str(mine).lower()} | ({"name": name} if name else {})
        while True:
            page = self._json("GET", f"{API}/loras", params=params)
            found += page["loras"]
            if not page.get("next_cursor"):
                return found
            params["cursor"] = page["next_cursor"]

    def import_lora(self, path: Path, fields: Mapping[str, str]) -> dict[str, Any]:
        """Upload a file; `fields` are those of the form besides."""
        with path.open("rb") as file:
            return self._json(
                "POST",
                f"{API}/loras/import",
                data=dict(fields),
                files={"file": (path.name, file)},
                headers={"Idempotency-Key": str(uuid.uuid4())},
                timeout=UPLOAD_TIMEOUT_S,
            )

    def train(self, archive: IO[bytes], fields: Mapping[str, Any]) -> RemoteTask:
        """Create a training of a zip archive's pictures; `fields` are those of the form besides."""
        answer = self._json(
            "POST",
            f"{API}/loras",
            data=dict(fields),
            files={"pictures": ("pictures.zip", archive)},
            headers={"Idempotency-Key": str(uuid.uuid4())},
            timeout=UPLOAD_TIMEOUT_S,
        )
        return RemoteTask.parse(answer)

    def portrait(
        self, files: Sequence[tuple[str, tuple[str, bytes]]], fields: Mapping[str, Any]
    ) -> RemoteTask:
        """Create a portrait; `files` are (field, (name, bytes)), `fields` the rest of the form."""
        answer = self._json(
            "POST",
            f"{API}/portraits",
            data=dict(fields),
            files=list(files),
            headers={"Idempotency-Key": str(uuid.uuid4())},
            timeout=UPLOAD_TIMEOUT_S,
        )
        return RemoteTask.parse(answer)

    def delete_lora(self, lora_id: str) -> None:
        """No new request finds it."""
        self._json("DELETE", f"{API}/loras/{quote(lora_id, safe='')}")

    def run(
        self, body: Mapping[str, Any], on_change: Callable[[RemoteTask], None] | None = None
    ) -> RemoteTask:
        """Submit and wait; returns the ended task, whatever its end."""
        submitted = self.submit(body)
        return self.wait(submitted.id, on_change or (lambda task: None))

    def wait(self, task_id: str, on_change: Callable[[RemoteTask], None]) -> RemoteTask:
        """Follow a task to its end."""
        for task in self.follow(task_id):
            on_change(task)
        return task

    def follow(self, task_id: str) -> Iterator[RemoteTask]:
        """The task each time something about it changed; the last one has ended.

        Listens to the event stream; where there is none, asks again and again.
        """
        streaming, last_event = True, ""
        while True:
            task = self.task(task_id)
            yield task
            if task.ended:
                return
            if streaming:
                try:
                    for event, seen in self._live(task, last_event):
                        last_event = event.id or last_event
                        yield (task := seen)
                except ApiError as refusal:
                    # a server in trouble may stream again, one without a stream will not
                    streaming = refusal.status >= 500
                except httpx.TransportError:
                    pass  # the stream broke off; the task itself is asked again
            if not task.ended:
                self._sleep(POLL_S)

    def download(self, url: str) -> bytes:
        """The bytes of a result. No API key goes along: the address may be another host's."""
        response = self._send("GET", str(self.base.join(url)), follow_redirects=True)
        if response.is_error:
            raise ApiError(response.status_code, f"result could not be fetched from {url}")
        return response.content

    def _live(self, task: RemoteTask, after: str) -> Iterator[tuple[ServerEvent, RemoteTask]]:
        """Events applied to the task; ends with the stream, at the task's end, or to look anew."""
        headers = self._key | {"accept": "text/event-stream"}
        headers |= {"last-event-id": after} if after else {}
        url = self.base.join(f"{_task_path(task.id)}/events")
        began = self._clock()
        with self._http.stream("GET", url, headers=headers) as response:
            is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
            if response.is_error or not is_stream:
                response.read()
                raise _refusal(response)
            for event in parse_events(response.iter_lines()):
                task = event.applied_to(task)
                if event.type != "keepalive":
                    yield event, task
                if task.ended or (task.is_waiting and self._clock() - began > REFRESH_S):
                    return

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        headers = self._key | options.pop("headers", {})
        response = self._send(method, str(self.base.join(path)), headers=headers, **options)
        if response.is_error:
            raise _refusal(response)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ApiError(response.status_code, f"{self.base} does not answer like Daguerre")
        return answer

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Send until there is an answer worth having or patience is over."""
        began, pause = self._clock(), 0.2
        while True:
            response: httpx.Response | None = None
            try:
                response = self._http.request(method, url, **options)
            except httpx.TransportError as fault:
                reason = f"no answer from {self.base}: {str(fault) or type(fault).__name__}"
            else:
                self._answered = True
                if response.status_code not in RETRIED:
                    return response
                reason = str(_refusal(response))
            wait = max(pause * random.uniform(0.8, 1.2), _retry_after_s(response))  # noqa: S311
            if self._clock() - began + wait > self._patience_s(response):
                if response is not None:
                    return response
                raise Unreachable(reason)
            self._on_retry(f"{reason}; trying again in {wait:.1f} s")
            self._sleep(wait)
            pause = min(pause * 2, 5.0)

    def _patience_s(self, response: httpx.Response | None) -> float:
        if response is not None and response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            return CRASH_PATIENCE_S
        return PATIENCE_S if self._answered else FIRST_PATIENCE_S


def _refusal(response: httpx.Response) -> ApiError:
    return parse_error(response.status_code, response.content, response.headers)


def _checked(url: str) -> httpx.URL:
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadAddress(f"{url!r} is no URL: {error}") from None
    if base.scheme not in ("http", "https") or not base.host:
        raise BadAddress(f"{url!r} is no http:// or https:// URL")
    return base.copy_with(path=f"{base.path.rstrip('/')}/", query=None, fragment=None)


def _task_path(task_id: str) -> str:
    # an id is one path segment, whatever was typed
    return f"{API}/tasks/{quote(task_id, safe='')}"


def _schedule_path(schedule_id: str) -> str:
    return f"{SCHEDULES}/{quote(schedule_id, safe='')}"


def _retry_after_s(response: httpx.Response | None) -> float:
    return (_refusal(response).retry_after_s or 0.0) if response is not None else 0.0
