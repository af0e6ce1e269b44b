"""What a portrait may be told."""

import pytest

from pipelines.errors import InvalidRequest
from pipelines.portrait.parameters import SD15, SDXL, PortraitParameters


def test_each_model_has_the_manuals_defaults() -> None:
    assert (SD15.more_like_me, SDXL.more_like_me) == (0.5, 0.6)
    assert (SDXL.first_diffusion_steps, SDXL.second_diffusion_steps) == (50, 30)
    assert SD15.photo_enhancement_method == "photo_fix"
    assert (SD15.lora_weights, SD15.first_denoising_strength, SD15.sharp_ratio) == (0.9, 0.45, 0.15)
    assert SD15.crop_face_preprocess
    assert not SD15.background_restore


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lora_weights", 0.4),
        ("more_like_me", 1.01),
        ("sharp_ratio", float("nan")),
        ("first_diffusion_steps", 19),
        ("second_diffusion_steps", 51),
        ("ipa_weight", -0.1),
    ],
)
def test_a_number_out_of_range_names_field_limit_and_value(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=rf"{name} must be in .* given {value}") as caught:
        PortraitParameters.of({name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("more_like_me", "0.5"),
        ("more_like_me", 10**400),
        ("first_diffusion_steps", 10**400),
        ("more_like_me", True),
        ("background_restore", 1),
        ("photo_enhancement_method", "magic"),
        ("style_name", 3),
        ("first_diffusion_steps", 30.5),
        ("first_diffusion_steps", float("inf")),
    ],
)
def test_a_value_of_another_kind_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=name):
        PortraitParameters.of({name: value})


def test_whole_numbers_pass_as_floats_and_the_other_way_round() -> None:
    made = PortraitParameters.of({"first_denoising_strength": 1, "first_diffusion_steps": 30.0})
    assert (made.first_denoising_strength, made.first_diffusion_steps) == (1.0, 30)


def test_null_is_the_models_default_and_unknown_keys_are_left_alone() -> None:
    given = {"more_like_me": None, "scheduler": "x"}
    assert PortraitParameters.of(given) == SD15
    assert PortraitParameters.of(given, sdxl=True) == SDXL


def test_reference_only_needs_its_picture() -> None:
    with pytest.raises(InvalidRequest, match="ipa_image_path"):
        PortraitParameters.of({"ipa_control_only": True})
