"""Requests made up from the OpenAPI document, valid and not, against every operation: none may be
answered with 500, nor with a status that the document does not know.

    python -m benchmarks.fuzz --minutes 20
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode

from configs.model import ModelSettings
from configs.settings import LimitSettings

ALWAYS_SANE = frozenset({400, 404, 405, 413, 415, 422, 429, 503})
"""Of any operation: no form, no such path, method or body, too much at once, a store away."""
TIMEOUT_S = 60.0


@dataclass
class Found:
    """What a run saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    """By operation: what was sent, and what came back."""

    def __str__(self) -> str:
        counts = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        lines = [f"{self.statuses.total()} requests ({counts}), {len(self.faults)} faults"]
        return "\n".join([*lines, *(f"{name}\n{text}" for name, text in self.faults.items())])


class Fuzzer:
    """Asks a running service."""

    def __init__(self, base_url: str, *, known: Mapping[str, str], headers: Mapping[str, str]):
        """`known`: values of parameters in paths, such as a task's id, that are there."""
        self._base_url, self._known, self._headers = base_url, known, dict(headers)
        document = (
            httpx.get(f"{base_url}/openapi.json", timeout=TIMEOUT_S).raise_for_status().json()
        )
        schema = schemathesis.openapi.from_dict(document)
        self.operations: list[APIOperation] = [found.ok() for found in schema.get_all_operations()]
        self.found = Found()

    def run(self, operation: APIOperation, examples: int, number: int = 0) -> None:
        """So many requests of each kind; another `number` makes up others."""
        for path in self._paths(operation):
            self._ask(operation, GenerationMode.POSITIVE, path, examples, number)
            # any text is a path, and to find headers that are wrong takes half a minute
            if operation.body or operation.query:
                self._ask(operation, GenerationMode.NEGATIVE, path, examples, number)

    def _paths(self, operation: APIOperation) -> Iterator[dict[str, str] | None]:
        yield None
        names = [one.name for one in operation.path_parameters]
        if names and all(name in self._known for name in names):
            yield {name: self._known[name] for name in names}

    def _ask(
        self,
        operation: APIOperation,
        mode: GenerationMode,
        path: dict[str, str] | None,
        examples: int,
        number: int,
    ) -> None:
        strategy = operation.as_strategy(generation_mode=mode, path_parameters=path)

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def ask(case: Case) -> None:
            self._judge(operation, case)

        with contextlib.suppress(Unsatisfiable):  # no such request can be made up
            ask()

    def _judge(self, operation: APIOperation, case: Case) -> None:
        answer = case.call(base_url=self._base_url, headers=self._headers, timeout=TIMEOUT_S)
        self.found.statuses[answer.status_code] += 1
        declared = {int(word) for word in operation.responses.status_codes if word.isdecimal()}
        if answer.status_code not in declared | ALWAYS_SANE:
            told = f"{case.as_curl_command()[:2000]}\n{answer.status_code} {answer.text[:500]}"
            self.found.faults.setdefault(f"{operation.label} {answer.status_code}", told)


def known_ids(client: httpx.Client) -> dict[str, str]:
    """A drawn picture, a schedule and so on, by the names of parameters in paths."""
    picture = {"prompt": "a fox", "num_inference_steps": 1}
    task = client.post("/api/v1/generate", json=picture).raise_for_status().json()
    client.get(f"/api/v1/tasks/{task['task_id']}", params={"wait_s": 20}).raise_for_status()
    task_id = str(task["task_id"])
    schedule: dict[str, Any] = {"cron": "@yearly", "request": {"prompt": "a fox"}}
    made = client.post("/api/v1/schedules", json=schedule).raise_for_status().json()
    return {"task_id": task_id, "image_id": f"{task_id}.0", "schedule_id": str(made["id"])}


def main(minutes: float) -> int:
    # Imported here: it brings Ray and torch along, which the short run in the tests does without.
    from benchmarks.served import served

    limits = LimitSettings(max_side_px=64, max_pixels=64 * 64, max_steps=3, max_images=2)
    ends_at, number = time.monotonic() + 60 * minutes, 0
    model = ModelSettings(num_inference_steps=2, width=64, height=64)
    with served(limits=limits, models={"embedded": model}) as client:
        base_url = str(client.base_url).rstrip("/")
        while time.monotonic() < ends_at:
            fuzzer = Fuzzer(base_url, known=known_ids(client), headers={})
            for operation in fuzzer.operations:
                if time.monotonic() < ends_at:
                    fuzzer.run(operation, 20, number)
            number += 1
            print(f"{number}: {fuzzer.found}", flush=True)
            if fuzzer.found.faults:
                return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    sys.exit(main(parser.parse_args().minutes))
