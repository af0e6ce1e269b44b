"""How LoRAs are trained."""

from __future__ import annotations

from pydantic import Field

from configs.section import HostPort, Section


class TrainingSettings(Section):
    """LoRA training: one Trainer deployment that runs each job as a Ray Task."""

    enabled: bool = True
    concurrency: int = Field(1, ge=1, description="Jobs that run at once.")
    num_cpus: float = Field(
        0.5, ge=0, description="Of one job, to be placed by; half a CPU fits beside one Generator."
    )
    num_gpus: float | None = Field(
        None, ge=0, description="Of one job; None: as many as its base model's Generator has."
    )
    num_threads: int | None = Field(
        None, ge=1, description="Torch CPU threads of one job; None: half of the machine's cores."
    )
    nice: int = Field(
        10,
        ge=0,
        le=19,
        description="CPU niceness on top of other Ray workers', 19 at most in all. On a cluster "
        "that `daguerre` did not start these have 15, unless its RAY_worker_niceness says less.",
    )
    checkpoint_every: int = Field(
        100,
        ge=1,
        description="Steps between two checkpoints in the object store, where a job says none.",
    )
    max_pictures: int = Field(1000, ge=1, le=10_000, description="Of one job.")
    max_picture_bytes: int = Field(32 * 2**20, ge=1024, le=64 * 2**20)
    max_picture_pixels: int = Field(64_000_000, ge=64 * 64)
    max_bytes: int = Field(256 * 2**20, ge=1024, description="Of all pictures of one job.")
    allowed_private_hosts: tuple[HostPort, ...] = Field(
        (), description="`host:port` that pictures may be fetched from though it is private."
    )
