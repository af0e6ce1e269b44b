"""LoRAs as requests name them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.settings import LimitSettings
from deployments.tasks.lora import LoraEntry, NamedLora, named_loras, tags, without_tags
from pipelines.errors import InvalidRequest

LIMITS = LimitSettings(max_loras=3, max_lora_weight=2)


def tag(name, weight=1.0, text=None):
    return NamedLora(name, weight=weight, text_weight=weight if text is None else text, tagged=True)


@pytest.mark.parametrize(
    ("prompt", "text", "found"),
    [
        ("a fox", "a fox", []),
        ("a fox <lora:ink:0.8>", "a fox ", [tag("ink", 0.8)]),
        ("<lora:ink>", "", [tag("ink")]),
        ("<lora:ink:-1:0.5>x", "x", [tag("ink", -1, 0.5)]),
        ("<lora: an old ink : .5 >", "", [tag("an old ink", 0.5)]),
        ("<lora:猫.v2 (x):1><lora:ink:1e-1>", "", [tag("猫.v2 (x)"), tag("ink", 0.1)]),
        ("(a <lora:ink:1>:1.2)", "(a :1.2)", [tag("ink")]),
        ("a < b, <lora> <hypernet:x:1> <lora:x", "a < b, <lora> <hypernet:x:1> <lora:x", []),
        ("<<lora:ink:1>>", "<>", [tag("ink")]),
    ],
)
def test_tags_are_taken_out_of_a_prompt(prompt, text, found):
    assert tags(prompt) == found
    assert without_tags(prompt) == text


@pytest.mark.parametrize(
    "bad",
    ["<lora:>", "<lora: :1>", "<lora:ink:>", "<lora:ink:strong>", "<lora:ink:nan>",
     "<lora:ink:1:1:1>", "<lora:ink:te=1>", "<lora:ink:1e999>"],
)  # fmt: skip
def test_a_tag_that_cannot_be_read_is_refused_as_it_stands(bad):
    with pytest.raises(InvalidRequest, match="<lora:name:weight>") as refused:
        tags(f"a fox {bad}")
    assert refused.value.field == "prompt"
    assert bad in str(refused.value)


@given(st.text(alphabet="<>lora:1.- ink", max_size=60))
def test_whatever_is_written_is_read_or_refused(text):
    try:
        found = tags(text)
    except InvalidRequest:
        return
    assert text.count("<lora:") >= len(found)
    assert all(lora.name and lora.tagged for lora in found)


def test_entries_come_before_tags_and_the_text_encoder_weighs_the_same_unless_told():
    entries = [LoraEntry(id="i", version=2, weight=0.5), LoraEntry(name="n", text_encoder_weight=0)]
    assert named_loras(entries, "<lora:t>", LIMITS) == [
        NamedLora(None, "i", 2, 0.5, 0.5),
        NamedLora("n", None, None, 1.0, 0.0),
        tag("t"),
    ]


@pytest.mark.parametrize(
    ("entries", "prompt", "message"),
    [
        ([{"name": "a"}] * 2, "<lora:b><lora:c>", "at most 3 LoRAs, given 4"),
        ([{"name": "a", "weight": 2.1}], "", "-2 to 2, given 2.1 for 'a'"),
        ([{"name": "a", "text_encoder_weight": -3}], "", "-2 to 2, given -3 for 'a'"),
        ([], "<lora:b:5>", "-2 to 2, given 5 for 'b'"),
    ],
)
def test_limits_hold_for_fields_and_tags_alike(entries, prompt, message):
    with pytest.raises(InvalidRequest, match=message) as refused:
        named_loras([LoraEntry(**entry) for entry in entries], prompt, LIMITS)
    assert refused.value.field == "lora"


@pytest.mark.parametrize(
    "entry",
    [{}, {"name": ""}, {"weight": 1}, {"name": "a", "scale": 1}, {"name": "a", "version": 0}],
)
def test_an_entry_names_its_lora_and_nothing_unknown(entry):
    with pytest.raises(ValidationError):
        LoraEntry(**entry)
