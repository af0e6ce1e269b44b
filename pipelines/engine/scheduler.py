"""Which requests run in the next step. Pure bookkeeping: imports no torch.

Requests wait and run per batch key. Within a key, admission is by priority, then age, and nobody
overtakes a request that does not fit yet; for one of higher priority, running ones are parked
until there is room for them again. Between keys, deficit round robin shares the device:
every key with work gets the same share of compute, so no picture size blocks another.
"""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class BatchKey:
    """What rows must have in common to share one UNet forward. Nothing else matters."""

    model: str
    height: int
    """Latent rows."""
    width: int
    """Latent columns."""
    in_channels: int
    dtype: str


@dataclass(frozen=True)
class Ticket:
    """A request as the scheduler sees it."""

    id: str
    key: BatchKey
    rows: int
    """UNet rows of its dearest step: 2 with guidance, else 1."""
    priority: int = 0


@dataclass(frozen=True)
class Schedule:
    """One step's decision."""

    admitted: tuple[str, ...] = ()
    """Requests that join now, best first; those that were parked before included."""
    batch: tuple[str, ...] = ()
    """Requests of the one forward of this step; those just admitted included."""
    parked: tuple[str, ...] = ()
    """Requests that ran and wait again, as they are."""


Waiting = tuple[int, int, Ticket]
"""-priority, arrival, ticket: the order of admission."""


@dataclass
class _Lane:
    """The requests of one batch key."""

    waiting: list[Waiting] = field(default_factory=list)
    """Sorted."""
    running: dict[str, Waiting] = field(default_factory=dict)
    rows: int = 0
    """Of the running."""
    deficit: int = 0
    """Row-pixels of latent this key may still spend before its turn ends."""


class Scheduler:
    """Admits and picks. Not thread-safe: it belongs to the engine."""

    def __init__(self, max_rows: int) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows is {max_rows}, at least 2 needed for one guided picture")
        self.max_rows = max_rows
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
        bisect.insort(lane.waiting, (-ticket.priority, self._arrivals, ticket), key=_order)
        self._arrivals += 1
        self.waiting += 1
        self.waiting_rows += ticket.rows

    def limit(self, key: BatchKey) -> int:
        """UNet rows of one forward of this key, at most."""
        return self._limits.get(key, self.max_rows)

    def lower_limit(self, key: BatchKey, rows: int) -> None:
        """Fewer rows from now on, at least the two of one guided picture."""
        self._limits[key] = max(2, min(rows, self.limit(key)))

    def remove(self, request_id: str) -> None:
        """Forgets a request wherever it is; its rows are free for the next schedule."""
        key = self._keys.pop(request_id, None)
        if key is None:
            return
        lane = self._lanes[key]
        if running := lane.running.pop(request_id, None):
            self._end(key, lane, running[2])
        else:
            at = next(i for i, (*_, t) in enumerate(lane.waiting) if t.id == request_id)
            self.waiting -= 1
            self.waiting_rows -= lane.waiting.pop(at)[2].rows
        if not lane.running and not lane.waiting:
            del self._lanes[key]

    def shrink(self, request_id: str, rows: int) -> None:
        """Gives back rows of a running request that none of its coming steps takes.

        Rows are reserved for the dearest step to come: a request never waits for a row in its
        midst, and the cap holds at every step.
        """
        lane = self._lanes[self._keys[request_id]]
        rank, arrival, ticket = lane.running[request_id]
        freed = ticket.rows - rows
        if not 0 <= freed < ticket.rows:
            raise ValueError(f"request {request_id!r} has {ticket.rows} rows, cannot keep {rows}")
        lane.running[request_id] = (rank, arrival, replace(ticket, rows=rows))
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
        admitted: list[Waiting] = []
        parked: list[Waiting] = []
        for key, lane in self._lanes.items():
            self._admit(key, lane, admitted, parked)
        admitted.sort(key=_order)
        turn = self._next_key()
        batch = tuple(self._lanes[turn].running) if turn is not None else ()
        return Schedule(
            tuple(ticket.id for *_, ticket in admitted),
            batch,
            tuple(ticket.id for *_, ticket in parked),
        )

    def _admit(
        self, key: BatchKey, lane: _Lane, admitted: list[Waiting], parked: list[Waiting]
    ) -> None:
        while lane.waiting:
            first = lane.waiting[0]
            ticket = first[2]
            if lane.rows + ticket.rows > self.limit(key):
                if not (less_urgent := self._less_urgent(key, lane, ticket)):
                    break
                for victim in less_urgent:
                    self._park(key, lane, victim)
                parked += less_urgent
            del lane.waiting[0]
            if not lane.running:
                self._ring.append(key)
            lane.running[ticket.id] = first
            lane.rows += ticket.rows
            self.rows += ticket.rows
            self.running += 1
            self.waiting -= 1
            self.waiting_rows -= ticket.rows
            admitted.append(first)

    def _less_urgent(self, key: BatchKey, lane: _Lane, ticket: Ticket) -> list[Waiting]:
        """Running requests of lower priority whose rows this one needs; none if they are too few.

        The least urgent first, and of those the latest.
        """
        missing = lane.rows + ticket.rows - self.limit(key)
        chosen: list[Waiting] = []
        for running in sorted(lane.running.values(), key=_order, reverse=True):
            if missing <= 0 or running[2].priority >= ticket.priority:
                break
            chosen.append(running)
            missing -= running[2].rows
        return chosen if missing <= 0 else []

    def _park(self, key: BatchKey, lane: _Lane, victim: Waiting) -> None:
        """Back among those that wait, at its old place."""
        ticket = victim[2]
        del lane.running[ticket.id]
        self._end(key, lane, ticket)
        bisect.insort(lane.waiting, victim, key=_order)
        self.waiting += 1
        self.waiting_rows += ticket.rows

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


def _order(waiting: Waiting) -> tuple[int, int]:
    return waiting[:2]
