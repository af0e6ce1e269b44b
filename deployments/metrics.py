"""Every metric, with unit and buckets, declared once. Made inside a replica, where Ray tags it."""

from __future__ import annotations

from ray.serve import metrics

SECONDS = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]
ROWS = [1.0, 2, 4, 8, 12, 16, 24, 32, 64]


class GeneratorMetrics:
    """What a Generator replica reports on Ray's Prometheus endpoint, tagged with its model."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.queue_wait_s = self._histogram(
            "daguerre_queue_wait_s", "Seconds from creation of a task to its claim.", SECONDS
        )
        self.prepare_s = self._histogram(
            "daguerre_prepare_s", "Seconds to encode prompt and picture of a request.", SECONDS
        )
        self.denoise_s = self._histogram(
            "daguerre_denoise_s",
            "Seconds a picture spent in the batch, first step to last.",
            SECONDS,
        )
        self.step_s = self._histogram(
            "daguerre_denoise_step_s", "Seconds of one denoise step of the batch.", SECONDS
        )
        self.decode_s = self._histogram(
            "daguerre_decode_s", "Seconds of the VAE decode of a picture.", SECONDS
        )
        self.upload_s = self._histogram(
            "daguerre_upload_s", "Seconds to encode and store the pictures of a task.", SECONDS
        )
        self.batch_rows = self._histogram(
            "daguerre_batch_rows", "UNet rows in the batch, sampled at each heartbeat.", ROWS
        )
        self.tasks = metrics.Counter(
            "daguerre_tasks_total", "Tasks by how they ended here.", tag_keys=("model", "end")
        )
        self.tasks.set_default_tags({"model": model})
        self._cache_lookups = metrics.Counter(
            "daguerre_cache_lookups_total",
            "Prompts, initial and reference pictures, encoded (miss) or at hand (hit), and twins: "
            "whole pictures, computed or shared with an equal request in flight.",
            tag_keys=("model", "cache", "result"),
        )
        self._cache_lookups.set_default_tags({"model": model})
        self._counted: dict[tuple[str, str], int] = {}

    def count_cache_lookups(self, totals: dict[tuple[str, str], int]) -> None:
        """Takes the totals since the start, by cache and result."""
        for (cache, result), total in totals.items():
            if new := total - self._counted.get((cache, result), 0):
                self._cache_lookups.inc(new, tags={"cache": cache, "result": result})
        self._counted = totals

    def _histogram(self, name: str, description: str, boundaries: list[float]) -> metrics.Histogram:
        histogram = metrics.Histogram(name, description, boundaries=boundaries, tag_keys=("model",))
        histogram.set_default_tags({"model": self._model})
        return histogram
