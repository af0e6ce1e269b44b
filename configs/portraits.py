"""How portraits and face models are served."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from configs.section import HostPort, ModelName, Section


class PortraitSettings(Section):
    """Portraits: one deployment of workers, which a model's Generator repaints for."""

    enabled: bool = True
    model: ModelName | None = Field(
        None, description="Whose Generator repaints where a request says none; None: the first."
    )
    upscaler: str | None = Field(
        None,
        description="The network that enhances portraits: `R-ESRGAN 4x+`, `R-ESRGAN 4x+ Anime6B` "
        "or one of `upscalers`. It runs on the device of the model that repaints: minutes a "
        "megapixel on a CPU. None: without one.",
    )
    swapper: Path | None = Field(
        None,
        description="An ONNX file that swaps faces in place of the warp by meshes: inputs `target` "
        "and `source`, aligned faces as (1, 3, side, side) RGB in 0 ... 1, one output like them. "
        "Its licence is its owner's matter. None: without one.",
    )
    swapper_side_px: int = Field(128, ge=16, le=1024, description="Of the swapper's faces.")
    concurrency: int = Field(1, ge=1, description="Portraits that one worker makes at once.")
    num_cpus: float = Field(0.25, ge=0, description="Of one worker, to be placed by.")
    max_replicas: int = Field(1, ge=1, description="Workers; more are started as the queue grows.")
    target_tasks: float = Field(
        4.0, gt=0, description="Queued and running portraits a worker is meant to have."
    )
    max_people: int = Field(20, ge=1, description="Of one portrait.")
    max_photos: int = Field(20, ge=1, le=1000, description="Of one person, or of one check.")
    max_photo_bytes: int = Field(16 * 2**20, ge=1024)
    max_bytes: int = Field(128 * 2**20, ge=1024, description="Of all pictures of one request.")
    allowed_private_hosts: tuple[HostPort, ...] = Field(
        (), description="`host:port` that pictures may be fetched from though it is private."
    )


class FaceSettings(Section):
    """The face models: one deployment, which checks photos for all HTTP replicas."""

    num_cpus: float = Field(0.05, ge=0, description="Of one replica, to be placed by.")
    max_replicas: int = Field(2, ge=1)
    target_photos: float = Field(
        8.0, gt=0, description="Photos a replica is meant to have at once; more scale up."
    )
