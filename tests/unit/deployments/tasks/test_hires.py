import json
from itertools import product

import pytest
from pydantic import ValidationError

from configs.settings import Settings
from deployments.tasks.image import ImageFields, ImageJob
from pipelines.errors import InvalidRequest
from pipelines.webui.upscale import hires_size

SETTINGS = Settings(_env_file=None)
SECOND = {"width": 1024, "height": 768, "strength": 0.5}


def job(size=(512, 512), init_image=None, webui=None, **hires):
    drawn = {"sampler": "Euler a", "hires": SECOND | hires}
    fields = ImageFields(prompt="", width=size[0], height=size[1], webui=drawn | (webui or {}))
    order = fields.resolve(SETTINGS, model="embedded", init_image=init_image)
    return ImageJob.from_input(json.loads(order.model_dump_json()), default_size=512)


def test_the_engine_is_asked_for_the_second_pass():
    words = {"upscaler": "Lanczos", "num_inference_steps": 7, "eta": 0.5, "prompt": "b"}
    (request,) = job(sampler="DPM++ 2M", scheduler="Karras", **words).requests("r")
    hires = request.hires
    assert (hires.width, hires.height, hires.strength) == (1024, 768, 0.5)
    assert hires.enlarged == (1024, 1024)
    assert (hires.scheduler, hires.schedule) == ("DPM++ 2M", "Karras")
    assert {name: getattr(hires, name) for name in words} == words
    assert hires.negative_prompt is None


def test_the_second_pass_is_told_in_the_metadata_and_asked_for_again_by_them():
    first = job()
    told = first.parameters(0)
    assert (told["width"], told["webui"]["hires"]["width"]) == (512, 1024)
    repeated = ImageFields.model_validate({k: v for k, v in told.items() if k != "model"})
    again = ImageJob.sized(repeated.resolve(SETTINGS, model="embedded"), 512)
    assert again.requests("r") == first.requests("r")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("width", {"width": 4096}),
        ("width", {"width": 1048, "height": 1048}),
        ("height", {"height": 770}),
        ("height", {"height": 8}),
        ("num_inference_steps", {"num_inference_steps": 10_000}),
        ("prompt", {"prompt": "a" * 100_000}),
        ("upscaler", {"upscaler": "x"}),
        ("width", {"size": (64, 2048), "width": 2048, "height": 64}),
    ],
)
def test_limits_hold_for_the_second_pass_too(field, changes):
    with pytest.raises(InvalidRequest) as refused:
        job(**changes)
    assert refused.value.field == f"webui.hires.{field}"
    assert str(refused.value).startswith(f"webui.hires.{field}")


def test_a_second_pass_over_an_initial_picture_is_refused():
    with pytest.raises(InvalidRequest, match=r"webui\.hires must be null with an init_image"):
        job(init_image=("inputs/x", (512, 512)))


@pytest.mark.parametrize("changes", [{"sampler": "x"}, {"scheduler": "x"}, {"strength": 1.5}])
def test_words_that_the_web_ui_does_not_know_are_refused(changes):
    with pytest.raises(ValidationError):
        job(**changes)


def test_enlarged_to_a_rounded_size_the_latents_are_those_of_the_size_asked_for():
    for width, height, scale in product((64, 72, 512), (128, 768, 1032), (1.05, 1.3, 1.5, 1.999)):
        asked = hires_size(width, height, scale=scale)
        rounded = hires_size(width, height, resize_x=asked[0] // 8 * 8, resize_y=asked[1] // 8 * 8)
        assert [side // 8 for side in rounded.enlarged] == [side // 8 for side in asked.enlarged]


def test_a_deployers_network_may_be_named_and_so_may_the_packages():
    assert job(upscaler="R-ESRGAN 4x+").requests("r")[0].hires.upscaler == "R-ESRGAN 4x+"
    settings = Settings(_env_file=None, upscalers={"4x-Sharp": "x.pth"})
    drawn = {"sampler": "Euler a", "hires": SECOND | {"upscaler": "4x-Sharp"}}
    fields = ImageFields(prompt="", webui=drawn)
    assert fields.resolve(settings, model="embedded").webui.hires.upscaler == "4x-Sharp"


def test_faces_are_restored_only_by_what_the_settings_name():
    fields = ImageFields(prompt="", webui={"sampler": "Euler a", "restore_faces": "GFPGAN"})
    with pytest.raises(InvalidRequest, match=r"setting face_restorers names, given 'GFPGAN'"):
        fields.resolve(SETTINGS, model="embedded")
    settings = Settings(_env_file=None, face_restorers={"GFPGAN": "x.pth"})
    order = fields.resolve(settings, model="embedded")
    assert order.webui.restore_faces == "GFPGAN"
    assert ImageJob.sized(order, 64).requests("r")[0].scheduler == "Euler a"
