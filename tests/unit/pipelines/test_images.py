import base64
import binascii
import io
import random
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from pipelines.errors import InvalidImage
from pipelines.images import (
    cover_image,
    decode_data_url,
    decode_image,
    decode_opacity,
    encode_image,
    infotext,
    read_parameters,
)

PARAMETERS = {
    "prompt": "一只戴帽子的猫 🐱, (watercolor:1.2)",
    "negative_prompt": "模糊",
    "width": 24,
    "height": 16,
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "scheduler": "DDIMScheduler",
    "seed": 2**63 - 1,
    "model": "embedded",
    "strength": 0.6,
}
LIMIT = 1_000_000


def picture(width=24, height=16):
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *chunks, depth=1, colour=0):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def bomb(side):
    """A valid one-bit PNG of a few kilobytes."""
    rows = zlib.compress(b"\0" * ((side // 8 + 1) * side), 9)
    return png(side, side, chunk(b"IDAT", rows))


def refusal(data, **options):
    with pytest.raises(InvalidImage) as caught:
        decode_image(data, max_pixels=LIMIT, **options)
    return caught.value


# --- decode_image


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_decoded_to_rgb(file_format):
    image = decode_image(saved(Image.fromarray(picture()), file_format), max_pixels=LIMIT)
    assert (image.mode, image.size) == ("RGB", (24, 16))


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "PDF", "EPS"])
def test_every_other_format_is_refused(file_format):
    error = refusal(saved(Image.fromarray(picture()), file_format))
    assert str(error) == "init_image is not a picture in one of the formats PNG, JPEG, WEBP"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0",
     b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"%PDF-1.7", b"PK\3\4"],
)  # fmt: skip
def test_bytes_that_are_no_picture_are_refused(data):
    assert refusal(data).field == "init_image"


def test_the_field_is_named_in_the_error():
    error = refusal(b"no", field="mask_image")
    assert error.field == "mask_image"
    assert str(error).startswith("mask_image ")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 100), (100, 7), (0, 8)])
