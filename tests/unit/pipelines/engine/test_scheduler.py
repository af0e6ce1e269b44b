"""Admission and fairness, as plain bookkeeping."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.engine.scheduler import Schedule, Scheduler
from pipelines.engine.ticket import BatchKey, Ticket


def key(side: int = 64) -> BatchKey:
    return BatchKey(model="sd", height=side, width=side, in_channels=4, dtype="float32")


def ticket(name: str, *, side: int = 64, rows: int = 2, priority: int = 0) -> Ticket:
    return Ticket(id=name, key=key(side), rows=rows, priority=priority)


def test_neither_the_scheduler_nor_the_request_module_imports_torch() -> None:
    code = (
        "import sys, pipelines.engine.scheduler, pipelines.engine.request, pipelines.engine.stats,"
        "pipelines.engine.profile;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_requests_there_is_nothing_to_do() -> None:
    assert Scheduler(16).schedule() == Schedule()


def test_requests_of_one_key_run_together_and_stay_until_removed() -> None:
    scheduler = Scheduler(16)
    for name in "abc":
        scheduler.add(ticket(name))
    assert scheduler.schedule() == Schedule(("a", "b", "c"), ("a", "b", "c"))
    assert scheduler.schedule() == Schedule((), ("a", "b", "c"))
    scheduler.remove("b")
    assert scheduler.schedule() == Schedule((), ("a", "c"))


def test_a_late_request_joins_the_running_batch_at_the_next_step() -> None:
    scheduler = Scheduler(16)
    scheduler.add(ticket("early"))
    scheduler.schedule()
    scheduler.add(ticket("late"))
    assert scheduler.schedule() == Schedule(("late",), ("early", "late"))


def test_higher_priority_is_admitted_first_then_the_older() -> None:
    scheduler = Scheduler(2)
    for name, priority in [("low", 0), ("high", 5), ("high too", 5), ("mid", 1)]:
        scheduler.add(ticket(name, priority=priority))
    order = []
    for _ in range(4):
        (name,) = scheduler.schedule().batch
        order.append(name)
        scheduler.remove(name)
    assert order == ["high", "high too", "mid", "low"]


def test_a_request_wider_than_what_a_key_may_have_runs_alone() -> None:
    scheduler = Scheduler(8, cap=lambda key: 2)
    for name, rows in (("a", 2), ("wide", 5), ("b", 2)):
        scheduler.add(ticket(name, rows=rows))
    for name in ("a", "wide", "b"):
        assert scheduler.schedule().batch == (name,)
        scheduler.remove(name)


def test_the_rows_of_a_batch_never_exceed_the_cap() -> None:
    scheduler = Scheduler(5)
    for name in "abc":
        scheduler.add(ticket(name))
    assert scheduler.schedule().batch == ("a", "b")
    assert (scheduler.rows, scheduler.waiting, scheduler.waiting_rows) == (4, 1, 2)


def test_a_request_that_does_not_fit_yet_is_not_overtaken_by_a_smaller_one() -> None:
    scheduler = Scheduler(3)
    for name, rows in [("two", 2), ("two more", 2), ("one", 1)]:
        scheduler.add(ticket(name, rows=rows))
    assert scheduler.schedule().batch == ("two",)
    scheduler.remove("two")
    assert scheduler.schedule().batch == ("two more", "one")


def test_a_waiting_request_can_be_removed() -> None:
    scheduler = Scheduler(2)
    scheduler.add(ticket("runs"))
    scheduler.schedule()
    scheduler.add(ticket("waits"))
    scheduler.remove("waits")
    scheduler.remove("runs")
    scheduler.remove("never came")
    assert scheduler.schedule() == Schedule()
    assert (scheduler.rows, scheduler.running, scheduler.waiting) == (0, 0, 0)


def test_rows_that_a_request_gives_back_are_there_for_the_next() -> None:
    scheduler = Scheduler(4)
    for name in "abc":
        scheduler.add(ticket(name))
    assert scheduler.schedule().batch == ("a", "b")
    scheduler.shrink("a", 1)
    assert scheduler.rows == 3
    assert scheduler.schedule().batch == ("a", "b")
    scheduler.shrink("b", 1)
    scheduler.shrink("b", 1)
    assert scheduler.schedule().batch == ("a", "b", "c")
    for name in "abc":
        scheduler.remove(name)
    assert scheduler.rows == 0


@pytest.mark.parametrize("rows", [0, 3])
def test_a_request_keeps_one_row_and_gets_no_more_than_it_has(rows: int) -> None:
    scheduler = Scheduler(4)
    scheduler.add(ticket("a"))
    scheduler.schedule()
    with pytest.raises(ValueError, match="has 2 rows"):
        scheduler.shrink("a", rows)


def test_an_id_may_be_used_once_at_a_time() -> None:
    scheduler = Scheduler(16)
    scheduler.add(ticket("a"))
    with pytest.raises(ValueError, match="already"):
        scheduler.add(ticket("a", side=32))
    scheduler.remove("a")
    scheduler.add(ticket("a", side=32))


def test_a_request_wider_than_a_forward_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Scheduler(1)
    with pytest.raises(ValueError, match=r"1\.\.2"):
        Scheduler(2).add(ticket("a", rows=3))


def test_a_small_size_is_not_blocked_by_a_stream_of_large_pictures() -> None:
    scheduler = Scheduler(16)
    for i in range(50):
        scheduler.add(ticket(f"large {i}", side=128))
    for _ in range(3):
        scheduler.schedule()
    scheduler.add(ticket("small", side=32))
    steps = [scheduler.schedule().batch for _ in range(6)]
    assert ("small",) in steps
    assert steps.count(("small",)) >= 3, "the cheap batch steps often within its share"


def test_a_large_size_is_not_blocked_by_a_stream_of_small_pictures() -> None:
    scheduler = Scheduler(16)
    for i in range(50):
        scheduler.add(ticket(f"small {i}", side=32))
    scheduler.schedule()
    scheduler.add(ticket("large", side=128))
    large = 0
    for step in range(40):
        batch = scheduler.schedule().batch
        large += batch == ("large",)
        if step % 5 == 4 and batch != ("large",):
            scheduler.remove(batch[0])
    assert large >= 10


sizes = st.lists(st.sampled_from([16, 32, 64, 96]), min_size=2, max_size=4, unique=True)


@given(sizes=sizes, counts=st.lists(st.integers(1, 12), min_size=4, max_size=4))
def test_keys_with_steady_work_get_equal_shares_of_compute(
    sizes: Sequence[int], counts: Sequence[int]
) -> None:
    scheduler = Scheduler(16)
    for side, count in zip(sizes, counts, strict=False):
        for i in range(count):
            scheduler.add(ticket(f"{side}/{i}", side=side))
    spent = dict.fromkeys(sizes, 0)
    costs = {}
    for _ in range(400):
        batch = scheduler.schedule().batch
        side = int(batch[0].split("/")[0])
        costs[side] = 2 * len(batch) * side * side
        spent[side] += costs[side]
    dearest = max(costs.values())
    assert max(spent.values()) - min(spent.values()) <= 2 * dearest


class Model:
    """What a correct scheduler may and must do, checked at each step."""

    def __init__(self, max_rows: int) -> None:
        self.scheduler = Scheduler(max_rows)
        self.max_rows = max_rows
        self.tickets: dict[str, Ticket] = {}
        self.admitted: set[str] = set()
        self.spent_on_others: dict[BatchKey, int] = {}
        self.names = 0

    def add(self, side: int, rows: int, priority: int) -> None:
        made = ticket(str(self.names), side=side, rows=rows, priority=priority)
        self.names += 1
        self.tickets[made.id] = made
        self.scheduler.add(made)

    def remove(self, which: int) -> None:
        if self.tickets:
            name = list(self.tickets)[which % len(self.tickets)]
            self.scheduler.remove(name)
            del self.tickets[name]
            self.admitted.discard(name)

    def step(self) -> None:
        waiting = [t for t in self.tickets.values() if t.id not in self.admitted]
        schedule = self.scheduler.schedule()
        assert not self.admitted & set(schedule.admitted)
        assert set(schedule.parked) <= self.admitted
        self.admitted = self.admitted - set(schedule.parked) | set(schedule.admitted)
        for parked in (self.tickets[i] for i in schedule.parked):
            joined = [self.tickets[i] for i in schedule.admitted]
            assert any(t.key == parked.key and t.priority > parked.priority for t in joined)
        for k in {t.key for t in self.tickets.values()}:
            self.check_lane(k, [t for t in waiting if t.key == k])
        self.check_batch(schedule.batch)
        assert self.scheduler.running == len(self.admitted)
        assert self.scheduler.waiting == len(self.tickets) - len(self.admitted)
        assert self.scheduler.rows == sum(self.tickets[i].rows for i in self.admitted)

    def check_lane(self, k: BatchKey, waiting: list[Ticket]) -> None:
        ordered = sorted(waiting, key=lambda t: (-t.priority, int(t.id)))
        left = [t for t in ordered if t.id not in self.admitted]
        assert ordered[: len(ordered) - len(left)] + left == ordered, "nobody overtakes"
        running = [t for i, t in self.tickets.items() if i in self.admitted and t.key == k]
        assert sum(t.rows for t in running) <= self.max_rows
        after = [t for i, t in self.tickets.items() if i not in self.admitted and t.key == k]
        if after:  # those parked just now included: nobody overtakes them either
            first = min(after, key=lambda t: (-t.priority, int(t.id)))
            fixed = sum(t.rows for t in running if t.priority >= first.priority)
            assert fixed + first.rows > self.max_rows, "the next did not fit"

    def check_batch(self, batch: Sequence[str]) -> None:
        keys = {self.tickets[i].key for i in batch}
        assert len(keys) == (1 if self.admitted else 0), "one key runs whenever there is work"
        active = {self.tickets[i].key for i in self.admitted}
        for k in keys:
            assert set(batch) == {i for i in self.admitted if self.tickets[i].key == k}
            cost = sum(self.tickets[i].rows for i in batch) * k.height * k.width
            for other in active - {k}:
                self.spent_on_others[other] = self.spent_on_others.get(other, 0) + cost
        for k in [*keys, *(set(self.spent_on_others) - active)]:
            self.spent_on_others.pop(k, None)
        # while a key waits for its turn, each other key spends at most two of the dearest batches
        dearest = self.max_rows * 96 * 96
        for k, spent in self.spent_on_others.items():
            assert spent <= 2 * dearest * 3, f"{k} starves"


adds = st.tuples(
    st.just("add"), st.sampled_from([16, 32, 64, 96]), st.sampled_from([1, 2]), st.integers(-2, 2)
)
removes = st.tuples(st.just("remove"), st.integers(0, 50))
steps = st.tuples(st.just("step"))


@given(max_rows=st.integers(2, 7), actions=st.lists(adds | removes | steps, max_size=60))
def test_invariants_hold_under_any_sequence_of_arrivals_steps_and_ends(
    max_rows: int, actions: Sequence[tuple[object, ...]]
) -> None:
    model = Model(max_rows)
    for verb, *arguments in actions:
        getattr(model, str(verb))(*arguments)
    for _ in range(3):
        model.step()


def test_for_a_higher_priority_the_least_urgent_and_latest_is_parked() -> None:
    scheduler = Scheduler(6)
    for name, priority in (("a", 0), ("b", 1), ("c", 0)):
        scheduler.add(ticket(name, priority=priority))
    scheduler.schedule()
    scheduler.add(ticket("urgent", priority=5))
    assert scheduler.schedule() == Schedule(("urgent",), ("b", "a", "urgent"), ("c",))
    assert (scheduler.rows, scheduler.running, scheduler.waiting) == (6, 3, 1)


def test_a_parked_request_goes_on_before_those_that_came_after_it() -> None:
    scheduler = Scheduler(2)
    scheduler.add(ticket("parked"))
    scheduler.schedule()
    scheduler.add(ticket("later"))
    scheduler.add(ticket("urgent", priority=1))
    assert scheduler.schedule() == Schedule(("urgent",), ("urgent",), ("parked",))
    scheduler.remove("urgent")
    assert scheduler.schedule() == Schedule(("parked",), ("parked",))
    scheduler.remove("parked")
    assert scheduler.schedule() == Schedule(("later",), ("later",))


def test_nobody_is_parked_for_the_same_priority_or_where_it_would_not_be_enough() -> None:
    scheduler = Scheduler(4)
    scheduler.add(ticket("a", priority=1))
    scheduler.add(ticket("b", rows=1))
    scheduler.add(ticket("c", rows=1, priority=1))
    scheduler.schedule()
    scheduler.add(ticket("same"))
    scheduler.add(ticket("large", priority=1))
    assert scheduler.schedule() == Schedule((), ("a", "c", "b"))


def test_a_parked_request_can_be_removed() -> None:
    scheduler = Scheduler(2)
    scheduler.add(ticket("parked"))
    scheduler.schedule()
    scheduler.add(ticket("urgent", priority=1))
    scheduler.schedule()
    scheduler.remove("parked")
    scheduler.remove("urgent")
    assert scheduler.schedule() == Schedule()
    assert (scheduler.rows, scheduler.running, scheduler.waiting) == (0, 0, 0)


def test_a_lowered_limit_holds_for_its_key_alone() -> None:
    scheduler = Scheduler(8)
    scheduler.lower_limit(key(64), 4)
    scheduler.lower_limit(key(64), 6)
    assert (scheduler.limit(key(64)), scheduler.limit(key(32))) == (4, 8)
    for name in "abc":
        scheduler.add(ticket(name))
    assert scheduler.schedule().admitted == ("a", "b")
    scheduler.lower_limit(key(64), 0)
    assert scheduler.limit(key(64)) == 2


class Clock:
    """Seconds, as the test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_thirty_seconds_of_waiting_count_as_one_priority_more() -> None:
    clock = Clock()
    scheduler = Scheduler(2, ageing_s=30, clock=clock)
    scheduler.add(ticket("runs", priority=9))
    scheduler.schedule()
    scheduler.add(ticket("old"))
    clock.now += 61
    for name, priority in (("new", 0), ("1 up", 1), ("2 up", 2), ("3 up", 3)):
        scheduler.add(ticket(name, priority=priority))
    order = []
    scheduler.remove("runs")
    for _ in range(5):
        (name,) = scheduler.schedule().batch
        order.append(name)
        scheduler.remove(name)
    assert order == ["3 up", "old", "2 up", "1 up", "new"]


