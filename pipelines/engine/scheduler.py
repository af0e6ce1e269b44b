"""Which requests run in the next step. Pure bookkeeping: imports no torch.

Requests wait and run per batch key. Within a key, admission is by priority, then age; a request
gains a priority for every `ageing_s` that it waits, so none waits for ever. Nobody overtakes a
request that does not fit yet; for one of higher priority, running ones are parked until there is
room for them again. One that reuses deep features joins at a full step of others of its period, so
that they share forwards, where that takes nobody's rows. Between keys, deficit round robin shares
the device: every key with work gets the same share of compute, so no picture size blocks another.
"""

from __future__ import annotations

import bisect
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipelines.engine.ticket import BatchKey, Ticket

AGEING_S = 30.0
"""So much waiting makes up for one priority."""


@dataclass(frozen=True)
class Schedule:
    """One step's decision."""

    admitted: tuple[str, ...] = ()
    """Requests that join now, best first; those that were parked before included."""
    batch: tuple[str, ...] = ()
    """Requests of the one forward of this step; those just admitted included."""
    parked: tuple[str, ...] = ()
    """Requests that ran and wait again, as they are."""


@dataclass(eq=False)
class _Entry:
    """A request in the scheduler."""

    ticket: Ticket
    arrival: int
    since: float
    """When it came, put off by the time that it ran in between."""
    joined: float = 0.0
    """While it runs: since when."""
    steps: int = 0
    """Of the batches, those it was in."""
    held: int = 0
    """Schedules that it waited only to run in phase with others."""

    @property
    def phase(self) -> tuple[int, int]:
        """Entries of equal phases are full, and shallow, at the same steps."""
        period = self.ticket.deep_cache
        return period, self.steps % period


@dataclass
class _Lane:
    """The requests of one batch key."""

    waiting: list[_Entry] = field(default_factory=list)
    """Sorted by rank."""
    running: dict[str, _Entry] = field(default_factory=dict)
    rows: int = 0
    """Of the running."""
    deficit: int = 0
    """Row-pixels of latent this key may still spend before its turn ends."""


