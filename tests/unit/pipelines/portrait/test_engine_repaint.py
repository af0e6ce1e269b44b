"""Repaints by real checkpoints, tiny ones."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.components import Components
from pipelines.diffusion import check_request
from pipelines.engine.request import ControlUse, ImageRequest, IPAdapterUse, LoraUse
from pipelines.errors import ModelError
from pipelines.portrait import guide, region
from pipelines.portrait.base_model import BaseModel, FaceAdapter, Look, PersonLora
from pipelines.portrait.drawing import draw_template, template_request, with_model
from pipelines.portrait.drawn_head import head_and_background, is_drawing
from pipelines.portrait.engine_repaint import EngineRepaint, left_out, working_size
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.faces import FaceReader
from pipelines.portrait.files import located
from pipelines.portrait.job import PortraitJob, RepaintOrder, Subject, Tools
from pipelines.portrait.parameters import PortraitParameters
from pipelines.portrait.portrait import make_portrait, read_subject
from tests.unit.pipelines.guides import save_control, save_encoder, save_ip_adapter
from tests.unit.pipelines.portrait.pictures import Picture
from training.embedded_model.attributes import Attributes
from training.embedded_model.render import render

Named = Callable[[str], Subject]
Draws = Callable[..., list[Picture]]
SD = BaseModel(
    side_px=64,
    photographic=True,
    scheduler="DDIMScheduler",
    looks={"Realistic": Look("photo of {who}", "cartoon")},
)
AVATAR = Attributes(
    background="yellow", skin="light", hair="short", hair_colour="brown", hat="none",
    hat_colour="none", glasses="none", beard="none", clothes="hoodie", clothes_colour="blue",
    expression="smiling", eyes="open", variant=0,
)  # fmt: skip


class Recorder:
    """Draws grey, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[ImageRequest] = []

    def __call__(self, request: ImageRequest) -> Picture:
        self.requests.append(request)
        return np.full((request.height, request.width, 3), 128, np.uint8)


@pytest.fixture
def order(reader: FaceReader, subject: Named, ardern: Picture) -> Callable[..., RepaintOrder]:
    mesh = reader.detect(ardern)[0].mesh
    face = region.oval(mesh, ardern.shape[:2])

    def make(stage: Any = "first", **parameters: Any) -> RepaintOrder:
        return RepaintOrder(
            stage, ardern, face, 0.5, 20, subject("obama"), mesh, PortraitParameters(**parameters)
        )

    return make


@pytest.fixture
def loras(tmp_path: Path) -> dict[str, PersonLora]:
    return {"obama": PersonLora(tmp_path / "obama.safetensors", "zorblax")}


def test_an_order_becomes_a_request_of_the_models_size(
    order: Callable[..., RepaintOrder], loras: dict[str, PersonLora], ardern: Picture
) -> None:
    draw = Recorder()
    made = EngineRepaint(SD, draw, 40, loras)(order(lora_weights=0.8))
    (request,) = draw.requests
    assert made.shape == ardern.shape
    assert min(request.width, request.height) == 64
    assert request.width % 8 == request.height % 8 == 0
    assert request.width / request.height == pytest.approx(300 / 355, rel=0.1)
    assert (request.prompt, request.negative_prompt) == ("photo of zorblax person", "cartoon")
    assert request.loras == (LoraUse(loras["obama"].path, 0.8, 0.8),)
    assert (request.strength, request.num_inference_steps) == (0.5, 20)
    assert request.mask is not None
    assert set(np.unique(request.mask)) == {0, 255}


def test_each_stage_has_a_seed_of_its_own(order: Callable[..., RepaintOrder]) -> None:
    draw = Recorder()
    for stage in ("first", "second", "ring", "background"):
        EngineRepaint(SD, draw, 40)(order(stage))
    assert len({request.seed for request in draw.requests}) == 4
    assert len({request.id for request in draw.requests}) == 4


def test_a_real_engine_repaints_and_outside_the_mask_no_byte_changes(
    sd: Components, draw: Draws, order: Callable[..., RepaintOrder], ardern: Picture
) -> None:
    given = order()
    made = EngineRepaint(SD, lambda request: draw(sd, request)[0], 1)(given)
    changed = (made != ardern).any(axis=2)
    assert changed[given.mask > 0.5].mean() > 0.9
    assert not changed[region.dilate(given.mask, 12) == 0].any()


