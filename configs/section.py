"""What the sections of the settings have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Stands in names of deployments, queues and Redis keys."""
HostPort = Annotated[str, StringConstraints(pattern=r"^[^\s/@]+:\d{1,5}$", to_lower=True)]
WebAddress = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]


class Section(BaseModel):
    # A refused value may be a secret, and the message ends in logs and in Serve's status.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
