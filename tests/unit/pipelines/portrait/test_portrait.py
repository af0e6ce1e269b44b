"""The whole pipeline on real faces."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipelines.errors import RequestCanceled
from pipelines.images import decode_image
from pipelines.portrait import region
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.gate import gated
from pipelines.portrait.job import Embed, Enlarge, RepaintOrder, Subject, Tools
from pipelines.portrait.parameters import PortraitParameters
from pipelines.portrait.portrait import make_portrait, read_subject
from pipelines.portrait.stages import STAGES
from tests.unit.pipelines.portrait.pictures import beside, turned

Named = Callable[[str], Subject]


def likeness(reader: FaceReader, one: np.ndarray, other: np.ndarray) -> float:
    vectors = [reader.embed(each, reader.detect(each)[0]) for each in (one, other)]
    return float(vectors[0] @ vectors[1])


def test_the_template_comes_to_look_like_the_subject(
    reader: FaceReader, tools: Tools, subject: Named, obama: np.ndarray, ardern: np.ndarray
) -> None:
    made = make_portrait(ardern, [subject("obama")], tools)
    gain = likeness(reader, made.picture, obama) - likeness(reader, ardern, obama)
    assert gain > 0.25
    assert list(made.seconds) == [stage.__name__ for stage in STAGES]


def test_more_like_me_is_more_like_me(
    reader: FaceReader, tools: Tools, subject: Named, obama: np.ndarray, ardern: np.ndarray
) -> None:
    def at(ratio: float) -> float:
        parameters = PortraitParameters(more_like_me=ratio)
        made = make_portrait(ardern, [subject("obama")], tools, parameters)
        return likeness(reader, made.picture, obama)

    assert at(0.0) < at(0.5) < at(1.0)


def test_outside_the_face_no_byte_changes(
    reader: FaceReader, tools: Tools, subject: Named, ardern: np.ndarray
) -> None:
    oval = region.oval(reader.detect(ardern)[0].mesh, ardern.shape[:2])
    parameters = PortraitParameters(makeup_transfer=True, skin_retouching_bool=True)
    for each in (PortraitParameters(), parameters):
        made = make_portrait(ardern, [subject("obama")], tools, each).picture
        changed = (made != ardern).any(axis=2)
        assert changed.any()
        assert not changed[region.dilate(oval, 2) == 0].any()


def test_with_every_stage_off_the_template_comes_back(
    tools: Tools, subject: Named, ardern: np.ndarray
) -> None:
    stages = (
        "apply_face_fusion_before",
        "apply_face_fusion_after",
        "color_shift_middle",
        "color_shift_last",
        "photo_enhancement_bool",
    )
    off = dict.fromkeys(stages, False)
    parameters = PortraitParameters.of({**off, "sharp_ratio": 0})
    assert (make_portrait(ardern, [subject("obama")], tools, parameters).picture == ardern).all()


def test_a_grey_template_stays_grey(tools: Tools, subject: Named, ardern: np.ndarray) -> None:
    grey = np.repeat(ardern.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    made = make_portrait(grey, [subject("obama")], tools).picture.astype(int)
    assert (made != grey).any()
    assert (made.max(axis=2) - made.min(axis=2)).max() <= 4


def test_subjects_take_their_places_from_left_to_right(
    reader: FaceReader, tools: Tools, subject: Named, obama: np.ndarray, ardern: np.ndarray,
    collins: np.ndarray,
) -> None:  # fmt: skip
    template = beside(ardern, turned(ardern[:, ::-1], 8))
    made = make_portrait(template, [subject("obama"), subject("collins")], tools).picture
    left, right = (reader.embed(made, face) for face in reader.detect(made))
    known = [reader.embed(each, reader.detect(each)[0]) for each in (obama, collins)]
    assert left @ known[0] > left @ known[1]
    assert right @ known[1] > right @ known[0]


def test_another_number_of_faces_than_subjects_is_said(
    tools: Tools, subject: Named, obama: np.ndarray, ardern: np.ndarray
) -> None:
    with pytest.raises(PortraitError, match="1; it has 2") as caught:
        make_portrait(beside(obama, ardern), [subject("collins")], tools)
    assert caught.value.fault is Fault.FACE_COUNT
    with pytest.raises(PortraitError) as caught:
        make_portrait(np.zeros((99, 99, 3), np.uint8), [subject("collins")], tools)
    assert caught.value.fault is Fault.TEMPLATE_WITHOUT_FACE


def test_photos_without_a_face_make_no_subject(reader: FaceReader) -> None:
    with pytest.raises(PortraitError) as caught:
        read_subject([np.zeros((99, 99, 3), np.uint8)], reader)
    assert caught.value.fault is Fault.REFERENCE_WITHOUT_FACE


def overlapping(ardern: np.ndarray) -> np.ndarray:
    canvas = np.full((355, 470, 3), 128, np.uint8)
    canvas[:, :300] = ardern
    canvas[40:355, 200:470] = ardern[:315, 30:, ::-1]
    return canvas


@pytest.mark.parametrize(
    "edit",
    [
        lambda picture: turned(picture, 30),
        lambda picture: turned(picture, -30),
        lambda picture: picture[:, 120:],
        lambda picture: picture[:150],
        lambda picture: picture[::5, ::5],
        lambda picture: (picture // 8).astype(np.uint8),
        lambda picture: np.pad(
            picture.repeat(2, axis=0).repeat(2, axis=1), ((0, 1290), (1400, 0), (0, 0))
        ),
        lambda picture: np.rot90(picture),
        overlapping,
    ],
    ids=["left", "right", "cut", "chin", "small", "dark", "2000px", "lying", "overlap"],
)
def test_a_hard_template_gives_a_portrait_or_the_listed_error(
    tools: Tools, subject: Named, ardern: np.ndarray, edit: Callable[[np.ndarray], np.ndarray]
) -> None:
    template = np.ascontiguousarray(edit(ardern))
    count = len(tools.detect(template))
    if count == 0:
        with pytest.raises(PortraitError, match="no face in the template"):
            make_portrait(template, [subject("obama")], tools)
        return
    made = make_portrait(template, [subject("obama")] * count, tools).picture
    assert made.shape == template.shape
    assert (made != template).any()


def test_twelve_faces_take_twelve_subjects(
    reader: FaceReader, tools: Tools, subject: Named, ardern: np.ndarray
) -> None:
    small = ardern[::2, ::2]
    template = np.ascontiguousarray(np.tile(small, (3, 4, 1)))
    rows = [subject("obama"), subject("collins")] * 6
    made = make_portrait(template, rows, tools).picture
    assert len(reader.detect(made)) == 12
    with pytest.raises(PortraitError, match="11; it has 12"):
        make_portrait(template, rows[:11], tools)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "CMYK", "exif"])
def test_files_of_every_kind_become_templates(
    tools: Tools, subject: Named, ardern: np.ndarray, mode: str
) -> None:
    image, buffer = Image.fromarray(ardern), io.BytesIO()
    if mode == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=exif)
    elif mode == "I;16":
        sixteen = ardern.mean(axis=2).astype(np.uint16) * 257
        Image.fromarray(sixteen).save(buffer, "PNG")
    else:
        image.convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    template = np.asarray(decode_image(buffer.getvalue(), max_pixels=10**6))
    made = make_portrait(template, [subject("obama")], tools).picture
    assert made.shape == ardern.shape
    assert (made != template).any()


def test_repaint_is_asked_for_face_then_features_and_stays_within_the_feather(
    tools: Tools, subject: Named, ardern: np.ndarray
) -> None:
    orders: list[RepaintOrder] = []

    def repaint(order: RepaintOrder) -> np.ndarray:
        orders.append(order)
        out = order.picture.copy()
        out[order.mask > 0.5] = out[order.mask > 0.5] // 2 + 60
        return out

    made = make_portrait(ardern, [subject("obama")], replace(tools, repaint=repaint)).picture
    assert [(order.stage, order.strength) for order in orders] == [("first", 0.45), ("second", 0.3)]
    assert all(order.subject is not None and order.subject.name == "obama" for order in orders)
    assert all(order.mesh is not None for order in orders)
    assert orders[1].mask.sum() < orders[0].mask.sum()
    assert made.shape == ardern.shape
    assert (made[:20] == ardern[:20]).all()


def test_background_and_rings_are_repainted_at_the_templates_size(
    tools: Tools, subject: Named, obama: np.ndarray, ardern: np.ndarray
) -> None:
    stages = []

    def repaint(order: RepaintOrder) -> np.ndarray:
        stages.append(order.stage)
        return order.picture

    ours = replace(tools, repaint=repaint)
    template = beside(obama, ardern)
    make_portrait(template, [subject("collins")] * 2, ours)
    assert stages == ["first", "first", "second", "second", "ring"]
    stages.clear()
    parameters = PortraitParameters(background_restore=True, face_shape_match=True)
    made = make_portrait(obama, [subject("collins")], ours, parameters).picture
    assert stages == ["first", "second", "background"]
    assert made.shape == obama.shape


def test_a_repaint_that_fails_is_told_by_its_stage_and_a_cancel_passes(
    tools: Tools, subject: Named, ardern: np.ndarray
) -> None:
    def crash(order: RepaintOrder) -> np.ndarray:
        raise RuntimeError("no memory")

    def cancel(order: RepaintOrder) -> np.ndarray:
        raise RequestCanceled("gone")

    def shrink(order: RepaintOrder) -> np.ndarray:
        return order.picture[::2]

    for repaint, message in ((crash, "no memory"), (shrink, "keep the size")):
        with pytest.raises(PortraitError, match=message) as caught:
            make_portrait(ardern, [subject("obama")], replace(tools, repaint=repaint))
        assert caught.value.fault is Fault.FIRST_REPAINT
    with pytest.raises(RequestCanceled):
        make_portrait(ardern, [subject("obama")], replace(tools, repaint=cancel))


def test_a_face_lost_by_the_repaint_is_told(
    tools: Tools, subject: Named, ardern: np.ndarray
) -> None:
    ours = replace(tools, repaint=lambda order: np.zeros_like(order.picture))
    with pytest.raises(PortraitError) as caught:
        make_portrait(ardern, [subject("obama")], ours, PortraitParameters(face_shape_match=True))
    assert caught.value.fault is Fault.SECOND_FUSION


def test_a_swapper_given_from_outside_draws_the_face(
    reader: FaceReader, tools: Tools, subject: Named, ardern: np.ndarray
) -> None:
    calls = []

    def swap(picture: np.ndarray, mesh: np.ndarray, reference: object) -> np.ndarray:
        calls.append(mesh)
        return 255 - picture

    made = make_portrait(ardern, [subject("obama")], replace(tools, swap=swap)).picture
    assert len(calls) == 2
    assert (made != ardern).any()


def test_super_resolution_doubles_the_picture(
    tools: Tools, subject: Named, collins: np.ndarray
) -> None:
    parameters = PortraitParameters(photo_enhancement_method="super_resolution")
    made = make_portrait(collins, [subject("obama")], tools, parameters).picture
    assert made.shape == (2 * collins.shape[0], 2 * collins.shape[1], 3)


def sharper(picture: np.ndarray) -> np.ndarray:
    """A network that makes of a face the same, finer: three times the size, edges raised."""
    size = (3 * picture.shape[1], 3 * picture.shape[0])
    larger = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    return cv2.addWeighted(larger, 1.5, cv2.GaussianBlur(larger, (0, 0), 4), -0.5, 0)


def stranger(picture: np.ndarray) -> np.ndarray:
    """One that makes of any face another: stretched, and without its middle."""
    larger = np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1)
    return cv2.medianBlur(np.roll(larger[::-1], 9, axis=1), 21)


@pytest.mark.parametrize("method", ["photo_fix", "super_resolution"])
def test_a_network_enhances_where_everybody_stays_who_they_are(
    reader: FaceReader, tools: Tools, subject: Named, collins: np.ndarray, method: str
) -> None:
    parameters = PortraitParameters(photo_enhancement_method=method)

    def made(enlarge: Enlarge | None, embed: Embed | None = reader.embed) -> np.ndarray:
        with_network = replace(tools, enlarge=enlarge, embed=embed)
        return make_portrait(collins, [subject("obama")], with_network, parameters).picture

    plain = made(None)
    assert (made(sharper) != plain).any()
    assert (made(stranger) == plain).all()
    assert (made(sharper, None) == plain).all()


def test_of_two_faces_only_the_one_that_stays_is_enhanced(
    reader: FaceReader, ardern: np.ndarray, obama: np.ndarray
) -> None:
    both = beside(ardern, obama)
    half = ardern.shape[1]
    finer = np.clip(both.astype(int) + 8, 0, 255).astype(np.uint8)
    finer[:, half:] = cv2.GaussianBlur(finer[:, half:], (0, 0), 12)
    kept = gated(both, finer, reader.detect, reader.embed)
    left, right = reader.detect(both)
    for face, source in ((left, finer), (right, both)):
        for x, y in np.round(face.points).astype(int):
            assert (kept[y, x] == source[y, x]).all()
    assert (kept[:5, :5] == finer[:5, :5]).all()
    assert (gated(both, both[::-1], reader.detect, reader.embed) == both).all()


def test_a_debug_folder_shows_every_stage(
    tools: Tools, subject: Named, collins: np.ndarray, tmp_path: Path
) -> None:
    heard: list[int] = []
    make_portrait(
        collins,
        [subject("obama")],
        tools,
        debug_dir=tmp_path / "debug",
        on_stage=lambda name, number, count: heard.append(number),
    )
    names = sorted(path.name for path in (tmp_path / "debug").iterdir())
    assert "03_fuse_before_person1.png" in names
    assert "14_sharpen.png" in names
    assert heard == list(range(1, len(STAGES) + 1))


def test_the_best_of_several_references_is_the_one_with_the_templates_expression(
    reader: FaceReader, obama: np.ndarray
) -> None:
    from pipelines.portrait.crop import best_reference

    both = read_subject([obama, turned(obama, 20)], reader)
    assert len(both.references) == 2
    face = reader.detect(obama)[0]
    for reference in both.references:
        moved = replace(face, mesh=reference.mesh)
        assert best_reference(both.references, moved) is reference