@pytest.fixture
def guided(sd: Components, tmp_path: Path) -> BaseModel:
    """With every ControlNet, an IP-Adapter, and a LoRA for speed."""
    controls = {
        kind: save_control(sd, tmp_path / kind, seed)
        for seed, kind in enumerate(("canny", "tile", "colour", "pose"))
    }
    adapter = FaceAdapter(
        save_ip_adapter(sd, tmp_path / "face.safetensors", "plus", 3),
        save_encoder(tmp_path / "encoder"),
    )
    return replace(SD, controls=controls, face_adapter=adapter, lcm_lora=tmp_path / "lcm")


@pytest.mark.parametrize(
    ("stage", "parameters", "kinds", "faces"),
    [
        ("first", {}, {"canny": 0.5, "pose": 0.5, "colour": 0.85}, 0),
        ("first", {"face_shape_match": True}, {"canny": 0.5, "pose": 0.5}, 0),
        ("second", {}, {"canny": 1.0, "tile": 1.0}, 0),
        ("second", {"ipa_control": True}, {"canny": 1.0}, 1),
        ("background", {}, {"canny": 1.0, "colour": 1.0}, 0),
    ],
    ids=["first", "shape", "second", "face", "background"],
)
def test_each_stage_is_guided_by_its_control_nets(
    guided: BaseModel,
    sd: Components,
    order: Callable[..., RepaintOrder],
    stage: str,
    parameters: dict[str, Any],
    kinds: dict[str, float],
    faces: int,
) -> None:
    draw = Recorder()
    EngineRepaint(guided, draw, 1)(order(stage, **parameters))
    (request,) = draw.requests
    check_request(request, sd)
    assert {use.path.name: use.scale for use in request.controls} == kinds
    assert len(request.ip_adapters) == faces


def test_control_nets_and_the_face_change_what_is_drawn(
    guided: BaseModel, sd: Components, draw: Draws, order: Callable[..., RepaintOrder]
) -> None:
    def drawn(base: BaseModel, **parameters: Any) -> Picture:
        return EngineRepaint(base, lambda request: draw(sd, request)[0], 1)(order(**parameters))

    plain, all_of = drawn(SD), drawn(guided)
    seen = drawn(guided, ipa_control=True)
    assert (plain != all_of).any()
    assert (seen != all_of).any()


def test_lcm_takes_few_steps_where_its_lora_is_there(
    guided: BaseModel, order: Callable[..., RepaintOrder]
) -> None:
    draw = Recorder()
    EngineRepaint(guided, draw, 1)(order(lcm_accelerate=True))
    EngineRepaint(SD, draw, 1)(order(lcm_accelerate=True))
    fast, slow = draw.requests
    assert (fast.scheduler, fast.num_inference_steps, fast.guidance_scale) == (
        "LCMScheduler",
        12,
        2,
    )
    assert [(use.path.name, use.weight) for use in fast.loras] == [("lcm", 0.8)]
    assert (slow.scheduler, slow.num_inference_steps, slow.loras) == ("DDIMScheduler", 20, ())


def test_lcm_is_as_strong_as_its_family_needs_in_every_stage_and_in_templates(
    guided: BaseModel, order: Callable[..., RepaintOrder], subject: Named
) -> None:
    draw, parameters = Recorder(), PortraitParameters(lcm_accelerate=True)
    for base, weight in ((guided, 0.8), (replace(guided, is_xl=True), 0.4)):
        repaint = EngineRepaint(base, draw, 1)
        draw.requests.clear()
        for stage in ("first", "second", "ring", "background"):
            repaint(order(stage, lcm_accelerate=True))
        template = template_request("on a horse", parameters, [subject("obama")], repaint, None)
        made = [*draw.requests, template]
        assert [request.num_inference_steps for request in made] == [12, 8, 8, 8, 8]
        assert {request.loras[-1].weight for request in made} == {weight}
        assert {request.guidance_scale for request in made} == {2.0}