class Scheduler:
    """Admits and picks. Not thread-safe: it belongs to the engine."""

    def __init__(
        self,
        max_rows: int,
        *,
        cap: Callable[[BatchKey], int] | None = None,
        ageing_s: float = AGEING_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cap` may allow a key fewer rows; `ageing_s` of waiting count as one priority more, 0:
        none do.
        """
        if max_rows < 2:
            raise ValueError(f"max_rows is {max_rows}, at least 2 needed for one guided picture")
        self.max_rows = max_rows
        self._cap = cap or (lambda key: max_rows)
        self._ageing_s = ageing_s
        self._clock = clock
        self._lanes: dict[BatchKey, _Lane] = {}
        self._ring: deque[BatchKey] = deque()
        """Keys with running requests; the first has the turn."""
        self._keys: dict[str, BatchKey] = {}
        self._limits: dict[BatchKey, int] = {}
        """Where memory allows fewer rows than `max_rows`."""
        self._arrivals = 0
        # plain numbers, so that another thread may read them
        self.rows = 0
        """UNet rows of all running requests."""
        self.running = 0
        self.waiting = 0
        self.waiting_rows = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._keys

    def add(self, ticket: Ticket) -> None:
        """Queues a request. Ids are unique among those waiting and running."""
        if ticket.id in self._keys:
            raise ValueError(f"request {ticket.id!r} is already scheduled")
        if not 1 <= ticket.rows <= self.max_rows:
            raise ValueError(f"request {ticket.id!r} has {ticket.rows} rows, 1..{self.max_rows}")
        self._keys[ticket.id] = ticket.key
        lane = self._lanes.setdefault(ticket.key, _Lane())
        self._wait(lane, _Entry(ticket, self._arrivals, self._clock()))
        self._arrivals += 1

    def limit(self, key: BatchKey) -> int:
        """UNet rows of one forward of this key, at most."""
        return min(self._limits.get(key, self.max_rows), self._cap(key))

    def lower_limit(self, key: BatchKey, rows: int) -> None:
        """Fewer rows from now on, at least the two of one guided picture."""
        self._limits[key] = max(2, min(rows, self._limits.get(key, self.max_rows)))

    def remove(self, request_id: str) -> None:
        """Forgets a request wherever it is; its rows are free for the next schedule."""
        key = self._keys.pop(request_id, None)
        if key is None:
            return
        lane = self._lanes[key]
        if running := lane.running.pop(request_id, None):
            self._end(key, lane, running.ticket)
        else:
            self._leave(lane, next(e for e in lane.waiting if e.ticket.id == request_id))
        if not lane.running and not lane.waiting:
            del self._lanes[key]

    def shrink(self, request_id: str, rows: int) -> None:
        """Gives back rows of a running request that none of its coming steps takes.

        Rows are reserved for the dearest step to come: a request never waits for a row in its
        midst, and the cap holds at every step.
        """
        lane = self._lanes[self._keys[request_id]]
        entry = lane.running[request_id]
        ticket = entry.ticket
        freed = ticket.rows - rows
        if not 0 <= freed < ticket.rows:
            raise ValueError(f"request {request_id!r} has {ticket.rows} rows, cannot keep {rows}")
        entry.ticket = replace(ticket, rows=rows)
        lane.rows -= freed
        self.rows -= freed

    def _end(self, key: BatchKey, lane: _Lane, ticket: Ticket) -> None:
        self.running -= 1
        self.rows -= ticket.rows
        lane.rows -= ticket.rows
        if not lane.running:
            # an idle key saves nothing up: its turn and what was left of it are gone
            lane.deficit = 0
            self._ring.remove(key)

    def schedule(self) -> Schedule:
        """Admits everyone who fits, then gives the step to one key. Empty when there is no work."""
        now = self._clock()
        admitted: list[_Entry] = []
        parked: list[_Entry] = []
        for key, lane in self._lanes.items():
            self._admit(key, lane, now, admitted, parked)
        admitted.sort(key=self._rank)
        turn = self._next_key()
        batch = self._lanes[turn].running if turn is not None else {}
        for entry in batch.values():
            entry.steps += 1
        return Schedule(
            tuple(entry.ticket.id for entry in admitted),
            tuple(batch),
            tuple(entry.ticket.id for entry in parked),
        )

    def _admit(
        self,
        key: BatchKey,
        lane: _Lane,
        now: float,
        admitted: list[_Entry],
        parked: list[_Entry],
    ) -> None:
        held = self._out_of_phase(key, lane)
        while entry := next((e for e in lane.waiting if e not in held), None):
            victims = list[_Entry]()
            # one wider than the limit runs alone
            if lane.running and lane.rows + entry.ticket.rows > self.limit(key):
                # one that only its age brought to the front parks nobody: the urgent pass it
                entry = max(lane.waiting, key=lambda e: (e.ticket.priority, -e.arrival))
                if not (victims := self._less_urgent(key, lane, entry)):
                    break
            self._leave(lane, entry)
            for victim in victims:
                self._park(key, lane, victim, now)
            parked += victims
            self._join(key, lane, entry, now)
            admitted.append(entry)

    def _out_of_phase(self, key: BatchKey, lane: _Lane) -> list[_Entry]:
        """Those that wait for a full step of others of their period, at most period - 1 schedules.

        None where there is no room for all that wait: holding one would delay another.
        """
        room = self.limit(key) - lane.rows
        if len(lane.waiting) > room or sum(e.ticket.rows for e in lane.waiting) > room:
            return []
        phases = {entry.phase for entry in lane.running.values()}
        periods = {period for period, _ in phases}
        held = []
        for entry in lane.waiting:
            period, _ = entry.phase
            if period in periods and entry.phase not in phases and entry.held < period - 1:
                entry.held += 1
                held.append(entry)
        return held

    def _less_urgent(self, key: BatchKey, lane: _Lane, entry: _Entry) -> list[_Entry]:
        """Running requests of lower priority whose rows this one needs; none if they are too few.

        The least urgent first, and of those the latest.
        """
        ticket = entry.ticket
        missing = lane.rows + ticket.rows - self.limit(key)
        chosen: list[_Entry] = []
        for other in sorted(lane.running.values(), key=lambda e: (e.ticket.priority, -e.arrival)):
            if missing <= 0:
                break
            if self._yields(other, ticket):
                chosen.append(other)
                missing -= other.ticket.rows
        return chosen if missing <= 0 else []

    def _rank(self, entry: _Entry) -> tuple[float, int]:
        """The order of those that wait. Everyone's age grows alike, so it stays as it is."""
        if not self._ageing_s:
            return -entry.ticket.priority, entry.arrival
        return entry.since - entry.ticket.priority * self._ageing_s, entry.arrival

    def _yields(self, running: _Entry, ticket: Ticket) -> bool:
        """Whether this ticket, come when that one joined, would have been before it.

        So one that has waited for long keeps its rows, and is not parked again and again.
        """
        return self._rank(_Entry(ticket, 0, running.joined))[0] < self._rank(running)[0]

    def _wait(self, lane: _Lane, entry: _Entry) -> None:
        bisect.insort(lane.waiting, entry, key=self._rank)
        self.waiting += 1
        self.waiting_rows += entry.ticket.rows

    def _leave(self, lane: _Lane, entry: _Entry) -> None:
        lane.waiting.remove(entry)
        self.waiting -= 1
        self.waiting_rows -= entry.ticket.rows

    def _join(self, key: BatchKey, lane: _Lane, entry: _Entry, now: float) -> None:
        if not lane.running:
            self._ring.append(key)
        lane.running[entry.ticket.id] = entry
        entry.joined = now
        lane.rows += entry.ticket.rows
        self.rows += entry.ticket.rows
        self.running += 1

    def _park(self, key: BatchKey, lane: _Lane, victim: _Entry, now: float) -> None:
        """Back among those that wait, before the later ones of its priority."""
        del lane.running[victim.ticket.id]
        self._end(key, lane, victim.ticket)
        priority = victim.ticket.priority
        equals = [e.since for e in lane.waiting if e.ticket.priority == priority]
        victim.since = min([victim.since + now - victim.joined, *equals])
        self._wait(lane, victim)

    def _next_key(self) -> BatchKey | None:
        """Deficit round robin (Shreedhar and Varghese, 1995), cost = rows x latent pixels."""
        if not self._ring:
            return None
        costs = {key: self._cost(key) for key in self._ring}
        # a quantum of the dearest batch lets every key step at least once a round
        quantum = max(costs.values())
        while True:
            key = self._ring[0]
            lane = self._lanes[key]
            if lane.deficit >= costs[key]:
                lane.deficit -= costs[key]
                return key
            self._ring.rotate(-1)
            self._lanes[self._ring[0]].deficit += quantum

    def _cost(self, key: BatchKey) -> int:
        return self._lanes[key].rows * key.height * key.width
