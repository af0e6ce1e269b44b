"""The input of a task of kind `image`: written by the API, read by the Generator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.settings import SchedulerName
from deployments.tasks.model import Frozen

MAX_SEED = 2**63 - 1

INPUT_PREFIX = "inputs/"
"""Where pictures that clients sent lie in the object store; removed by age alone."""
OUTPUT_PREFIX = "outputs/"
"""Where finished pictures lie; removed with their task, and by age if no task names them."""

OutputFormat = Literal["png", "jpeg", "webp"]


class ImageJob(Frozen):
    """Every field is resolved at creation, so that each attempt draws the same pictures."""

    prompt: str
    negative_prompt: str = ""
    width: int | None = Field(None, description="Pixels, a multiple of 8; None: the model's own.")
    height: int | None = Field(None, description="Pixels, a multiple of 8; None: the model's own.")
    num_images: int = Field(1, ge=1)
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0)
    scheduler: SchedulerName
    seed: int = Field(ge=0, le=MAX_SEED, description="Of the first picture.")
    init_image_key: str | None = Field(
        None, description="Object key of the picture to start from; with it width and height are set."
    )
    strength: float = Field(0.75, ge=0, le=1, description="Used with an initial picture only.")
    output_format: OutputFormat = "png"
    model: str

    def seed_of(self, index: int) -> int:
        """The seed of picture `index`: seed + index, wrapping to 0 past the largest seed."""
        return (self.seed + index) % (MAX_SEED + 1)
