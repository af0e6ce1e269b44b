"""txt2img with a second pass, and pictures that tile."""

import asyncio
import base64
import io
import json

import pytest
from PIL import Image

from deployments.tasks.image import ImageJob
from pipelines.webui.upscale import LATENT_UPSCALERS

SMALL = {"prompt": "a fox", "steps": 3, "width": 64, "height": 64, "seed": 7}
HIRES = SMALL | {"enable_hr": True, "denoising_strength": 0.5}


def size(answer):
    return Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).size


def second(webui):
    (request,) = ImageJob.from_input(webui.order, default_size=64).requests("r")
    return request.hires


def infotext(answer):
    return json.loads(answer["info"])["infotexts"][0]


async def test_a_second_pass_is_twice_the_size_with_the_defaults_of_the_web_ui(webui):
    answer = await webui.draw("txt2img", **HIRES)
    hires = second(webui)
    assert size(answer) == (hires.width, hires.height) == (128, 128)
    assert (hires.upscaler, hires.strength, hires.num_inference_steps) == ("Latent", 0.5, 0)
    assert (hires.scheduler, hires.schedule, hires.prompt) == ("Euler", "Automatic", "a fox")
    told = "Size: 64x64, Model: embedded, Denoising strength: 0.5, RNG: CPU, Hires upscale: 2.0, "
    assert told + "Hires upscaler: Latent, Version" in infotext(answer)
    info = json.loads(answer["info"])
    assert (info["width"], info["denoising_strength"]) == (64, 0.5)


async def test_the_second_pass_is_reckoned_of_the_size_as_it_is_given(webui):
    answer = await webui.draw("txt2img", **HIRES | {"width": 70, "height": 68, "hr_scale": 1.75})
    assert (webui.order["width"], webui.order["height"]) == (64, 64)
    assert size(answer) == (120, 112)
    refused = await webui.refusal("txt2img", **HIRES, firstpass_image="x")
    assert refused == (422, "firstpass_image")


@pytest.mark.parametrize(
    ("given", "expected", "enlarged"),
    [
        ({"hr_scale": 1.3}, (80, 160), (80, 160)),
        ({"hr_resize_x": 100}, (96, 200), (100, 200)),
        ({"hr_resize_y": 200}, (96, 200), (100, 200)),
        ({"hr_resize_x": 160, "hr_resize_y": 160, "hr_scale": 99}, (160, 160), (160, 320)),
    ],
)
async def test_the_size_is_by_a_factor_or_a_side_or_both(webui, given, expected, enlarged):
    answer = await webui.draw("txt2img", **HIRES | {"height": 128} | given)
    assert size(answer) == expected
    assert second(webui).enlarged == enlarged


async def test_the_second_pass_has_words_of_its_own_and_tells_of_them(webui):
    own = {
        "hr_upscaler": "Lanczos",
        "hr_second_pass_steps": 5,
        "hr_sampler_name": "Euler a",
        "hr_scheduler": "karras",
        "hr_prompt": "an owl # by night",
        "hr_negative_prompt": "fur",
        "hr_resize_x": 96,
        "denoising_strength": 0,
    }
    answer = await webui.draw("txt2img", **HIRES | own, negative_prompt="snow")
    hires = second(webui)
    assert (hires.upscaler, hires.num_inference_steps, hires.strength) == ("Lanczos", 5, 0)
    assert (hires.scheduler, hires.schedule, hires.eta) == ("Euler a", "Karras", 1)
    assert (hires.prompt, hires.negative_prompt) == ("an owl ", "fur")
    text = infotext(answer)
    assert (
        "Denoising strength: 0.0, RNG: CPU, Hires resize: 96x0, Hires steps: 5, Hires upscaler: "
        "Lanczos, Hires sampler: Euler a, Hires schedule type: Karras, Hires prompt: an owl # by "
        "night, Hires negative prompt: fur" in text
    )
    first = webui.order["webui"]
    await webui.draw("txt2img", infotext=text)
    assert webui.order["webui"] == first


async def test_what_the_page_of_the_web_ui_sends_for_the_same_is_the_same(webui):
    await webui.draw("txt2img", **HIRES, sampler_name="DPM++ 2M SDE", scheduler="Karras")
    first = webui.order["webui"]
    same = {
        "hr_checkpoint_name": "Use same checkpoint",
        "hr_sampler_name": "Use same sampler",
        "hr_scheduler": "Use same scheduler",
    }
    await webui.draw("txt2img", **HIRES | same, sampler_name="DPM++ 2M SDE Karras")
    assert webui.order["webui"] == first
    await webui.draw("txt2img", **HIRES | {"hr_checkpoint_name": "embedded"})


