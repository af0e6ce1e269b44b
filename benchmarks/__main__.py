"""Runs every benchmark against a fresh application and prints the tables for RESULTS.md."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmarks import engine_batching, lora_mixing, request_overhead, service_throughput
from configs.settings import EMBEDDED_MODEL, HttpSettings, Settings
from deployments import app
from deployments.cli.demo import free_port


def main() -> int:
    port = free_port()
    threads = os.cpu_count() or 1
    print("## B2, B4, B6 the engine alone\n", flush=True)
    print(engine_batching.run(str(EMBEDDED_MODEL), threads), flush=True)
    print("\n## B7, B8 LoRA\n", flush=True)
    print(lora_mixing.run(str(EMBEDDED_MODEL), threads), flush=True)
    with tempfile.TemporaryDirectory() as data_dir:
        settings = Settings(data_dir=Path(data_dir), http=HttpSettings(port=port))
        app.start(settings)
        try:
            base_url = f"http://127.0.0.1:{port}"
            print("\n## B1 service throughput\n", flush=True)
            print(service_throughput.run(base_url, threads), flush=True)
            print("\n## B5 request overhead\n", flush=True)
            print(request_overhead.run(base_url), flush=True)
        finally:
            app.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
