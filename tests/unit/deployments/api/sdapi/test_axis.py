"""What a plot may vary."""

import pytest

from configs.settings import Settings
from deployments.api.sdapi.schema import Txt2ImgBody
from deployments.api.sdapi.scripts.axis import AXES, LISTED, axis_of
from pipelines.errors import InvalidRequest

BODY = Txt2ImgBody(prompt="a red fox, a red sky", negative_prompt="blur, fox")


@pytest.mark.parametrize("img2img", [False, True])
def test_an_axis_is_found_by_its_name_in_any_case_and_by_its_place(img2img):
    for place, name in enumerate(LISTED[img2img]):
        if name in AXES:
            assert axis_of(place, img2img=img2img) is AXES[name]
            assert axis_of(str(place), img2img=img2img) is AXES[name]
            assert axis_of(name.upper(), img2img=img2img) is AXES[name]


def test_an_axis_of_the_other_kind_is_none_here():
    for name, img2img in (("Hires steps", True), ("VAE", False), ("999", False), ("-1", True)):
        with pytest.raises(InvalidRequest):
            axis_of(name, img2img=img2img)


def put(name, *words):
    axis = AXES[name]
    values = axis.read(words, BODY, Settings())
    return [axis.put(BODY, value) for value in values], [axis.title(value) for value in values]


def test_the_first_word_is_replaced_by_each_in_both_prompts():
    fields, titles = put("Prompt S/R", "fox", "owl")
    assert titles == ["fox", "owl"]
    assert fields[0] == {"prompt": BODY.prompt, "negative_prompt": BODY.negative_prompt}
    assert fields[1] == {"prompt": "a red owl, a red sky", "negative_prompt": "blur, owl"}


def test_words_take_each_other_s_places_and_the_rest_stays():
    fields, titles = put("Prompt order", "fox", "sky")
    assert [each["prompt"] for each in fields] == [BODY.prompt, "a red sky, a red fox"]
    assert titles == ["fox, sky", "sky, fox"]


def test_options_are_added_to_those_of_the_request():
    axis = AXES["Clip skip"]
    body = BODY.model_copy(update={"override_settings": {"tiling": True}})
    assert axis.put(body, 2) == {
        "override_settings": {"tiling": True, "CLIP_stop_at_last_layers": 2}
    }


def test_titles_tell_the_axis_of_a_number_and_a_word_alone():
    assert put("CFG Scale", "7.5")[1] == ["CFG Scale: 7.5"]
    assert put("Sampler", "euler A")[1] == ["Euler a"]
    assert put("Size", "512X768")[1] == ["512x768"]
    assert put("Nothing")[1] == [""]
