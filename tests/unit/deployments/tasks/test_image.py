"""Fields, the order they resolve to, and the job a Generator draws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.settings import Settings
from deployments.tasks.image import MAX_SEED, ImageFields, ImageJob
from pipelines.errors import InvalidRequest

SETTINGS = Settings()


def resolve(settings=SETTINGS, init_image=None, **fields):
    return ImageFields(**({"prompt": "a fox"} | fields)).resolve(
        settings, model="embedded", init_image=init_image
    )


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
    job = ImageJob.from_fields({"prompt": "x"}, SETTINGS, model="embedded", default_size=64)
    assert (job.width, job.num_inference_steps) == (64, 25)
    with pytest.raises(InvalidRequest, match="num_images must be 1 to 10, given 11"):
        ImageJob.from_fields(
            {"prompt": "x", "num_images": 11}, SETTINGS, model="embedded", default_size=64
        )
    with pytest.raises(ValidationError):
        ImageJob.from_fields({}, SETTINGS, model="embedded", default_size=64)


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


def test_parameters_draw_the_same_picture_again():
    job = ImageJob.from_fields(
        {"prompt": "a fox", "seed": 5, "num_images": 3}, SETTINGS, model="embedded", default_size=64
    )
    again = {key: value for key, value in job.parameters(2).items() if key != "model"}
    repeated = ImageJob.from_fields(again, SETTINGS, model="embedded", default_size=512)
    assert repeated.seed == 7
    assert repeated.parameters(0) == job.parameters(2)
    assert "strength" not in job.parameters(0)


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
