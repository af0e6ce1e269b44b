"""Loggers under Serve's own, so that records land in its files as JSON with our fields."""

import logging
from typing import Any


class TaskLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds `task_id` to every record of one task."""

    def __init__(self, logger: logging.Logger, task_id: str) -> None:
        super().__init__(logger, {"task_id": task_id})

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


def get_logger(name: str) -> logging.Logger:
    """The logger of a module, e.g. `ray.serve.daguerre.runner`."""
    return logging.getLogger(f"ray.serve.daguerre.{name.removeprefix('deployments.')}")
