"""Bodies as no SDK should send them: each gets a row of the manual, never another answer."""

import json
from urllib.parse import quote

import numpy as np
import pytest

from deployments.api import photos as sent_photos
from pipelines.images import encode_image
from tests.contract.api.pai.conftest import created, told
from tests.unit.pipelines.portrait.pictures import photo, photo_file

INVALID = "462|error|Invalid input data. Please check the input dict."
UNKNOWN_PERSON = "462|error|Prompts get error. Please check the model_id."
NO_TEMPLATE = "462|error|Image not provided. Please check the template_image."
VERBS = ("check", "train", "create", "sd")

NO_OBJECTS = {
    "nothing": b"",
    "a blank": b" \n",
    "null": b"null",
    "true": b"true",
    "a number": b"5",
    "a text": b'"images"',
    "a list": b"[]",
    "a list of objects": b'[{"images": []}]',
    "half an object": b'{"images": [',
    "two objects": b"{}{}",
    "a form": b"images=a&images=b",
    "XML": b"<images/>",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"images": []}'.encode("utf-16"),
    "Latin-1": '{"model_name": "é"}'.encode("latin-1"),
    "gzip": b"\x1f\x8b\x08\x00",
    "zeros": bytes(100),
    "NaN": b'{"configure": {"more_like_me": NaN}}',
    "comments": b"{/* */}",
    "a key twice": b'{"images": [], "images": []}',
    "deep lists": b'{"configure": {"x": ' + b"[" * 900 + b"]" * 900 + b"}}",
    "deep objects": b'{"a":' * 900 + b"1" + b"}" * 900,
    "a long number": b'{"configure": {"more_like_me": ' + b"9" * 5000 + b"}}",
    "half a surrogate pair": b'{"model_name": "\\ud83d"}',
    "a million values": b'{"images": [' + b"0," * 200_000 + b"0]}",
}


@pytest.mark.parametrize("body", NO_OBJECTS.values(), ids=NO_OBJECTS)
async def test_what_is_no_json_object_is_invalid_input_everywhere(pai, body):
    for verb in VERBS:
        answer = await pai.post(f"/api/v1/aigc_images/{verb}", body)
        assert told(answer) == INVALID, verb
        assert answer.headers["x-error-detail"]


FIELDS = ("images", "model_name", "configure", "model_id", "model_ids", "template_image")
VALUES = [
    5,
    0.5,
    True,
    "x",
    [],
    {},
    [[]],
    [{}],
    [None],
    {"a": 1},
    "\x00",
    "人像" * 500,
    "../..",
    None,
]


@pytest.mark.parametrize("field", FIELDS)
async def test_a_field_of_any_other_kind_gets_a_row_of_the_manual(pai, field):
    for value in VALUES:
        for verb in ("train", "create"):
            answer = await pai.aigc(verb, **{field: value})
            status, code, message = told(answer).split("|")
            assert (status, code) in (("462", "error"), ("404", "PARAMETER_ERROR")), (verb, value)
            assert message.endswith((".", "not found")), message


ODD = {
    "a number for an address": {"ipa_image_path": 5},
    "a list for an address": {"ipa_control": True, "ipa_image_path": ["https://x/1.jpg"]},
    "an object for an address": {"ipa_control_only": True, "ipa_image_path": {"url": "x"}},
    "no address": {"ipa_control_only": True, "ipa_image_path": " "},
    "a text for a number": {"more_like_me": "0.5"},
    "a list for a number": {"more_like_me": []},
    "true for a number": {"sharp_ratio": True},
    "more than all": {"more_like_me": 1.0001},
    "less than nothing": {"makeup_transfer_ratio": -1e-9},
    "too weak": {"lora_weights": 0.49},
    "too few steps": {"first_diffusion_steps": 19},
    "too many steps": {"second_diffusion_steps": 51},
    "half a step": {"first_diffusion_steps": 30.5},
    "a huge number": {"ipa_weight": 10**400},
    "a number for a flag": {"crop_face_preprocess": 1},
    "a text for a flag": {"background_restore": "False"},
    "another method": {"photo_enhancement_method": "photo_Fix"},
    "another style": {"style_name": "Cubist"},
    "a number for a prompt": {"t2i_prompt": 5},
    "a list for a prompt": {"t2i_prompt": ["a"]},
    "a number for a scene": {"scene_id": 5},
}


