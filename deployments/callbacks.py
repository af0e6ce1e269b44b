"""Tells the clients' own servers that a task has ended: at least once, signed, retried."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4
from weakref import WeakValueDictionary

from pydantic import SecretStr

from configs.settings import CallbackSettings
from deployments.fetch import INTERNET, FetchFailed, Network, Response, UrlPolicy, UrlRefused, post
from deployments.log import TaskLogger, get_logger
from deployments.storage.store import StorageUnavailable
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.exchange import CallbackJob
from deployments.tasks.model import Status, Task

log = get_logger(__name__)

UrlsOf = Callable[[Task], Awaitable[list[str]]]
"""The addresses of a task's pictures. Raises StorageUnavailable."""

MAX_SENDING = 256
MAX_SENDING_TO_ONE_HOST = 4
MAX_DELAY_S = 86400.0
_POLL_S = 0.5
_STORE_AWAY_S = 2.0
_GRACE_S = 5.0
_LEASE_MARGIN_S = 15.0
_WAIT_FOR_HOST_S = 1.0

_STATUS = {
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELED: "canceled",
}


class CallbackStore(Protocol):
    """What of the task store is used here."""

    async def due_callbacks(
        self, sender: str, *, limit: int, lease_s: float
    ) -> Sequence[CallbackJob]: ...
    async def callback_done(self, job: CallbackJob) -> None: ...
    async def callback_retry(
        self, job: CallbackJob, delay_s: float, reason: str, *, counted: bool = True
    ) -> None: ...
    async def callback_dead(self, job: CallbackJob, reason: str) -> None: ...


class CallbackSender:
    """Sends what is due; any number of senders may share a store.

    A sender that dies between sending and recording leaves a lease behind: once it has run out the
    callback is sent again, under the same `webhook-id`.
    """

    def __init__(
        self,
        store: CallbackStore,
        settings: CallbackSettings,
        urls_of: UrlsOf,
        *,
        network: Network = INTERNET,
    ) -> None:
        self._store = store
        self._settings = settings
        self._urls_of = urls_of
        self._network = network
        self._keys = _signing_keys(settings.secret)
        self._policy = UrlPolicy(
            settings.allowed_private_hosts,
            connect_s=min(5.0, settings.timeout_s),
            total_s=settings.timeout_s,
        )
        self._name = uuid4().hex
        self._sending: set[asyncio.Task[None]] = set()
        # An entry lasts as long as a sending holds on to it.
        self._hosts: WeakValueDictionary[str, _Host] = WeakValueDictionary()

    async def run(self) -> None:
        """Until cancelled; then what is under way gets a few seconds to end."""
        try:
            while True:
                await self._turn()
        finally:
            if self._sending:
                _, late = await asyncio.wait(self._sending, timeout=_GRACE_S)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)

    async def _turn(self) -> None:
        free = MAX_SENDING - len(self._sending)
        if not free:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
            return
        try:
            found = await self._store.due_callbacks(
                self._name, limit=free, lease_s=self._settings.timeout_s + _LEASE_MARGIN_S
            )
        except StoreUnavailable as error:
            log.warning("callbacks wait: %s", error)
            await asyncio.sleep(_STORE_AWAY_S)
            return
        except Exception:
            # Whatever lies in the store, this loop has to outlive it.
            log.exception("callbacks wait")
            await asyncio.sleep(_STORE_AWAY_S)
            return
        for job in found:
            task = asyncio.create_task(self._settle(job))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        if not found:
            await asyncio.sleep(_POLL_S * random.uniform(0.5, 1.5))  # noqa: S311 - spreads senders

    async def _settle(self, job: CallbackJob) -> None:
        """Send once and record how it went."""
        host = self._hosts.setdefault(_netloc(job.task.callback_url or ""), _Host())
        try:
            async with host.place() as free:
                if free:
                    await self._send(job)
                else:
                    await self._store.callback_retry(
                        job, host.wait_s(), "its host is busy", counted=False
                    )
        except StoreUnavailable as error:
            # The lease runs out and it is sent again: rather twice than never.
            TaskLogger(log, job.task.id).warning("callback not recorded: %s", error)

    async def _send(self, job: CallbackJob) -> None:
        retry_after_s = 0.0
        try:
            response = await self._post(job)
            if 200 <= response.status < 300:
                await self._store.callback_done(job)
                TaskLogger(log, job.task.id).info("callback delivered, attempt %d", job.attempt)
                return
            reason, retry_after_s = f"answered {response.status}", retry_after(response)
            if response.status == 410:
                await self._give_up(job, reason)
                return
        except StorageUnavailable as error:
            await self._store.callback_retry(job, _STORE_AWAY_S, str(error), counted=False)
            return
        except (FetchFailed, UrlRefused) as error:
            reason = str(error)
        except StoreUnavailable:
            raise
        except Exception:
            # One callback that cannot be built must not come round for ever, nor stop the others.
            TaskLogger(log, job.task.id).exception("callback not sent")
            reason = "internal error"
        await self._retry(job, reason, retry_after_s)

    async def _post(self, job: CallbackJob) -> Response:
        body = json.dumps(await self._body(job.task)).encode()
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": job.webhook_id,
            "webhook-timestamp": timestamp,
        }
        if self._keys:
            headers["webhook-signature"] = sign(self._keys, job.webhook_id, timestamp, body)
        url = job.task.callback_url or ""
        return await post(url, body, headers, self._policy, network=self._network)

    async def _body(self, task: Task) -> dict[str, Any]:
        body: dict[str, Any] = {"task_id": task.id, "status": _STATUS[task.status]}
        if task.status is Status.SUCCEEDED:
            urls = await self._urls_of(task)
            if task.lora_id is not None:
                return body | {"lora_id": task.lora_id, "result_urls": urls}
            # One picture or several as the task's own view has it: by what was asked for.
            single = task.input.get("num_images", 1) == 1 and len(urls) == 1
            return body | ({"image_url": urls[0]} if single else {"image_urls": urls})
        if task.status is Status.FAILED:
            body["error_message"] = task.error.message if task.error else "unknown"
        return body

    async def _retry(self, job: CallbackJob, reason: str, retry_after_s: float) -> None:
        if job.attempt >= self._settings.max_attempts:
            await self._give_up(job, f"{reason}, attempt {job.attempt} was the last")
            return
        delay_s = max(backoff(job.attempt, self._settings.backoff_s), retry_after_s)
        await self._store.callback_retry(job, delay_s, reason)
        TaskLogger(log, job.task.id).info(
            "callback attempt %d: %s; again in %.1f s", job.attempt, reason, delay_s
        )

    async def _give_up(self, job: CallbackJob, reason: str) -> None:
        await self._store.callback_dead(job, reason)
        TaskLogger(log, job.task.id).warning("callback given up: %s", reason)


