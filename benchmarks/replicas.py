"""Scale-out (B13): two engine processes over one, a thread each; and 1 to 32 simulated replicas.

A simulated replica is the application's own Generator with an engine on its own thread, on a device
that only lets time pass; all pull from one queue on the real embedded server, and all share the
cores of this machine with it. `python -m benchmarks B13` runs it alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import multiprocessing
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.engine_batching import engine_pictures
from benchmarks.measure import Ratio, Report, at_least, interleave, machine, ratio
from benchmarks.model import quiet
from benchmarks.plot import lines_plot
from benchmarks.simulated import KNEE, SCALE, SimulatedUNet, SimulatedVae, simulated_components
from configs.model import EMBEDDED_MODEL, ModelSettings
from configs.settings import LimitSettings, Settings
from deployments.generator import Generator
from deployments.local import LocalRedis
from deployments.storage.local import LocalStore
from deployments.tasks.image import ImageFields
from deployments.tasks.model import NewTask
from deployments.tasks.store import TaskStore
from pipelines.components import Components, load_components

REPLICAS = (1, 4, 16, 32)
"""Rising: a process that has none of one count has none of those before it."""
PROCESSES = 2
"""That hold the simulated replicas."""
TASKS = 24
"""Submitted a replica."""
SLOWER = 2.0
"""Times the published seconds, so that this machine's cores do for 32 replicas."""
WARM_UP_S, WINDOW_S = 3.0, 5.0
STEPS = (8, 24)
"""Of a simulated picture: so many to so many."""
QUEUE = "simulated"
AT_ONCE = 4
ROUNDS = 2