def test_what_is_not_configured_is_said(guided: BaseModel) -> None:
    lora = PersonLora(Path("x"), "zorblax")
    parameters = PortraitParameters(ipa_control=True, lcm_accelerate=True, style_name="Anime")
    anime = replace(guided, looks={"Realistic": Look(), "Anime": Look()})
    assert left_out(parameters, anime, {"ada": lora}) == ()
    said = " / ".join(left_out(parameters, SD, {"ada": None}))
    for word in ("canny", "colour", "pose", "tile", "IP-Adapter", "LCM", "Anime", "ada"):
        assert word in said
    no_repaint = PortraitParameters(first_denoising_strength=0, second_denoising_strength=0)
    assert left_out(no_repaint, SD, {"ada": lora}) == ()


@pytest.mark.parametrize(
    ("size", "is_xl", "drawn"),
    [
        ((1500, 1500), False, (512, 512)),
        ((300, 355), False, (512, 608)),
        ((400, 4000), False, (200, 1984)),
        ((300, 400), True, (888, 1184)),
    ],
    ids=["large", "small", "long", "xl"],
)
def test_pictures_of_any_size_are_drawn_at_one_that_the_model_knows(
    size: tuple[int, int], is_xl: bool, drawn: tuple[int, int]
) -> None:
    base = replace(SD, side_px=1024 if is_xl else 512, is_xl=is_xl)
    assert working_size(size, base) == drawn


