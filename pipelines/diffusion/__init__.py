"""From a request to a picture in four verbs: prepare, denoise, advance, decode."""

from pipelines.diffusion.check import check_request
from pipelines.diffusion.diffusion import Diffusion
from pipelines.diffusion.state import ImageState, row_count

__all__ = ["Diffusion", "ImageState", "check_request", "row_count"]
