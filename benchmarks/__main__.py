"""Runs the benchmarks, those that take ten minutes together or those named (`B3 B9`, `all`), and
writes what they found into RESULTS.md."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import (
    acceleration,
    cancel,
    engine_batching,
    lora_mixing,
    lora_working_set,
    mixed_load,
    prompt_cache,
    publish_latency,
    queue_depth,
    replicas,
    request_overhead,
    service_throughput,
    training_beside_serving,
    training_speed,
    webui_callers,
)
from benchmarks.measure import Report
from benchmarks.model import quiet
from benchmarks.results import keep
from benchmarks.served import served
from configs.model import EMBEDDED_MODEL, ModelSettings

MODEL = str(EMBEDDED_MODEL)
THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class Benchmark:
    names: tuple[str, ...]
    """Any of them asks for it."""
    about: str
    run: Callable[[], Report]
    long: bool = False
    """Not run unless it is asked for."""

    @property
    def title(self) -> str:
        return f"{', '.join(self.names)}: {self.about}"


def through_http() -> Report:
    """Both against one fresh application."""
    with tempfile.TemporaryDirectory() as folder:
        wide = service_throughput.make_wide(Path(folder) / "wide")
        models = {
            model.name: ModelSettings(source=str(model.folder))
            for model in (service_throughput.SHIPPED, wide)
        }
        with served(models=models) as client:
            url = str(client.base_url)
            pictures = service_throughput.run(url, wide, THREADS)
            requests = request_overhead.run(url)
    text = f"{pictures.text}\n\n{requests.text}"
    return Report(text, [*pictures.goals, *requests.goals])


BENCHMARKS = (
    Benchmark(
        ("B2", "B4", "B6"),
        "the engine alone",
        lambda: engine_batching.run(MODEL, THREADS),
    ),
    Benchmark(("B3",), "mixed load", lambda: mixed_load.run(MODEL, THREADS)),
    Benchmark(("B7", "B8", "B8b"), "LoRA", lambda: lora_mixing.run(MODEL, THREADS)),
    Benchmark(
        ("B9",), "more adapters than slots", lambda: lora_working_set.run(MODEL, THREADS), True
    ),
    Benchmark(("B10",), "caches", lambda: prompt_cache.run(MODEL, THREADS)),
    Benchmark(("B11",), "LoRA training", lambda: training_speed.run(MODEL, THREADS), True),
    Benchmark(("B13",), "scale-out", lambda: replicas.run(MODEL), True),
    Benchmark(("B15",), "cancel", lambda: cancel.run(MODEL, THREADS)),
    Benchmark(("depth",), "queue depth", queue_depth.run),
    Benchmark(
        ("acceleration",),
        "what makes requests cheaper",
        lambda: Report(acceleration.run(MODEL, THREADS)),
        long=True,
    ),
    Benchmark(("B1", "B5"), "through HTTP", through_http, long=True),
    Benchmark(("B16",), "callers of the web UI's API", webui_callers.run, long=True),
    Benchmark(("B12",), "a trained LoRA's first picture", publish_latency.run, long=True),
    Benchmark(("beside",), "pictures beside trainings", training_beside_serving.run, long=True),
)
"""In the order of running and of RESULTS.md."""


def main(wanted: Sequence[str]) -> int:
    known = {name for benchmark in BENCHMARKS for name in benchmark.names}
    if unknown := set(wanted) - known - {"all"}:
        print(f"no such benchmark: {', '.join(unknown)}; there are all, {', '.join(sorted(known))}")
        return 2
    quiet()
    titles = [benchmark.title for benchmark in BENCHMARKS]
    for benchmark in BENCHMARKS:
        if not ({"all", *benchmark.names} & set(wanted) if wanted else not benchmark.long):
            continue
        started = time.monotonic()
        report = benchmark.run()
        print(f"\n### {benchmark.title}: {time.monotonic() - started:.0f} s\n\n{report.text}\n")
        for goal in report.goals:
            word = "met" if goal.met else "NOT MET"
            print(f"{goal.ratio}: {goal.measured}, goal {goal.goal}, {word}", flush=True)
        keep(benchmark.title, report, titles)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