def test_without_ageing_the_higher_priority_is_first_however_long_another_waits() -> None:
    clock = Clock()
    scheduler = Scheduler(2, ageing_s=0, clock=clock)
    scheduler.add(ticket("runs", priority=9))
    scheduler.schedule()
    scheduler.add(ticket("old"))
    clock.now += 1e6
    scheduler.add(ticket("urgent", priority=1))
    scheduler.remove("runs")
    assert scheduler.schedule().batch == ("urgent",)


def test_age_parks_nobody_and_is_in_the_way_of_nobody_who_may() -> None:
    clock = Clock()
    scheduler = Scheduler(2, ageing_s=30, clock=clock)
    scheduler.add(ticket("runs"))
    scheduler.schedule()
    scheduler.add(ticket("old"))
    clock.now += 1000
    assert scheduler.schedule() == Schedule((), ("runs",))
    scheduler.add(ticket("urgent", priority=1))
    assert scheduler.schedule() == Schedule(("urgent",), ("urgent",), ("runs",))
    scheduler.remove("urgent")
    assert scheduler.schedule().batch == ("runs",)


def test_a_request_that_has_waited_for_long_is_not_parked_once_it_runs() -> None:
    clock = Clock()
    scheduler = Scheduler(2, ageing_s=30, clock=clock)
    scheduler.add(ticket("runs", priority=9))
    scheduler.schedule()
    scheduler.add(ticket("old"))
    clock.now += 31
    scheduler.remove("runs")
    assert scheduler.schedule().batch == ("old",)
    scheduler.add(ticket("1 up", priority=1))
    assert scheduler.schedule() == Schedule((), ("old",))
    scheduler.add(ticket("2 up", priority=2))
    assert scheduler.schedule().parked == ("old",)


@pytest.mark.parametrize("gap_s", [0.5, 3, 20])
@pytest.mark.parametrize("max_rows", [2, 6])
def test_a_steady_stream_of_urgent_requests_starves_nobody(gap_s: float, max_rows: int) -> None:
    clock = Clock()
    scheduler = Scheduler(max_rows, ageing_s=30, clock=clock)
    scheduler.add(ticket("low"))
    ran = parks = 0
    for step in range(200):
        scheduler.add(ticket(f"{step}", priority=1))
        schedule = scheduler.schedule()
        assert not set(schedule.parked) & set(schedule.admitted)
        ran += "low" in schedule.batch
        parks += "low" in schedule.parked
        clock.now += gap_s
        scheduler.remove(next(name for name in (*schedule.batch, "none") if name != "low"))
    assert ran >= 10
    assert parks * gap_s <= 30 + gap_s, "it waits no longer than a priority's worth in all"
