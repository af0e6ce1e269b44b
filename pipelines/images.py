"""Bytes to pictures and back. A client's bytes are decoded nowhere else."""

from __future__ import annotations

import binascii
import io
import json
import re
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from pipelines.engine.request import Picture
from pipelines.errors import InvalidImage
from pipelines.infotext import write

ImageFormat = Literal["png", "jpeg", "webp"]

CONTENT_TYPES: dict[ImageFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
MIN_SIDE_PX = 8
"""Less is not a picture to start from: one latent pixel covers 8 x 8."""

# Pillow opens over forty formats, Ghostscript's among them; clients get these three.
_FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|jpg|webp);base64,", re.IGNORECASE)
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNICODE = b"UNICODE\0"
_OURS = b"daguerre\0"
# One APP1 segment of a JPEG holds 65,533 bytes.
_MAX_EXIF_BYTES = 65_000

# For the whole process, not in a `catch_warnings`: that one is not safe between threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode_data_url(text: str, *, field: str, max_bytes: int) -> bytes:
    """The bytes of a `data:image/...;base64,` URL, or of bare base64; white space is ignored.

    Raises InvalidImage when it is another kind of URL, not strict base64, empty, or longer than
    `max_bytes` once decoded. The declared kind is not believed: `decode_image` looks itself.
    """
    if match := _DATA_URL.match(text):
        text = text[match.end() :]
    elif text[:5].lower() == "data:":
        raise InvalidImage(
            field,
            f"{field} must start with data:image/png;base64, data:image/jpeg;base64, or "
            f"data:image/webp;base64, - given {_shown(text[:40])}",
        )
    # Not by a regular expression: on 30 MB that holds every other thread for a second.
    packed = text.encode("ascii", "replace").translate(None, b" \t\r\n")
    given = len(packed) * 3 // 4
    if given > max_bytes + 2:
        raise InvalidImage(
            field, f"{field} may hold at most {max_bytes} bytes, given about {given}"
        )
    try:
        data = binascii.a2b_base64(packed, strict_mode=True)
    except ValueError as error:
        raise InvalidImage(field, f"{field} is not valid base64: {error}") from None
    if not data:
        raise InvalidImage(field, f"{field} is empty")
    if len(data) > max_bytes:
        raise InvalidImage(field, f"{field} may hold at most {max_bytes} bytes, given {len(data)}")
    return data


def decode_image(
    data: bytes, *, max_pixels: int, field: str = "init_image", min_side_px: int = MIN_SIDE_PX
) -> Image.Image:
    """A PNG, JPEG or WebP file as an upright RGB image.

    Of an animation the first frame; transparency is laid on white; 16 bits become 8. Raises
    InvalidImage for anything else, before any pixel is decoded where the size is out of bounds.
    """
    return _decode(data, _rgb, field, max_pixels, min_side_px)


def decode_opacity(data: bytes, *, max_pixels: int, field: str) -> Image.Image:
    """How opaque each pixel of such a file is, 0 to 255, upright. Raises as `decode_image`."""
    return _decode(data, _opacity, field, max_pixels, MIN_SIDE_PX)


def _decode(
    data: bytes,
    part: Callable[[Image.Image], Image.Image],
    field: str,
    max_pixels: int,
    min_side_px: int,
) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size, field, max_pixels, min_side_px)
            image.load()
            return _upright(part(image), image)
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidImage(
            field,
            f"{field} may have at most {max_pixels} pixels, given more than "
            f"{Image.MAX_IMAGE_PIXELS}",
        ) from None
    except UnidentifiedImageError:
        raise InvalidImage(
            field, f"{field} is not a picture in one of the formats {', '.join(_FORMATS)}"
        ) from None
    except Exception as error:
        # Decoders of hostile files raise whatever they like: ValueError, SyntaxError, OSError,
        # struct.error, MemoryError ... All of them mean the same to the client.
        raise InvalidImage(field, f"{field} is damaged: {_shown(str(error))}") from error