def test_a_side_below_the_minimum_is_refused(width, height):
    rows = zlib.compress(b"\0" * ((width // 8 + 2) * max(height, 1)))
    error = refusal(png(width, height, chunk(b"IDAT", rows)))
    assert width == 0 or str(error) == (
        f"init_image must be at least 8 pixels on each side, given {width}x{height}"
    )


def test_too_many_pixels_are_refused_with_limit_and_given():
    assert str(refusal(bomb(8000))) == (
        "init_image may have at most 1000000 pixels, given 8000x8000"
    )


@pytest.mark.parametrize("side", [8000, 9600, 20000])
def test_a_bomb_is_refused_before_its_pixels_are_decoded(side, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    data = bomb(side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "1000000 pixels" in str(refusal(data))
    assert not decoded
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_a_very_long_strip_is_refused():
    assert "given 100000x1" in str(refusal(png(100_000, 1, chunk(b"IDAT", zlib.compress(b"\0")))))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_compressed_text_bomb_is_refused(kind):
    text = chunk(kind, b"k\0\0" + zlib.compress(b"\0" * 50_000_000, 9))
    good = saved(Image.fromarray(picture()))
    bombed = good[:33] + text + good[33:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "damaged" in str(refusal(bombed))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(file_format, share):
    data = saved(Image.fromarray(picture(200, 200)), file_format)
    assert refusal(data[: int(len(data) * share)]).field == "init_image"


def test_a_flipped_bit_in_the_pixels_of_a_png_is_refused():
    data = bytearray(saved(Image.fromarray(picture(200, 200))))
    data[len(data) // 2] ^= 1
    refusal(bytes(data))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.integers(0, 2**32),
    st.sampled_from([1, 3, 20, 100]),
)
def test_a_mutated_file_is_a_picture_or_an_invalid_image(file_format, seed, changes):
    dice = random.Random(seed)
    data = bytearray(saved(Image.fromarray(picture()), file_format))
    for _ in range(changes):
        data[dice.randrange(len(data))] = dice.randrange(256)
    message = ""
    try:
        assert decode_image(bytes(data), max_pixels=LIMIT).mode == "RGB"
    except InvalidImage as error:
        message = str(error)
    assert not message or message.isprintable()
    assert len(message) < 250


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb_of_the_same_look(mode):
    grey = np.linspace(0, 255, 32 * 32).reshape(32, 32)
    if mode == "I;16":
        image = Image.fromarray((grey * 257).astype(np.uint16))
    else:
        palette = {"palette": Image.Palette.ADAPTIVE} if mode == "P" else {}
        image = Image.fromarray(grey.astype(np.uint8)).convert("RGB").convert(mode, **palette)
    file_format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    decoded = decode_image(saved(image, file_format), max_pixels=LIMIT)
    tolerance = 255 if mode == "1" else 8
    assert np.abs(np.asarray(decoded).astype(int) - grey[..., None]).max() <= tolerance
    assert abs(np.asarray(decoded).mean() - grey.mean()) < 8


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 8, 16))
    decoded = decode_image(saved(image), max_pixels=LIMIT)
    assert decoded.getpixel((12, 8)) == (255, 255, 255)
    assert decoded.getpixel((4, 8)) == (0, 0, 200)


def test_a_transparent_palette_colour_is_laid_on_white():
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    decoded = decode_image(saved(image, transparency=1), max_pixels=LIMIT)
    assert decoded.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(file_format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    data = saved(frames[0], file_format, save_all=True, append_images=frames[1:])
    red, green, blue = decode_image(data, max_pixels=LIMIT).getpixel((8, 8))
    assert red > 200
    assert max(green, blue) < 50


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format, orientation):
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste((255, 255, 255), (0, 0, 8, 8))
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    lying = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(saved(lying, file_format, exif=exif), max_pixels=LIMIT)
    assert decoded.size == (32, 16)
    assert decoded.getpixel((3, 3))[0] > 200
    assert decoded.getpixel((28, 12))[0] < 50


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_does_not_cost_the_picture():
    data = saved(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert decode_image(data, max_pixels=LIMIT).size == (24, 16)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16", "CMYK"])
def test_a_picture_without_transparency_is_opaque(mode):
    buffer = io.BytesIO()
    Image.new(mode, (16, 8)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    opacity = decode_opacity(buffer.getvalue(), max_pixels=LIMIT, field="mask")
    assert (opacity.size, opacity.mode, opacity.getextrema()) == ((16, 8), "L", (255, 255))


def test_opacity_is_turned_with_its_picture():
    image = Image.new("RGBA", (16, 8), (9, 9, 9, 255))
    image.paste((9, 9, 9, 0), (0, 0, 16, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    opacity = decode_opacity(buffer.getvalue(), max_pixels=LIMIT, field="mask")
    assert opacity.size == (8, 16)
    assert (opacity.getpixel((7, 8)), opacity.getpixel((0, 8))) == (0, 255)


def test_a_mask_that_is_no_picture_is_refused_by_its_name():
    with pytest.raises(InvalidImage, match="mask is not a picture"):
        decode_opacity(b"nothing", max_pixels=LIMIT, field="mask")


def test_cover_image_keeps_the_middle_and_its_proportions():
    image = Image.new("RGB", (40, 16), "white")
    image.paste("black", (12, 0, 28, 16))
    covered = cover_image(image, 32, 32)
    assert covered.size == (32, 32)
    inside = covered.crop((8, 0, 24, 32))  # without the smoothed edges
    assert inside.getcolors() == [(16 * 32, (0, 0, 0))]
    assert covered.getpixel((0, 16)) < (128, 128, 128)
    assert cover_image(image, 40, 16) is image


# --- decode_data_url


@pytest.mark.parametrize(
    "prefix",
    ["", "data:image/png;base64,", "data:image/jpeg;base64,", "data:image/jpg;base64,",
     "data:image/webp;base64,", "DATA:image/PNG;Base64,"],
)  # fmt: skip
def test_a_data_url_and_bare_base64_are_decoded(prefix):
    text = prefix + base64.b64encode(b"some bytes").decode()
    assert decode_data_url(text, field="init_image", max_bytes=100) == b"some bytes"


def test_white_space_in_base64_is_ignored():
    text = base64.encodebytes(bytes(range(200))).decode().replace("\n", " \r\n\t")
    assert decode_data_url(text, field="init_image", max_bytes=200) == bytes(range(200))


def test_much_white_space_in_base64_is_taken_out_quickly():
    text = "aGk= " + "A " * 5_000_000
    began = time.process_time()
    with pytest.raises(InvalidImage):
        decode_data_url(text, field="init_image", max_bytes=2**25)
    assert time.process_time() - began < 0.3


@pytest.mark.parametrize(
    "text",
    ["", "   ", "data:", "data:image/png;base64,", "data:text/html;base64,aGk=", "data:,hi",
     "data:image/svg+xml;base64,aGk=", "data:image/png,aGk=", "a", "aGk", "aGk==", "aGk=aGk=",
     "a-_=", "aGk\0", "äöü=", "猫猫猫猫", "http://host/cat.png", "/etc/passwd", "====",
     "aGk=!", "\ud800"],
)  # fmt: skip
def test_text_that_is_not_strict_base64_is_refused(text):
    with pytest.raises(InvalidImage) as caught:
        decode_data_url(text, field="init_image", max_bytes=100)
    assert caught.value.field == "init_image"
    assert str(caught.value).startswith("init_image ")


@pytest.mark.parametrize("size", [99, 100, 101, 102, 103, 5000])
def test_the_byte_limit_is_kept_to_the_byte(size):
    text = binascii.b2a_base64(b"x" * size).decode()
    if size <= 100:
        assert len(decode_data_url(text, field="init_image", max_bytes=100)) == size
    else:
        with pytest.raises(InvalidImage, match="init_image may hold at most 100 bytes, given"):
            decode_data_url(text, field="init_image", max_bytes=100)


# --- encode_image and read_parameters


@pytest.mark.parametrize(
    ("file_format", "content_type"),
    [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")],
)
def test_parameters_go_along_and_come_back(file_format, content_type):
    data, given = encode_image(picture(), file_format, PARAMETERS)
    assert given == content_type
    assert read_parameters(data) == PARAMETERS


def test_a_png_holds_the_very_pixels():
    data, _ = encode_image(picture(), "png", PARAMETERS)
    assert np.array_equal(np.asarray(decode_image(data, max_pixels=LIMIT)), picture())


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_lossy_formats_stay_close(file_format):
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3))
    data, _ = encode_image(smooth, file_format)
    decoded = np.asarray(decode_image(data, max_pixels=LIMIT)).astype(int)
    assert np.abs(decoded - smooth).mean() < 2


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_a_lower_quality_makes_a_smaller_file(file_format):
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    sizes = [
        len(encode_image(picture, file_format, quality=quality)[0]) for quality in (0, 50, 100)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


def test_the_infotext_of_a_png_is_where_other_tools_read_it():
    data, _ = encode_image(picture(), "png", PARAMETERS)
    text = Image.open(io.BytesIO(data), formats=["PNG"]).text["parameters"]
    assert text == (
        "一只戴帽子的猫 🐱, (watercolor:1.2)\n"
        "Negative prompt: 模糊\n"
        "Steps: 20, Sampler: DDIMScheduler, CFG scale: 7.5, Seed: 9223372036854775807, "
        "Size: 24x16, Model: embedded, Denoising strength: 0.6, Version: daguerre"
    )


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_the_infotext_of_other_formats_is_the_user_comment(file_format):
    data, _ = encode_image(picture(), file_format, PARAMETERS)
    comment = (
        Image.open(io.BytesIO(data), formats=["JPEG", "WEBP"]).getexif().get_ifd(0x8769)[0x9286]
    )
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == infotext(PARAMETERS)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["🐱" * 4000, "\ud800 half", "a\0b\nc\x1b[31m", "", "é" * 4000])
def test_any_prompt_can_be_written(file_format, prompt):
    data, _ = encode_image(picture(), file_format, {"prompt": prompt, "negative_prompt": prompt})
    found = read_parameters(data)
    assert found is not None
    assert found["prompt"] in (prompt, prompt.replace("\ud800", "?"))
    assert decode_image(data, max_pixels=LIMIT).size == (24, 16)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_a_picture_without_parameters_reads_as_none(file_format):
    data, _ = encode_image(picture(), file_format)
    assert read_parameters(data) is None


@pytest.mark.parametrize("text", ["", "[]", "1", "{", "null", "[" * 100_000])
def test_foreign_text_under_our_name_reads_as_none(text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("daguerre", text)
    assert read_parameters(saved(Image.fromarray(picture()), pnginfo=info)) is None


def test_bytes_that_are_no_picture_have_no_parameters():
    assert read_parameters(b"no") is None