class Processes:
    """Child processes that answer a number with a number, until they get None."""

    def __init__(
        self, target: Callable[..., None], arguments: Sequence[tuple[object, ...]]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for given in arguments:
            here, there = context.Pipe()
            process = context.Process(target=target, args=(there, *given), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def ask(self, numbers: Sequence[int]) -> list[float]:
        """The answers of the first children, one number each, all asked at once."""
        for pipe, number in zip(self._pipes, numbers, strict=False):
            pipe.send(number)
        return [float(pipe.recv()) for pipe, _ in zip(self._pipes, numbers, strict=False)]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(30)


# --- real engines ----------------------------------------------------------------------------


def draw(pipe: Connection, model: str) -> None:
    """A child: draws pictures with one thread when asked, and says how many."""
    quiet()
    torch.set_num_threads(1)
    components = load_components(model, device="cpu", dtype="float32")
    while pipe.recv() is not None:
        pipe.send(len(engine_pictures(components, AT_ONCE)))


def two_over_one(model: str) -> Ratio:
    children = Processes(draw, [(model,)] * 2)

    def rate(count: int) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            pictures = sum(children.ask([0] * count))
            return pictures / (time.perf_counter() - started)

        return measure

    try:
        children.ask([0, 0])
        figures = interleave({"one": rate(1), "two": rate(2)}, ROUNDS)
    finally:
        children.close()
    return ratio(figures["two"], figures["one"])


# --- simulated replicas ----------------------------------------------------------------------


class Meter:
    """Sleeps for the devices of one process, and counts the UNet rows they ran."""

    def __init__(self) -> None:
        self.rows = 0
        self._lock = threading.Lock()

    def components(self, shared: Components) -> Components:
        """A device of its own with the others' text encoder."""
        unet = _MeteredUNet(self._add, shared.unet)
        vae = SimulatedVae(_sleep, shared.vae)
        return dataclasses.replace(shared, unet=unet.eval().requires_grad_(False), vae=vae)

    def _add(self, rows: int) -> None:
        with self._lock:
            self.rows += rows


class _MeteredUNet(SimulatedUNet):
    def __init__(self, ran: Callable[[int], None], like: object) -> None:
        super().__init__(_sleep, like)
        self._ran = ran

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool, **kwargs: object
    ) -> tuple[torch.Tensor]:
        output = super().forward(sample, timestep, return_dict, **kwargs)
        self._ran(len(sample))
        return output


def _sleep(seconds: float) -> None:
    time.sleep(SLOWER * seconds)


def settings() -> Settings:
    preset = ModelSettings(source=str(EMBEDDED_MODEL), max_rows=2 * KNEE[512], num_threads=1)
    return Settings(models={QUEUE: preset}, limits=LimitSettings(max_queue=10**6))


def serve(pipe: Connection, url: str, folder: str) -> None:
    """A child. Asked for n > 0 replicas it has those and no others; the answer, also to 0, is the
    rows that all of them have run by then."""
    quiet()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    asyncio.run(_serve(pipe, url, Path(folder)))


async def _serve(pipe: Connection, url: str, folder: Path) -> None:
    shared, meter = simulated_components(_sleep), Meter()
    generators: list[Generator] = []
    while (replicas := await asyncio.to_thread(pipe.recv)) is not None:
        if replicas:
            await asyncio.gather(*[generator.drain() for generator in generators])
            generators = [
                Generator(
                    settings(),
                    QUEUE,
                    redis_url=url,
                    components=meter.components(shared),
                    objects=LocalStore(folder, ""),
                )
                for _ in range(replicas)
            ]
        pipe.send(meter.rows)
    await asyncio.gather(*[generator.drain() for generator in generators])


async def submit(url: str, count: int) -> None:
    """Equal sizes, different lengths: the replicas are to drift apart."""
    store = TaskStore.connect(url, settings().tasks, max_queue=10**6)
    side, (least, most) = 512 // SCALE, STEPS
    try:
        for number in range(count):
            fields = ImageFields(
                prompt="a portrait",
                width=side,
                height=side,
                num_inference_steps=least + number * 7 % (most - least + 1),
                seed=number,
            )
            order = fields.resolve(settings(), model=QUEUE)
            task = NewTask(queue=QUEUE, owner="bench", input=order.model_dump(mode="json"))
            await store.create(task, task_id=uuid.uuid4().hex)
    finally:
        await store.close()


@contextmanager
def embedded_server() -> Iterator[tuple[str, str]]:
    """Its URL and its folder."""
    with tempfile.TemporaryDirectory() as folder:
        server = LocalRedis(Path(folder))
        server.start()
        try:
            yield server.url, folder
        finally:
            server.stop()


def rows_per_s() -> dict[int, float]:
    """UNet rows a second by the number of replicas, on one queue that never runs dry."""
    found = {}
    with embedded_server() as (url, folder):
        asyncio.run(submit(url, sum(TASKS * replicas for replicas in REPLICAS)))
        children = Processes(serve, [(url, folder)] * PROCESSES)
        try:
            for replicas in REPLICAS:
                shares = [len(range(i, replicas, PROCESSES)) for i in range(PROCESSES)]
                children.ask(shares)
                time.sleep(WARM_UP_S)
                before, started = sum(children.ask([0] * PROCESSES)), time.perf_counter()
                time.sleep(WINDOW_S)
                rows = sum(children.ask([0] * PROCESSES)) - before
                found[replicas] = rows / (time.perf_counter() - started)
        finally:
            children.close()
    return found


def run(model: str) -> Report:
    real = two_over_one(model)
    rates = rows_per_s()
    linear = {replicas: rate / rates[1] / replicas for replicas, rate in rates.items()}
    lines = [
        f"{machine()}. Two engine processes over one, a thread each, {AT_ONCE} pictures at once: "
        f"{real}. Simulated replicas: {SLOWER:g} times the published seconds, UNet rows within "
        f"{WINDOW_S:g} s.",
        "",
        "| simulated replicas | rows a second over one's | of linear |",
        "|---|---|---|",
        *[f"| {n} | {rates[n] / rates[1]:.2f} | {linear[n]:.3f} |" for n in REPLICAS],
        "",
    ]
    curves = {
        "simulated": (REPLICAS, [rates[n] / rates[1] for n in REPLICAS]),
        "linear": (REPLICAS, REPLICAS),
    }
    title = "UNet rows a second over one replica's"
    lines.append(lines_plot("replicas", title, ("replicas", "ratio"), curves, log=(True, True)))
    last = REPLICAS[-1]
    share = Ratio(linear[last], min(linear.values()), max(linear.values()))
    return Report(
        "\n".join(lines),
        [
            at_least("B13 two replicas over one, a thread each", 1.8, real),
            at_least(f"B13 {last} simulated replicas, of linear (range: 1 to {last})", 0.95, share),
        ],
    )