class _Host:
    """A few places, so that a host that hangs holds no more; its other callbacks are put off."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MAX_SENDING_TO_ONE_HOST)
        self._began: list[float] = []

    @asynccontextmanager
    async def place(self) -> AsyncIterator[bool]:
        """Whether there is one; waited for only while the host is known to be quick."""
        if self._places.locked() and self._held_s() > _WAIT_FOR_HOST_S:
            yield False
            return
        try:
            async with asyncio.timeout(_WAIT_FOR_HOST_S):
                await self._places.acquire()
        except TimeoutError:
            yield False
            return
        began = time.monotonic()
        self._began.append(began)
        try:
            yield True
        finally:
            self._began.remove(began)
            self._places.release()

    def wait_s(self) -> float:
        """As long as it has kept us waiting: a busy host is asked again soon, a dead one late."""
        return max(self._held_s(), 0.2) * random.uniform(0.5, 1.5)  # noqa: S311

    def _held_s(self) -> float:
        now = time.monotonic()
        return now - min(self._began, default=now)


def backoff(attempt: int, first_s: float) -> float:
    """Seconds to wait after attempt 1, 2, ...: anything up to first_s, 3 first_s, 9 first_s ...

    Full jitter: what failed together does not come back together.
    """
    longest_s = min(first_s * 3.0 ** min(attempt - 1, 30), MAX_DELAY_S)
    return random.uniform(0, longest_s)  # noqa: S311 - no secret


def retry_after(response: Response) -> float:
    """Seconds the answer asks to wait, at most a day; 0 where it asks nothing legible."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:9]), MAX_DELAY_S)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max((when - datetime.now(UTC)).total_seconds(), 0.0), MAX_DELAY_S)


def sign(keys: Sequence[bytes], webhook_id: str, timestamp: str, body: bytes) -> str:
    """`webhook-signature` as Standard Webhooks 1.0 has it: one `v1,...` for each key."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(key, signed, hashlib.sha256) for key in keys)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def _signing_keys(secret: SecretStr | None) -> list[bytes]:
    """Raises ValueError, which tells nothing of the secret."""
    words = secret.get_secret_value().split() if secret else []
    try:
        keys = [base64.b64decode(word.removeprefix("whsec_"), validate=True) for word in words]
    except ValueError:
        keys = [b""]
    if not all(len(key) >= 16 for key in keys):
        raise ValueError(
            "callbacks.secret must be `whsec_` and base64 of at least 16 bytes (24 are usual)"
        )
    return keys


def _netloc(url: str) -> str:
    """Only to tell hosts apart; what is dialled is judged elsewhere."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return url
