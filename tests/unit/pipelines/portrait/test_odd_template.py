"""Templates as they come: a portrait of them, or the listed error; never another exception."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.errors import InvalidRequest
from pipelines.images import decode_image
from pipelines.portrait import region
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.job import Subject, Tools
from pipelines.portrait.parameters import PortraitParameters
from pipelines.portrait.portrait import make_portrait, read_subject
from tests.unit.pipelines.portrait.pictures import turned

Named = Callable[[str], Subject]
ALL = PortraitParameters(
    makeup_transfer=True, skin_retouching_bool=True, photo_enhancement_method="photo_fix"
)


def cut(
    picture: np.ndarray, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0
) -> np.ndarray:
    """Without these parts of its width and height."""
    height, width = picture.shape[:2]
    rows = slice(round(top * height), round((1 - bottom) * height))
    columns = slice(round(left * width), round((1 - right) * width))
    return np.ascontiguousarray(picture[rows, columns])


def with_glasses(picture: np.ndarray, reader: FaceReader) -> np.ndarray:
    (face,) = reader.detect(picture)
    out, width = picture.copy(), region.face_width(face.mesh)
    eyes = [face.mesh[list(eye), :2].mean(0) for eye in (region.RIGHT_EYE, region.LEFT_EYE)]
    thick = max(2, round(0.03 * width))
    for eye in eyes:
        cv2.circle(out, [int(v) for v in eye], round(0.19 * width), (20, 20, 20), thick)
    ends = [[int(v) for v in eye] for eye in eyes]
    cv2.line(out, ends[0], ends[1], (20, 20, 20), thick)
    return out


EDITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "leant": lambda picture: turned(picture, 30),
    "over the left border": lambda picture: cut(picture, left=0.45),
    "over the right border": lambda picture: cut(picture, right=0.45),
    "over the top border": lambda picture: cut(picture, top=0.35),
    "over the lower border": lambda picture: cut(picture, bottom=0.5),
    "in a corner": lambda picture: cut(picture, left=0.35, top=0.25),
    "wide": lambda picture: np.pad(picture, ((0, 0), (0, 2000), (0, 0))),
    "squeezed": lambda picture: cv2.resize(picture, (150, 355)),
    "overexposed": lambda picture: np.clip(picture.astype(int) * 3, 0, 255).astype(np.uint8),
    "two colours": lambda picture: np.where(picture.mean(2, keepdims=True) > 110, 255, 0)
    .astype(np.uint8).repeat(3, axis=2),
    "grain": lambda picture: np.clip(
        picture + np.random.default_rng(0).normal(0, 40, picture.shape), 0, 255
    ).astype(np.uint8),
    "upside down": lambda picture: np.ascontiguousarray(picture[::-1]),
    "nobody": lambda picture: np.zeros_like(picture),
    "8 x 8": lambda picture: np.ascontiguousarray(picture[:8, :8]),
}  # fmt: skip


@pytest.mark.parametrize("parameters", [PortraitParameters(), ALL], ids=["plain", "all"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_odd_template_gives_a_portrait_or_a_listed_error(
    reader: FaceReader, tools: Tools, subject: Named, ardern: np.ndarray,
    edit: Callable[[np.ndarray], np.ndarray], parameters: PortraitParameters,
) -> None:  # fmt: skip
    template = edit(ardern)
    faces = tools.detect(template)
    someone = subject("obama")
    if len(faces) != 1:
        with pytest.raises(PortraitError) as caught:
            make_portrait(template, [someone], tools, parameters)
        assert caught.value.fault is (Fault.FACE_COUNT if faces else Fault.TEMPLATE_WITHOUT_FACE)
        return
    made = make_portrait(template, [someone], tools, parameters).picture
    assert made.shape == template.shape
    (face,) = faces
    inside = region.oval(face.mesh, template.shape[:2])
    changed = (made != template).any(axis=2)
    assert changed[inside > 0].any()
    assert not changed[region.dilate(inside, 2) == 0].any()


def test_glasses_of_the_template_do_not_keep_the_subject_away(
    reader: FaceReader, tools: Tools, subject: Named, ardern: np.ndarray, obama: np.ndarray
) -> None:
    template = with_glasses(ardern, reader)
    made = make_portrait(template, [subject("obama")], tools).picture
    goal = reader.embed(obama, reader.detect(obama)[0])
    before, after = (reader.embed(each, reader.detect(each)[0]) @ goal for each in (template, made))
    assert after - before > 0.2


def test_glasses_of_the_template_stay_whole(
    reader: FaceReader, tools: Tools, subject: Named, ardern: np.ndarray
) -> None:
    template = with_glasses(ardern, reader)
    worn = template.copy()
    worn[(template == ardern).all(axis=2)] = 255

    def frames(picture: np.ndarray) -> int:
        """Pixels as dark as the frames that the picture without any has not."""
        return int((picture.max(axis=2) < 45).sum())

    made, plain = (
        make_portrait(each, [subject("obama")], tools).picture for each in (template, ardern)
    )
    assert frames(made) - frames(plain) > 0.5 * frames(worn)


def test_glasses_of_the_subject_are_left_out(
    reader: FaceReader, tools: Tools, subject: Named, ardern: np.ndarray, obama: np.ndarray
) -> None:
    wearing = read_subject([with_glasses(obama, reader)], reader)
    made, plain = (
        make_portrait(ardern, [each], tools).picture for each in (wearing, subject("obama"))
    )
    around = region.around_eyes(reader.detect(ardern)[0].mesh, ardern.shape[:2]) > 0
    darker = plain[around].max(axis=1).astype(int) - made[around].max(axis=1)
    assert (darker > 60).mean() < 0.1


def colour_16_bit(picture: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)[1])


def saved(picture: np.ndarray, mode: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, kind)
    return buffer.getvalue()


FILES: dict[str, Callable[[np.ndarray], bytes]] = {
    "16 bits a colour": colour_16_bit,
    "grey with opacity": lambda picture: saved(picture, "LA"),
    "palette": lambda picture: saved(picture, "P"),
    "grey JPEG": lambda picture: saved(picture, "L", "JPEG"),
    "WebP with opacity": lambda picture: saved(picture, "RGBA", "WEBP"),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_files_of_more_kinds_become_templates(
    tools: Tools, subject: Named, ardern: np.ndarray, write: Callable[[np.ndarray], bytes]
) -> None:
    template = np.asarray(decode_image(write(ardern), max_pixels=10**6))
    made = make_portrait(template, [subject("obama")], tools).picture
    assert made.shape == ardern.shape
    assert (made != template).any()


def test_a_file_that_is_no_template_is_an_invalid_request(ardern: np.ndarray) -> None:
    whole = saved(ardern, "RGB")
    for data in (b"", whole[:-500], whole[: len(whole) // 2], saved(ardern[:4], "RGB")):
        with pytest.raises(InvalidRequest, match="template"):
            decode_image(data, max_pixels=10**6, field="template")
    with pytest.raises(InvalidRequest, match="at most 1000 pixels"):
        decode_image(whole, max_pixels=1000, field="template")