@pytest.mark.parametrize("configure", ODD.values(), ids=ODD)
async def test_a_parameter_that_cannot_be_is_invalid_input(pai, configure):
    lora = await pai.learned()
    body = {"model_id": lora.name, "template_image": pai.url("ardern"), "configure": configure}
    answer = await pai.aigc("create", **body)
    assert told(answer) == INVALID
    assert answer.headers["x-error-detail"]


async def test_a_number_beyond_any_is_invalid_input(pai):
    lora = await pai.learned()
    body = {"model_id": lora.name, "template_image": pai.url("ardern"), "configure": {"x": 5}}
    raw = json.dumps(body).replace('"x": 5', '"more_like_me": 1e999')
    assert told(await pai.post("/api/v1/aigc_images/create", raw.encode())) == INVALID


async def test_what_portraits_do_not_know_is_left_out_whatever_it_is(pai):
    lora = await pai.learned()
    unknown = {
        "instantid": True, "": None, "nested": [[[[[{"a": 1}]]]]], "large": 10**30,
        "人像": "\x00", "ipa_image_path": "http://127.0.0.1:1/nobody-asks-for-it.jpg",
    }  # fmt: skip
    empty = {"t2i_prompt": "  ", "scene_id": "", "style_name": "", "sharp_ratio": None}
    order, answer = await created(
        pai,
        model_id=lora.name,
        template_image=pai.url("ardern"),
        configure=unknown | empty | {"more_like_me": 1},
    )
    assert answer.status_code == 200, answer.text
    assert order.parameters == {"more_like_me": 1}
    assert order.template is not None


async def test_who_and_what_may_be_missing_in_every_way(pai):
    lora, template = await pai.learned(), pai.url("ardern")
    for nobody in ("", None, [], {}, 0, False, " "):
        answer = await pai.aigc("create", model_id=nobody, template_image=template)
        assert told(answer) == UNKNOWN_PERSON, nobody
        answer = await pai.aigc("create", model_id=lora.name, template_image=nobody)
        assert told(answer) == NO_TEMPLATE, nobody


async def test_twelve_people_stand_in_one_template(pai):
    lora = await pai.learned()
    one = photo("ardern")[::2, ::2]
    group = np.ascontiguousarray(np.tile(one, (3, 4, 1)))
    address = pai.photos.url(encode_image(group, "png")[0])
    order, answer = await created(pai, model_ids=[lora.name] * 12, template_image=address)
    assert answer.status_code == 200, answer.text
    assert len({person.name for person in order.people}) == 12
    answer = await pai.aigc("create", model_ids=[lora.name] * 11, template_image=address)
    assert told(answer).startswith("469|error|Please confirm if the number of faces")


@pytest.mark.parametrize(
    "name", ["人像 1.jpg", "{a|b}.jpg", "50%25.jpg"], ids=["script", "odd", "as is"]
)
async def test_an_address_of_any_characters_is_fetched_and_told_as_it_was_sent(pai, name):
    wire = pai.photos.url(photo_file("obama"), quote(name, safe="%"))
    url = wire.replace(quote(name, safe="%"), name)
    found = (await pai.aigc("check", images=[url])).json()["data"]
    assert [(each["code"], each["url"]) for each in found["check_results"]] == [(1, url)]


async def test_a_photo_that_never_comes_does_not_keep_the_others_from_their_verdicts(
    pai, monkeypatch
):
    monkeypatch.setattr(sent_photos, "FETCH_ALL_S", 4.0)
    answer = await pai.aigc("check", images=[pai.photos.silent(), pai.url("obama")])
    assert [each["code"] for each in answer.json()["data"]["check_results"]] == [2, 1]