async def test_styles_are_put_on_the_second_prompts_too(open_api, connect, tmp_path):
    file = tmp_path / "styles.csv"
    file.write_text('name,prompt,negative_prompt\nink,"ink of {prompt}",colour\n')
    webui = connect(await open_api(styles_file=file))
    await webui.draw("txt2img", **HIRES, styles=["ink"], hr_prompt="an owl")
    hires = second(webui)
    assert (hires.prompt, hires.negative_prompt) == ("ink of an owl", "colour")


async def test_both_passes_wear_the_loras_of_their_prompts(webui):
    await webui.api.lora("ink")
    body = HIRES | {"prompt": "a <lora:ink:0.5>fox"}
    await webui.draw("txt2img", **body)
    assert second(webui).prompt == "a fox"
    await webui.draw("txt2img", **body, hr_prompt="an owl<lora:ink:0.5>")
    assert second(webui).prompt == "an owl"
    for other, weights in (("an owl", []), ("an <lora:ink:0.7>owl", [0.7])):
        call, claimed = await webui.begin("txt2img", **body, hr_prompt=other)
        assert claimed.task.input["webui"]["hires"] is None
        assert [lora["weight"] for lora in claimed.task.input["loras"]] == [0.5]
        await webui.finish(claimed)
        while not (claims := await webui.claim()):
            await asyncio.sleep(0.02)
        order = claims[0].task.input
        assert (order["prompt"], order["resize_mode"]) == ("an owl", "latent")
        assert [lora["weight"] for lora in order["loras"]] == weights
        await webui.finish(claims[0])
        assert size((await call).json()) == (128, 128)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("denoising_strength", None),
        ("denoising_strength", 1.5),
        ("hr_scale", 0),
        ("hr_scale", -1),
        ("hr_scale", 1e308),
        ("hr_scale", 64),
        ("hr_scale", 0.5),
        ("hr_resize_x", -8),
        ("hr_resize_x", 10**20),
        ("hr_resize_x", 2048),
        ("hr_resize_y", 4096),
        ("width", 0),
        ("hr_second_pass_steps", -1),
        ("hr_second_pass_steps", 10_000),
        ("hr_upscaler", "string"),
        ("hr_sampler_name", "string"),
        ("hr_checkpoint_name", "string"),
        ("hr_prompt", "a" * 100_000),
    ],
)
async def test_what_the_second_pass_cannot_be_is_refused_by_name(webui, field, value):
    assert await webui.refusal("txt2img", **HIRES | {field: value}) == (422, field)


async def test_a_shape_too_far_from_the_first_is_refused(webui):
    body = HIRES | {"height": 2048, "hr_resize_x": 2048, "hr_resize_y": 64}
    answer = await webui.post("txt2img", **body)
    (fault,) = answer.json()["detail"]
    assert fault["loc"] == ["body", "hr_resize_x"]
    assert "2048 x 65536" in fault["msg"]


async def test_the_limit_of_pixels_is_that_of_the_result(webui):
    answer = await webui.post("txt2img", **HIRES | {"width": 512, "height": 512, "hr_scale": 2.1})
    (fault,) = answer.json()["detail"]
    assert fault["msg"] == (
        "hr_scale must be such that the picture has sides of 64 to 2048 pixels and at most "
        "1048576 in all, given '1072 x 1072'"
    )


async def test_progress_counts_the_second_pass_as_a_job(webui):
    call, claimed = await webui.begin("txt2img", **HIRES, batch_size=2)
    assert (await webui.get("progress"))["state"]["job_count"] == 4
    await webui.finish(claimed)
    assert (await call).status_code == 200


async def test_without_enable_hr_its_fields_mean_nothing(webui):
    placeholders = {"hr_upscaler": "string", "hr_scale": 0, "denoising_strength": 0}
    answer = await webui.draw("txt2img", **SMALL, **placeholders)
    assert second(webui) is None
    assert "Hires" not in infotext(answer)
    assert "Denoising" not in infotext(answer)


async def test_every_listed_latent_mode_and_upscaler_enlarges(webui):
    listed = [one["name"] for path in ("latent-upscale-modes", "upscalers")
              for one in await webui.get(path)]  # fmt: skip
    assert listed[:6] == list(LATENT_UPSCALERS)
    assert len(listed) > 6
    for name in listed:
        await webui.draw("txt2img", **HIRES, hr_upscaler=name)
        assert second(webui).upscaler == name


async def test_pictures_tile_where_the_field_or_else_the_option_says_so(webui):
    answer = await webui.draw("txt2img", **SMALL, tiling=True)
    assert webui.order["tiling"] is True
    assert "Tiling: True" in infotext(answer)
    await webui.draw("txt2img", infotext=infotext(answer))
    assert webui.order["tiling"] is True
    over = {"override_settings": {"tiling": True}}
    await webui.draw("txt2img", **SMALL, **over)
    assert webui.order["tiling"] is True
    await webui.draw("txt2img", **SMALL, **over, tiling=False)
    assert webui.order["tiling"] is False