def cover_image(image: Image.Image, width: int, height: int) -> Image.Image:
    """Of the image as much of its middle as fills this size in pixels; its aspect ratio stays."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def encode_image(
    picture: Picture,
    format: ImageFormat,  # noqa: A002 - Pillow's own word
    parameters: dict[str, Any] | None = None,
    *,
    text: str | None = None,
    quality: int | None = None,
) -> tuple[bytes, str]:
    """A file of the picture and its content type.

    `quality` is 0 to 100, of JPEG and WebP; without it, one at which no difference is seen.
    `parameters` (JSON values) go along: whole for `read_parameters`, and as `text`, by default
    `infotext` of them, where other tools look for it.
    """
    if parameters is not None and text is None:
        text = infotext(parameters)
    image = Image.fromarray(picture)
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, "PNG", pnginfo=_png_text(parameters, text))
    elif format == "jpeg":
        quality = 95 if quality is None else quality
        image.save(buffer, "JPEG", quality=quality, subsampling=0, exif=_exif(parameters, text))
    else:
        quality = 92 if quality is None else quality
        image.save(buffer, "WEBP", quality=quality, exif=_exif(parameters, text))
    return buffer.getvalue(), CONTENT_TYPES[format]


def read_parameters(data: bytes) -> dict[str, Any] | None:
    """What `encode_image` was given as `parameters`; None for any other file."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if isinstance(image, PngImagePlugin.PngImageFile):
                text = image.text.get("daguerre")
            else:
                note = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.MakerNote, b"")
                ours = isinstance(note, bytes) and note.startswith(_OURS)
                text = note[len(_OURS) :].decode() if ours else None
            found = json.loads(text) if text else None
    except Exception:
        # As in decode_image: nothing that a stranger's file does is an error of ours.
        return None
    return found if isinstance(found, dict) else None


def read_texts(data: bytes) -> dict[str, str]:
    """What a file tells of itself, `parameters` first of all; empty for files that tell nothing."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if isinstance(image, PngImagePlugin.PngImageFile):
                image.load()  # texts may lie behind the pixels
                return {key: str(value) for key, value in image.text.items()}
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception:
        # As in decode_image: nothing that a stranger's file does is an error of ours.
        return {}
    if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
        return {}
    return {"parameters": _utf16(comment[len(_UNICODE) :])}


def _utf16(data: bytes) -> str:
    # programs differ in the order of bytes: Latin letters have their zero byte first in one of them
    little = data[1::2].count(0) > data[::2].count(0)
    return data.decode("utf-16-le" if little else "utf-16-be", "replace")


def infotext(parameters: dict[str, Any]) -> str:
    """The parameters in the form that Stable Diffusion tools write and read."""
    width, height = parameters.get("width"), parameters.get("height")
    labels = {
        "Steps": parameters.get("num_inference_steps"),
        "Sampler": parameters.get("scheduler"),
        "CFG scale": parameters.get("guidance_scale"),
        "Seed": parameters.get("seed"),
        "Size": f"{width}x{height}" if width and height else None,
        "Model": parameters.get("model"),
        "Denoising strength": parameters.get("strength"),
        "Version": "daguerre",
    }
    prompt, negative = str(parameters.get("prompt", "")), parameters.get("negative_prompt")
    return write(prompt, str(negative or ""), labels)


def _shown(text: str) -> str:
    """Printable and short: it came from a client, or tells about what did."""
    return "".join(c if c.isprintable() else " " for c in text)[:120]


def _check_size(size: tuple[int, int], field: str, max_pixels: int, min_side_px: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidImage(
            field, f"{field} may have at most {max_pixels} pixels, given {width}x{height}"
        )
    if min(size) < min_side_px:
        raise InvalidImage(
            field,
            f"{field} must be at least {min_side_px} pixels on each side, given {width}x{height}",
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's own conversion would clip it at 255 instead of scaling.
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _opacity(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return Image.new("L", image.size, 255)
    return image.convert("RGBA").getchannel("A")


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Turned as the EXIF data of `source` says; where they are damaged, as it lies."""
    try:
        turn = _TRANSPOSE.get(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # The pixels are good; broken metadata are no reason to refuse them.
        return picture
    return picture if turn is None else picture.transpose(turn)


def _well_formed(text: str) -> str:
    """Without lone surrogates, which no encoding takes."""
    return text.encode("utf-8", "replace").decode()


def _png_text(parameters: dict[str, Any] | None, text: str | None) -> PngImagePlugin.PngInfo | None:
    if parameters is None or text is None:
        return None
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", _well_formed(text))
    info.add_itxt("daguerre", json.dumps(parameters))
    return info


def _exif(parameters: dict[str, Any] | None, text: str | None) -> bytes:
    if parameters is None or text is None:
        return b""
    exif = Image.Exif()
    ours = _OURS + _well_formed(json.dumps(parameters, ensure_ascii=False)).encode()
    comment = _UNICODE + _well_formed(text).encode("utf-16-be")
    block = exif.get_ifd(ExifTags.IFD.Exif)
    block[ExifTags.Base.MakerNote] = ours
    if len(ours) + len(comment) < _MAX_EXIF_BYTES:
        block[ExifTags.Base.UserComment] = comment
    return exif.tobytes()
