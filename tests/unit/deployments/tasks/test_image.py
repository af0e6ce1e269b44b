"""Fields, the order they resolve to, and the job a Generator draws."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.settings import Settings
from deployments.tasks.image import MAX_SEED, ImageFields, ImageJob
from deployments.tasks.lora import OrderedLora
from pipelines.engine.request import LoraUse
from pipelines.errors import InvalidRequest

SETTINGS = Settings()


def resolve(settings=SETTINGS, init_image=None, **fields):
    return ImageFields(**({"prompt": "a fox"} | fields)).resolve(
        settings, model="embedded", init_image=init_image
    )


def direct(default_size=64, **fields):
    order = ImageFields.model_validate(fields).resolve(SETTINGS, model="embedded")
    return ImageJob.sized(order, default_size)


def test_what_was_given_is_kept():
    fields = {
        "prompt": "a fox",
        "negative_prompt": "blurry",
        "width": 256,
        "height": 128,
        "num_images": 3,
        "num_inference_steps": 7,
        "guidance_scale": 3.5,
        "scheduler": "DDIMScheduler",
        "seed": 5,
        "output_format": "webp",
    }
    assert fields.items() <= resolve(**fields).model_dump().items()


def test_a_stored_order_is_the_same_after_json():
    order = resolve(width=64, height=64)
    job = ImageJob.from_input(order.model_dump(mode="json"), default_size=512)
    assert job.model_dump() == order.model_dump()


def test_an_open_size_becomes_the_model_s_own():
    job = ImageJob.from_input(resolve(width=256).model_dump(mode="json"), default_size=128)
    assert (job.width, job.height) == (256, 128)


def test_a_direct_call_has_the_same_fields_and_refusals():
    job = direct(prompt="x")
    assert (job.width, job.num_inference_steps) == (64, 25)
    with pytest.raises(InvalidRequest, match="num_images must be 1 to 10, given 11"):
        direct(prompt="x", num_images=11)
    with pytest.raises(ValidationError):
        direct()


def test_the_last_picture_s_seed_is_still_a_seed():
    assert resolve(seed=MAX_SEED).seed == MAX_SEED
    assert resolve(seed=MAX_SEED - 9, num_images=10).seed == MAX_SEED - 9
    with pytest.raises(InvalidRequest) as refused:
        resolve(seed=MAX_SEED - 8, num_images=10)
    assert refused.value.field == "seed"


def test_a_random_seed_fits_a_javascript_number():
    assert all(0 <= resolve().seed < 2**53 for _ in range(50))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 65),
        ("height", 2056),
        ("width", 56),
        ("num_images", 0),
        ("num_inference_steps", 151),
        ("guidance_scale", 30.5),
        ("strength", 1.5),
        ("seed", -1),
        ("prompt", "x" * 4001),
        ("negative_prompt", "x" * 4001),
    ],
)
def test_a_refusal_names_its_field(field, value):
    with pytest.raises(InvalidRequest) as refused:
        resolve(**{field: value})
    assert refused.value.field == field
    assert field in str(refused.value)


def test_a_schedule_is_judged_by_the_sampler_that_will_take_it():
    assert resolve(scheduler="EulerDiscreteScheduler", schedule="karras").schedule == "karras"
    ddim = SETTINGS.models["embedded"].model_copy(update={"scheduler": "DDIMScheduler"})
    settings = SETTINGS.model_copy(update={"models": {"embedded": ddim}})
    for fields in ({}, {"scheduler": "DDIMScheduler"}):
        with pytest.raises(InvalidRequest) as refused:
            resolve(settings, schedule="karras", **fields)
        assert refused.value.field == "schedule"
        assert "default, sgm_uniform for DDIMScheduler, given karras" in str(refused.value)


def test_parameters_draw_the_same_picture_again():
    job = direct(prompt="a fox", seed=5, num_images=3)
    again = {key: value for key, value in job.parameters(2).items() if key != "model"}
    repeated = direct(512, **again)
    assert repeated.seed == 7
    assert repeated.parameters(0) == job.parameters(2)
    assert not {"strength", "lora"} & job.parameters(0).keys()


def test_parameters_name_each_lora_once_where_the_request_did():
    prompt = "a <lora:tag:0.5> fox"
    names = [("field", False), ("other", False), ("tag", True)]
    loras = tuple(
        OrderedLora(id=f"id of {name}", name=name, version=2, key="k", sha256="s", tagged=tagged,
                    weight=0.5, text_weight=1.0 if name == "other" else 0.5)
        for name, tagged in names
    )  # fmt: skip
    fields = ImageFields(prompt=prompt, lora=[{"name": "field"}, {"name": "other"}])
    order = fields.resolve(SETTINGS, model="embedded").wearing(loras)
    told = ImageJob.sized(order, 64).parameters(0)
    assert told["prompt"] == prompt
    first = {"id": "id of field", "name": "field", "version": 2, "weight": 0.5}
    second = first | {"id": "id of other", "name": "other", "text_encoder_weight": 1.0}
    assert told["lora"] == [first, second]
    repeated = ImageFields.model_validate({"prompt": prompt, "lora": told["lora"]})
    named = repeated.named_loras(SETTINGS.limits)
    assert [(lora.id, lora.name, lora.weight, lora.text_weight) for lora in named] == [
        ("id of field", "field", 0.5, 0.5),
        ("id of other", "other", 0.5, 1.0),
        (None, "tag", 0.5, 0.5),
    ]


@pytest.mark.parametrize("weighting", [False, True])
def test_the_engine_gets_the_prompt_without_its_tags(weighting):
    fields = ImageFields(prompt="(a <lora:b:0.5>fox:1.2)<lora:c>", prompt_weighting=weighting)
    job = ImageJob.sized(fields.resolve(SETTINGS, model="embedded"), 64)
    uses = (LoraUse(Path("b")), LoraUse(Path("c")))
    (request,) = job.requests("r", loras=uses)
    assert request.prompt == "(a fox:1.2)"
    assert request.loras == uses
    assert job.prompt == fields.prompt


def test_parameters_of_a_changed_picture_tell_its_strength():
    order = resolve(init_image=("inputs/x", (64, 64)), strength=0.4)
    job = ImageJob.from_input(order.model_dump(mode="json"), default_size=512)
    assert job.parameters(0)["strength"] == 0.4


@given(width=st.integers(1, 8000), height=st.integers(1, 8000))
def test_the_size_of_an_initial_picture_is_brought_under_the_limits_or_refused(width, height):
    limits = SETTINGS.limits
    try:
        order = resolve(init_image=("inputs/x", (width, height)))
    except InvalidRequest:
        long = max(width, height)
        scale = min(limits.max_side_px / long, (limits.max_pixels / (width * height)) ** 0.5, 1)
        assert min(width, height) * scale < 64 + 1e-6
        return
    assert order.width % 8 == order.height % 8 == 0
    assert 64 <= order.width <= min(width, limits.max_side_px)
    assert 64 <= order.height <= min(height, limits.max_side_px)
    assert order.width * order.height <= limits.max_pixels
