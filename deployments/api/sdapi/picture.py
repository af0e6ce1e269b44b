"""Pictures that requests bring along: base64, a data URL, or an address."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deployments.api.sdapi.error import Refused
from deployments.api.services import Services
from deployments.fetch import FetchFailed, UrlPolicy, UrlRefused, fetch
from pipelines.errors import InvalidRequest
from pipelines.images import decode_data_url, decode_image, decode_opacity
from pipelines.webui.mask import read_mask

OPAQUE = 255


async def sent_bytes(text: str, field: str, services: Services) -> bytes:
    """The file that a field holds or names. Raises InvalidImage, Refused."""
    limit = services.settings.http.max_body_bytes
    if text[:7].lower() == "http://" or text[:8].lower() == "https://":
        return await _fetched(text, limit, services.settings.training.allowed_private_hosts)
    return await asyncio.to_thread(decode_data_url, text, field=field, max_bytes=limit)


async def sent_files(texts: Sequence[str], field: str, services: Services) -> tuple[bytes, ...]:
    """All of them, within the limit of one body: addresses may name far more than that can hold.

    Raises InvalidRequest, Refused.
    """
    left, files = (most := services.settings.http.max_body_bytes), list[bytes]()
    for text in texts:
        files.append(await sent_bytes(text, field, services))
        if (left := left - len(files[-1])) < 0:
            raise InvalidRequest(field, f"{field} must be at most {most} bytes in all, given more")
    return tuple(files)


async def _fetched(url: str, limit: int, private: tuple[str, ...]) -> bytes:
    try:
        return await fetch(url, max_bytes=limit, policy=UrlPolicy(private))
    except UrlRefused as error:
        raise Refused(422, f"Request to local resource not allowed: {error}") from None
    except FetchFailed as error:
        raise Refused(422, f"Invalid image url: {error}") from None


async def checked_picture(text: str, field: str, services: Services) -> bytes:
    """The file, which is a picture. Raises InvalidImage, Refused."""
    data = await sent_bytes(text, field, services)
    pixels = services.settings.limits.max_input_pixels
    await services.decode(lambda: decode_image(data, max_pixels=pixels, field=field, min_side_px=1))
    return data


def grey_mask(data: bytes, *, field: str, max_pixels: int, inverted: bool, rounded: bool) -> bytes:
    """The mask as a grey PNG, white being repainted: its transparency where it has any, else its
    brightness. Raises InvalidImage.
    """
    opacity = decode_opacity(data, field=field, max_pixels=max_pixels)
    seen: Image.Image = decode_image(data, field=field, max_pixels=max_pixels)
    if opacity.getextrema() != (OPAQUE, OPAQUE):
        seen = Image.merge("RGBA", (*seen.split(), opacity))
    return png_file(read_mask(seen, invert=inverted, rounded=rounded))


def png_file(image: Image.Image, infotext: str | None = None) -> bytes:
    """A PNG file, which tells the text."""
    info = PngInfo()
    if infotext is not None:
        info.add_itxt("parameters", infotext)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