def test_landmarks_lie_in_the_face_and_the_face_stands_upright_on_white(
    reader: FaceReader, subject: Named, ardern: Picture
) -> None:
    mesh = reader.detect(ardern)[0].mesh
    dots = guide.landmarks(mesh, ardern.shape[:2])
    inside = region.dilate(region.oval(mesh, ardern.shape[:2]), 12)
    assert dots.any()
    assert not dots[inside == 0].any()
    reference = subject("obama").references[0]
    face = guide.face_on_white(reference)
    assert face.shape[0] == face.shape[1]
    assert (face[0, 0] == 255).all()
    shown = (face != 255).any(axis=2)
    assert shown.mean() > 0.3
    middle = shown[:, shown.shape[1] // 2]
    assert not middle[: len(middle) // 8].any(), "the forehead is white"
    assert middle[len(middle) // 2 : -len(middle) // 8].all()


def test_a_model_that_knows_no_photos_leaves_a_photo_as_it_is(
    tools: Tools, subject: Named, ardern: Picture, loras: dict[str, PersonLora]
) -> None:
    draw, parameters = Recorder(), PortraitParameters()
    repaint = EngineRepaint(replace(SD, photographic=False), draw, 1, loras)
    adapted = with_model(PortraitJob(ardern, (subject("obama"),), tools, parameters), repaint)
    assert adapted.notes == ("the base model knows no photos, so that nothing is repainted",)
    job = adapted.job
    made = make_portrait(ardern, job.subjects, job.tools, job.parameters)
    plain = make_portrait(ardern, [subject("obama")], tools, parameters)
    assert (made.picture == plain.picture).all()
    assert draw.requests == []


def test_drawings_are_told_from_photos(
    reader: FaceReader, obama: Picture, ardern: Picture, collins: Picture
) -> None:
    avatar = render(AVATAR, 256)
    assert is_drawing(avatar, reader.detect(avatar)[0])
    for photo in (obama, ardern, collins):
        assert not is_drawing(photo, reader.detect(photo)[0])


def test_the_head_of_a_drawing_and_its_background_are_free_and_clothes_are_not(
    reader: FaceReader,
) -> None:
    avatar = render(replace(AVATAR, hair="long"), 256)
    free = head_and_background(avatar, reader.detect(avatar)[0].mesh)
    bald = render(replace(AVATAR, hair="bald"), 256)
    green = render(replace(AVATAR, hair="long", clothes_colour="green"), 256)
    assert free[(avatar != bald).any(axis=2)].mean() > 0.97
    assert free[(green != avatar).any(axis=2)].mean() < 0.12
    assert free[:, :8].all()


def test_a_drawn_head_takes_the_place_of_another_and_the_rest_stays(
    reader: FaceReader, tools: Tools, tmp_path: Path
) -> None:
    avatar = render(AVATAR, 256)
    other = replace(AVATAR, background="red", skin="dark", hair="bob", hair_colour="pink")
    someone = read_subject([render(other, 256)], reader, "zed")
    requests: list[ImageRequest] = []

    def draw(request: ImageRequest) -> Picture:
        requests.append(request)
        assert request.init_image is not None
        return request.init_image

    repaint = EngineRepaint(
        replace(SD, photographic=False), draw, 1, {"zed": PersonLora(tmp_path, "zed")}
    )
    job = with_model(PortraitJob(avatar, (someone,), tools), repaint).job
    made = make_portrait(avatar, [someone], job.tools, job.parameters).picture
    wanted = render(replace(other, background="yellow"), 256)
    away = np.abs(made.astype(int) - wanted).max(axis=2)
    assert len(requests) == 1
    assert (away < 40).mean() > 0.9
    assert (np.abs(avatar.astype(int) - wanted).max(axis=2) < 40).mean() < 0.85
    assert (made[:20, :40] == avatar[:20, :40]).all()
    assert (made[-10:, 100:156] == avatar[-10:, 100:156]).all()


def test_without_a_lora_of_everyone_a_drawing_is_only_fused(
    reader: FaceReader, tools: Tools
) -> None:
    avatar = render(AVATAR, 256)
    someone = read_subject([avatar], reader, "zed")
    repaint = EngineRepaint(replace(SD, photographic=False), Recorder(), 1)
    given = PortraitJob(avatar, (someone,), tools)
    adapted = with_model(given, repaint)
    assert (adapted.job.tools, adapted.job.parameters) == (given.tools, given.parameters)
    assert "without a LoRA" in adapted.notes[0]


def test_a_template_is_drawn_until_it_has_a_face_for_everyone(
    reader: FaceReader, subject: Named, loras: dict[str, PersonLora], obama: Picture
) -> None:
    pictures = itertools.chain([np.zeros_like(obama)], itertools.repeat(obama))
    requests: list[ImageRequest] = []

    def draw(request: ImageRequest) -> Picture:
        requests.append(request)
        return next(pictures)

    repaint = EngineRepaint(SD, draw, 5, loras)
    people = [subject("obama")]
    made = draw_template("on a horse", PortraitParameters(), people, repaint, reader.detect)
    assert made is obama
    assert requests[0].seed != requests[1].seed
    with pytest.raises(PortraitError, match="on a horse") as caught:
        draw_template("on a horse", PortraitParameters(), people * 2, repaint, reader.detect)
    assert caught.value.fault is Fault.TEMPLATE_WITHOUT_FACE


def test_a_template_wears_a_little_of_the_person_and_most_of_the_scene(
    guided: BaseModel, subject: Named, loras: dict[str, PersonLora], sd: Components
) -> None:
    repaint = EngineRepaint(guided, Recorder(), 5, loras)
    scene = LoraUse(Path("scene"))
    parameters = PortraitParameters(t2i_prompt="on a horse")
    request = template_request("on a horse", parameters, [subject("obama")], repaint, scene)
    assert request.prompt == "on a horse, photo of zorblax person"
    assert [(use.path.name, use.weight) for use in request.loras] == [
        ("obama.safetensors", 0.25), ("scene", 0.8)
    ]  # fmt: skip
    only = PortraitParameters(ipa_control_only=True, ipa_image_path="x")
    alone = EngineRepaint(guided, Recorder(), 5)
    seen = template_request("on a horse", only, [subject("obama")], alone, None)
    check_request(seen, sd)
    assert [use.scale for use in seen.ip_adapters] == [0.3]


def test_sources_become_paths_of_the_machine_that_draws(tmp_path: Path) -> None:
    file = tmp_path / "obama.safetensors"
    file.touch()
    picture = np.zeros((64, 64, 3), np.uint8)
    request = ImageRequest(
        id="1", prompt="", width=64, height=64, num_inference_steps=4, guidance_scale=1,
        scheduler="DDIMScheduler", seed=0,
        loras=(LoraUse(Path("loras/1/2"), 0.5),),
        controls=(ControlUse(file, picture),),
        ip_adapters=(IPAdapterUse(file, tmp_path, picture),),
    )  # fmt: skip
    here = located(request, {"loras/1/2": file})
    assert here.loras == (LoraUse(file, 0.5),)
    assert here.controls == request.controls
    with pytest.raises(ModelError, match="no such file"):
        located(replace(request, loras=(), controls=(ControlUse(Path("/nowhere"), picture),)))
