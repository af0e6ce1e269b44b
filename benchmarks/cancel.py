"""UNet rows that are run for a request after it was canceled (B15), in a busy engine on its thread.

Each is canceled at a random moment, most of them within a forward. `python -m benchmarks B15` runs
it alone.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter

import torch

from benchmarks.engine_batching import request
from benchmarks.measure import Goal, Report, machine
from pipelines.components import load_components
from pipelines.engine.request import EngineEvent, EventKind
from pipelines.engine.worker import EngineWorker
from pipelines.errors import RequestCanceled

CANCELS = 20
ROWS = 2


def run(model: str, threads: int) -> Report:
    torch.set_num_threads(threads)
    components = load_components(model, device="cpu", dtype="float32")
    steps: Counter[str] = Counter()
    begun = threading.Event()

    def on_event(event: EngineEvent) -> None:
        if event.kind is EventKind.STEP:
            steps[event.request_id] += 1
            begun.set()

    engine = EngineWorker(components, max_rows=8)
    engine.start()
    rng = random.Random(0)
    rows, waits = [], []
    try:
        for number in range(3):
            engine.submit(request(number, components, steps=900))
        for number in range(3, 3 + CANCELS):
            begun.clear()
            future = engine.submit(request(number, components, steps=200), on_event)
            begun.wait()
            time.sleep(rng.uniform(1, 4) * engine.stats().step_s)
            started, before = time.perf_counter(), steps[str(number)]
            engine.cancel(str(number))
            if not isinstance(future.exception(60), RequestCanceled):
                raise SystemExit(f"request {number} was not canceled")
            waits.append((time.perf_counter() - started) / engine.stats().step_s)
            rows.append(ROWS * (steps[str(number)] - before))
    finally:
        engine.stop()
    lines = [
        f"{machine()}, {threads} torch threads, {CANCELS} cancels among three other requests.",
        "",
        f"Rows run for a request of {ROWS} rows a step after its cancel: at most {max(rows)}, mean "
        f"{statistics.mean(rows):.1f}; its end comes {statistics.median(waits):.2f} steps (median) "
        f"after the cancel, at most {max(waits):.2f}.",
    ]
    measured = f"{max(rows)} of {ROWS} rows, the most of {CANCELS}"
    goal = Goal("B15 rows run after a cancel", "<= one step's", measured, max(rows) <= ROWS)
    return Report("\n".join(lines), [goal])
