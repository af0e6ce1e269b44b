"""What ControlNets saw, which comes behind the pictures as the extension has it."""

from __future__ import annotations

from PIL import Image

from deployments.api.sdapi.drawing import Drawn
from deployments.api.sdapi.picture import png_file
from deployments.api.services import Services
from deployments.tasks.guide import OrderedControl
from pipelines.images import decode_image


async def detected_maps(drawn: list[Drawn], services: Services) -> list[bytes]:
    """PNG files in the order of the units, without those that say `save_detected_map: false`."""
    first = next((one for one in drawn if one.file is not None), None)
    if first is None:
        return []
    guides, size = first.wanted.guides, first.wanted.size
    # an order of a face or a second pass has other guides, or none
    pairs = zip(guides.shown, first.order.controls, strict=False)
    return [await _map(control, size, services) for shown, control in pairs if shown]


async def _map(control: OrderedControl, size: tuple[int, int], services: Services) -> bytes:
    file = await services.objects.get(control.image_key)
    most = services.settings.limits.max_input_pixels
    return await services.decode(lambda: _seen(control, file, size, most))


def _seen(control: OrderedControl, file: bytes, size: tuple[int, int], most: int) -> bytes:
    image = decode_image(file, field="controlnet", max_pixels=most, min_side_px=1)
    return png_file(Image.fromarray(control.guide(image, *size)))
