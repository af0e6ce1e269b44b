"""The task store: every verb is one atomic script call on Redis, safe to repeat."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from redis.asyncio import Redis

from configs.settings import TaskSettings
from deployments.tasks.account import AccountStore
from deployments.tasks.argument import beaten, claimed, digest, new_id, refuse, us
from deployments.tasks.caller import CallerStore
from deployments.tasks.card import CardStore
from deployments.tasks.errors import IdempotencyConflict, QueueFull, TaskNotFound
from deployments.tasks.exchange import Beat, CallbackJob, Page, Renewal, WorkerInfo
from deployments.tasks.model import (
    Claim,
    Claimed,
    Depth,
    Event,
    Kind,
    NewTask,
    Output,
    Position,
    Status,
    Task,
    TaskError,
)
from deployments.tasks.record import damaged, read_event, read_task
from deployments.tasks.script import (
    Script,
    block_ms,
    blocking_client,
    command_client,
    script_text,
)
from pipelines.errors import InvalidRequest

MAX_PAGE = 200
WATCH_TTL_S = 10.0
# `list` is a method below, so the class body cannot name the type.
Claims: TypeAlias = list[Claimed]
Events: TypeAlias = list[Event]
Jobs: TypeAlias = list[CallbackJob]
Tasks: TypeAlias = list[Task]
Entries: TypeAlias = list[tuple[bytes, dict[bytes, bytes]]]

_EVENT_ID = re.compile(r"\d{1,18}(-\d{1,18})?", re.ASCII)


class TaskStore:
    """Tasks in Redis. Every method may raise StoreUnavailable, within seconds.

    Repeating a call is always safe where its ids are the caller's own (`task_id`, claim,
    `request_id`); the store repeats by itself a call whose reply was lost.
    """

    def __init__(
        self, commands: Redis, blocking: Redis, settings: TaskSettings, *, max_queue: int
    ) -> None:
        self._commands = commands
        self._blocking = blocking
        self._settings = settings
        self._max_queue = max_queue
        self._script = Script(commands, settings, script_text())
        self._run = self._script.__call__
        self.callers = CallerStore(commands, self._script)
        self.accounts = AccountStore(commands, settings)
        self.cards = CardStore(commands, self._script)

    @classmethod
    def connect(cls, url: str, settings: TaskSettings, *, max_queue: int) -> TaskStore:
        """Open lazily: nothing is dialled before the first call. One event loop per store."""
        commands, blocking = command_client(url, settings), blocking_client(url, settings)
        return cls(commands, blocking, settings, max_queue=max_queue)

    async def close(self) -> None:
        """Release both clients' connections."""
        await self._script.settle()
        await self.accounts.settle()
        await self._commands.aclose()
        await self._blocking.aclose()

    async def ping(self) -> None:
        """Answer, or raise StoreUnavailable."""
        async with self._script.errors():
            await self._commands.ping()

    # Clients' side

    async def create(
        self, new: NewTask, *, task_id: str, fingerprint: str | None = None
    ) -> tuple[Task, bool]:
        """The task, and whether this call (or its lost first try) made it.

        `fingerprint` stands for the request as the client sent it, by default all of `new`: pass
        it where `new` holds anything made on the way, such as a random seed. Raises QueueFull,
        IdempotencyConflict; TaskNotFound where a task of this id was deleted.
        """
        body = new.model_dump(mode="json", exclude={"idempotency_key"})
        idem = None
        if new.idempotency_key is not None:
            idem = digest(new.owner, new.idempotency_key)
            fingerprint = fingerprint or digest(json.dumps(body, sort_keys=True))
        word, rest = await self._run(
            "create",
            id=task_id,
            **{name: body[name] for name in ("kind", "queue", "owner", "priority")},
            input=json.dumps(body["input"]),
            delay=us(new.delay_s),
            not_before=None if new.not_before is None else us(new.not_before.timestamp()),
            callback_url=new.callback_url,
            idem=idem,
            fingerprint=fingerprint,
            max_queue=self._max_queue,
        )
        if word == "full":
            raise QueueFull(self._max_queue, min(max(int(rest[0]) / 1e6, 1.0), 60.0))
        if word == "conflict":
            raise IdempotencyConflict(new.idempotency_key or "")
        if word == "gone":
            raise TaskNotFound(task_id)
        return read_task(rest[0]), word == "created"

    async def made(self, owner: str, idempotency_key: str, fingerprint: str) -> Task | None:
        """The task that `create` would find. Raises IdempotencyConflict."""
        task_id, known = await self.callers.made(owner, idempotency_key)
        if task_id is not None and known != fingerprint:
            raise IdempotencyConflict(idempotency_key)
        return None if task_id is None else await self.get(task_id)

    async def get(self, task_id: str, *, owner: str | None = None) -> Task:
        """The task as it stands. Raises TaskNotFound, also for someone else's."""
        return await self._one("get", task_id, owner)

    async def list(
        self,
        *,
        owner: str | None,
        status: Status | None = None,
        kind: Kind | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Newest first; at most MAX_PAGE a page. Raises InvalidRequest for a foreign cursor."""
        if cursor is not None and not re.fullmatch(r"\d{1,15}", cursor, re.ASCII):
            raise InvalidRequest("cursor", f"cursor must be a next_cursor of this list: {cursor!r}")
        _, (last, *records) = await self._run(
            "list",
            owner=owner,
            status=status,
            kind=kind,
            limit=min(max(limit, 1), MAX_PAGE),
            before=cursor,
        )
        return Page(tuple(read_task(record) for record in records), last.decode() or None)

    async def cancel(self, task_id: str, *, owner: str | None = None) -> Task:
        """End it now; whoever runs it finds its claim stale. Raises TaskNotFound, AlreadyEnded."""
        return await self._one("cancel", task_id, owner)

    async def give_up(self, task_id: str, error: TaskError) -> Task:
        """Fail it while it is queued. Raises TaskNotFound, NotQueued."""
        return await self._one("give_up", task_id, None, error=error.model_dump_json())

    async def delete(self, task_id: str, *, owner: str | None = None) -> Task:
        """Remove an ended task's record. Raises TaskNotFound, NotEnded."""
        return await self._one("delete", task_id, owner, rid=new_id())

    async def set_priority(self, task_id: str, priority: int, *, owner: str | None = None) -> Task:
        """Give it another rank, behind older tasks of that rank. Raises TaskNotFound, NotQueued."""
        return await self._one("priority", task_id, owner, priority=priority)

    async def move_to_front(self, task_id: str, *, owner: str | None = None) -> Task:
        """Before everything that waits now. Raises TaskNotFound, NotQueued."""
        return await self._one("front", task_id, owner, rid=new_id())

    async def pause(self, task_id: str, *, owner: str | None = None) -> Task:
        """Out of its queue, or of its worker's hands, until `resume`; one that is paused for the
        retention fails. Raises TaskNotFound, NotPausable, AlreadyEnded."""
        return await self._one("pause", task_id, owner, rid=new_id())

    async def resume(self, task_id: str, *, owner: str | None = None) -> Task:
        """Back to its old place in the queue. Raises TaskNotFound, NotPaused."""
        return await self._one("resume", task_id, owner, rid=new_id())

    async def position(self, task_id: str) -> Position | None:
        """Where a waiting task stands; None once it does not wait."""
        word, rest = await self._run("position", task=task_id)
        if word == "none":
            return None
        return Position(ahead=int(rest[0]), eta_s=int(rest[1]) / 1e6 if rest[1] else None)

    async def depth(self, queue: str) -> Depth:
        """How many tasks wait, run, and wait for their time."""
        _, (queued, running, scheduled) = await self._run("depth", queue=queue)
        return Depth(queued=queued, running=running, scheduled=scheduled)

    # Workers' side

    async def claim(
        self, queue: str, worker: str, *, limit: int, request_id: str, above: int | None = None
    ) -> Claims:
        """Take up to `limit` tasks; the same `request_id` again gives the same claims again.

        With `above`, only as long as the next in the queue has a higher priority than that.
        After StoreUnavailable, repeat with the same id: the tasks may already be this worker's.
        """
        _, records = await self._run(
            "claim",
            queue=queue,
            worker=worker,
            limit=max(limit, 0),
            rid=request_id,
            **({} if above is None else {"above": above}),
            **self._terms(),
        )
        found = []
        for task in map(read_task, records):
            claim = Claim(task_id=task.id, fence=task.attempt, worker=worker)
            if damaged(task):
                assert task.error is not None
                await self.fail(claim, task.error, retryable=False)
            else:
                found.append(Claimed(claim=claim, task=task))
        return found

    async def sweep(self, queue: str) -> int:
        """Queue what is due and what lost its worker, or give it up; `claim` does so too."""
        _, (moved,) = await self._run("sweep", queue=queue, **self._terms())
        return int(moved)

    async def wait_for_work(self, queue: str, *, timeout_s: float) -> None:
        """Return when something is queued or due, at the latest after `timeout_s`."""
        _, (last, queued, due_us) = await self._run("peek", queue=queue)
        wait_s = min(timeout_s, int(due_us) / 1e6 if due_us else timeout_s)
        if queued or wait_s <= 0:
            return
        await self._read(f"wake:{queue}", last.decode(), wait_s)

    async def renew(self, beats: Sequence[Beat]) -> Renewal:
        """Put every lease off by another term and note progress, which never goes back."""
        if not beats:
            return Renewal(frozenset(), frozenset())
        _, words = await self._run(
            "renew", beats=[beaten(beat) for beat in beats], lease=self._terms()["lease"]
        )
        by_word: dict[bytes, set[str]] = {}
        for beat, word in zip(beats, words, strict=True):
            by_word.setdefault(word, set()).add(beat.claim.task_id)
        found = (by_word.get(word, ()) for word in (b"stale", b"watched", b"hurried"))
        return Renewal(*map(frozenset, found))

    async def preview(self, claim: Claim, jpeg: bytes) -> bool:
        """Show an unfinished picture to whoever listens; only the newest is kept."""
        data = json.dumps({"image": base64.b64encode(jpeg).decode(), "content_type": "image/jpeg"})
        return await self._settle("preview", claim, data=data, rid=new_id())

    async def succeed(
        self, claim: Claim, outputs: Sequence[Output], *, steps: int | None = None
    ) -> bool:
        """End as succeeded, with all of its `steps` done (None: as last reported).

        False: the claim is stale and nothing was changed.
        """
        found = json.dumps([output.model_dump(mode="json") for output in outputs])
        return await self._settle("succeed", claim, outputs=found, steps=steps)

    async def fail(self, claim: Claim, error: TaskError, *, retryable: bool) -> Task | None:
        """Count an error: queued again after a backoff, or failed. None: the claim is stale."""
        word, rest = await self._run(
            "fail",
            **claimed(claim),
            error=error.model_dump_json(),
            retryable=retryable,
            backoff=us(self._settings.backoff_s),
            max_errors=self._settings.max_errors,
        )
        return read_task(rest[0]) if word == "ok" else None

    async def release(self, claim: Claim) -> bool:
        """Hand it back to its old place in the queue. False: the claim is stale."""
        return await self._settle("release", claim)

    async def announce(self, queue: str, worker: str, *, info: WorkerInfo, ttl_s: float) -> None:
        """Be counted as a live worker of the queue for `ttl_s`."""
        text = json.dumps(dict(info))
        await self._run("announce", queue=queue, worker=worker, info=text, ttl=us(ttl_s))

    async def withdraw(self, queue: str, worker: str) -> None:
        """Be counted no more."""
        await self._run("withdraw", queue=queue, worker=worker)

    async def workers(self, queue: str) -> dict[str, dict[str, Any]]:
        """Live workers' infos by name."""
        _, flat = await self._run("workers", queue=queue)
        names = [name.decode("utf-8", "replace") for name in flat[::2]]
        return {name: json.loads(info) for name, info in zip(names, flat[1::2], strict=True)}

    # Events

    async def events(
        self, task_id: str, *, after: str = "0", block_s: float = 2.0, watch: bool = True
    ) -> Events:
        """What happened after that event id, waiting up to `block_s` if nothing did.

        Progress and previews are only made for a task that was watched within the last
        WATCH_TTL_S. Raises InvalidRequest for an `after` that is no event id.
        """
        if not _EVENT_ID.fullmatch(after):
            raise InvalidRequest("after", f"after must be an event id such as 0 or 17-0: {after!r}")
        if watch:
            async with self._script.errors():
                await self._commands.set(
                    self._script.key(f"watch:{task_id}"), 1, px=int(WATCH_TTL_S * 1000)
                )
        entries = await self._read(f"events:{task_id}", after, block_s)
        found = (read_event(event_id, fields) for event_id, fields in entries)
        return [event for event in found if event is not None]

    # Callbacks

    async def due_callbacks(self, sender: str, *, limit: int = 20, lease_s: float = 60.0) -> Jobs:
        """Lease what is due; not settled within `lease_s`, a callback is due again."""
        _, found = await self._run(
            "due_callbacks", sender=sender, limit=limit, lease=us(lease_s), rid=new_id()
        )
        return [
            CallbackJob(read_task(record), webhook_id.decode(), int(attempt), int(fence))
            for record, webhook_id, attempt, fence in found
        ]

    async def callback_done(self, job: CallbackJob) -> None:
        """Delivered: never again."""
        await self._settle_callback(job, "done", "")

    async def callback_retry(
        self, job: CallbackJob, delay_s: float, reason: str, *, counted: bool = True
    ) -> None:
        """Not delivered: due again after `delay_s`, not `counted` as the same attempt."""
        await self._settle_callback(job, "due", reason, delay=us(delay_s), uncounted=not counted)

    async def callback_dead(self, job: CallbackJob, reason: str) -> None:
        """Given up."""
        await self._settle_callback(job, "dead", reason)

    # Expiry

    async def sweep_expired(self, limit: int = 100) -> Tasks:
        """Remove tasks that ended longer ago than the retention; their blobs are the caller's."""
        _, records = await self._run(
            "expire", limit=limit, retention=us(self._settings.retention_s), rid=new_id()
        )
        return [read_task(record) for record in records]

    # Inside

    def _terms(self) -> dict[str, int]:
        settings = self._settings
        return {
            "lease": us(settings.lease_s),
            "max_lost": settings.max_lost,
            "retention": us(settings.retention_s),
        }

    async def _one(self, verb: str, task_id: str, owner: str | None, **more: object) -> Task:
        word, rest = await self._run(verb, task=task_id, owner=owner, **more)
        if word != "ok":
            refuse(word, task_id, rest)
        return read_task(rest[0])

    async def _settle(self, verb: str, claim: Claim, **more: object) -> bool:
        word, _ = await self._run(verb, **claimed(claim), **more)
        return word == "ok"

    async def _settle_callback(
        self, job: CallbackJob, state: str, reason: str, **more: object
    ) -> None:
        await self._run(
            "callback", task=job.task.id, fence=job.fence, state=state, reason=reason, **more
        )

    async def _read(self, stream: str, after: str, block_s: float) -> Entries:
        key = self._script.key(stream)
        async with self._script.errors(block_s):
            found = await self._blocking.xread({key: after}, block=block_ms(block_s))
        streams = cast("list[tuple[bytes, Entries]]", found)  # as protocol 2 answers
        return streams[0][1] if streams else []
