"""img2img and inpainting: pictures that are sent, and how they come to the worker."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from deployments.tasks.image import ImageJob

SMALL = {"prompt": "a fox", "steps": 3, "width": 64, "height": 64}


def file(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def photo(width=96, height=64):
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def mask(width=96, height=64, box=(16, 16, 40, 40), mode="L"):
    image = Image.new(mode, (width, height), 0)
    image.paste(255 if mode == "L" else "white", box)
    return image


async def stored(webui, key):
    return Image.open(io.BytesIO(await webui.api.services.objects.get(webui.order[key])))


async def test_a_picture_is_brought_to_the_size_asked_for_by_the_resize_mode(webui):
    for mode, word in enumerate(["stretch", "crop", "fill", "latent"]):
        body = {"init_images": [file(photo())], "resize_mode": mode, "denoising_strength": 0.4}
        answer = await webui.draw("img2img", **SMALL, **body)
        order = webui.order
        assert (order["width"], order["height"], order["resize_mode"]) == (64, 64, word)
        assert order["strength"] == 0.4
        assert answer["parameters"]["init_images"] is None
        assert answer["parameters"]["denoising_strength"] == 0.4


async def test_noise_and_steps_of_a_picture_are_a_field_s_or_an_option_s(webui):
    over = {"img2img_fix_steps": True, "initial_noise_multiplier": 0.5}
    body = SMALL | {"init_images": [file(photo())]}
    await webui.draw("img2img", **body, override_settings=over)
    drawn = webui.order["webui"]
    assert (drawn["exact_steps"], drawn["noise_multiplier"]) == (True, 0.5)
    await webui.draw("img2img", **body, override_settings=over, initial_noise_multiplier=1)
    assert webui.order["webui"]["noise_multiplier"] == 1


async def test_a_mask_that_is_not_rounded_is_grey_in_the_latents_too(webui):
    soft = Image.merge("RGBA", (*photo().split(), Image.new("L", (96, 64), 100)))
    body = SMALL | {"init_images": [file(photo())], "mask": file(soft), "mask_blur": 0}
    await webui.draw("img2img", **body, mask_round=False)
    (request,) = ImageJob.from_input(webui.order, default_size=64).requests("r")
    assert request.mask_round is False
    assert (await stored(webui, "mask_image_key")).getextrema() == (100, 100)
    await webui.draw("img2img", **body)
    assert (await stored(webui, "mask_image_key")).getextrema() == (0, 0)


async def test_data_urls_are_taken_and_sent_back_if_asked_for(webui):
    url = "data:image/png;base64," + file(photo())
    answer = await webui.draw("img2img", **SMALL, init_images=[url], include_init_images=True)
    assert answer["parameters"]["init_images"] == [url]


@pytest.mark.parametrize("kind", ["brightness", "opacity"])
async def test_a_mask_is_its_opacity_if_it_has_any_else_its_brightness(webui, kind):
    sent = mask()
    if kind == "opacity":
        sent = Image.merge("RGBA", (*photo().split(), mask()))
    await webui.draw("img2img", **SMALL, init_images=[file(photo())], mask=file(sent))
    assert (await stored(webui, "mask_image_key")).tobytes() == mask().tobytes()
    given = {"mask": file(sent), "inpainting_mask_invert": 1}
    await webui.draw("img2img", **SMALL, init_images=[file(photo())], **given)
    inverted = await stored(webui, "mask_image_key")
    assert inverted.getpixel((0, 0)) == 255
    assert inverted.getpixel((20, 20)) == 0


async def test_the_defaults_of_masks_are_those_of_the_web_ui(webui):
    given = {"init_images": [file(photo())], "mask": file(mask())}
    await webui.draw("img2img", **SMALL, **given)
    order = webui.order
    assert order["mask_blur"] == [4, 4]
    assert (order["masked_padding"], order["masked_content"]) == (0, "fill")
    for fill, word in enumerate(["fill", "original", "noise", "nothing"]):
        await webui.draw("img2img", **SMALL, **given, inpainting_fill=fill)
        assert webui.order["masked_content"] == word
    more = {"inpaint_full_res": False, "inpainting_fill": 1, "mask_blur": None, "mask_blur_x": 2}
    await webui.draw("img2img", **SMALL, **given, **more)
    order = webui.order
    assert order["mask_blur"] == [2, 4]
    assert order["webui"]["mask_round"] is True
    assert (order["masked_padding"], order["masked_content"]) == (None, "original")


@pytest.mark.parametrize("sent", ["", "string", "data:image/png;base64,AAAA", "AAAA"])
async def test_what_is_no_picture_is_told_as_the_web_ui_tells_it(webui, sent):
    assert await webui.refusal("img2img", init_images=[sent]) == (422, "Invalid encoded image")
    given = {"init_images": [file(photo())], "mask": sent or "="}
    assert await webui.refusal("img2img", **given) == (422, "Invalid encoded image")


async def test_no_picture_and_too_many_are_refused(webui):
    assert await webui.refusal("img2img") == (404, "Init image not found")
    assert await webui.refusal("img2img", init_images=[]) == (422, "init_images")
    two = {"init_images": [file(photo())] * 2, "n_iter": 101}
    assert await webui.refusal("img2img", **SMALL, **two) == (422, "init_images")


async def test_addresses_of_this_network_are_not_fetched(webui):
    status, told = await webui.refusal("img2img", init_images=["http://127.0.0.1:9/a.png"])
    assert status == 422
    assert told.startswith("Request to local resource not allowed")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resize_mode", 4),
        ("inpainting_fill", 4),
        ("initial_noise_multiplier", -1),
        ("denoising_strength", 1.5),
        ("latent_mask", "x"),
        ("inpaint_full_res_padding", 9999),
        ("mask_blur", 999),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(webui, field, value):
    given = {"init_images": [file(photo())], "mask": file(mask())}
    status, told = await webui.refusal("img2img", **SMALL, **given, **{field: value})
    assert (status, told) == (422, field)


async def test_a_latent_mask_without_a_mask_means_nothing(webui):
    await webui.draw("img2img", **SMALL, init_images=[file(photo())], latent_mask=file(mask()))
    assert webui.order["mask_image_key"] is None


async def test_a_picture_is_as_large_as_its_way_through_the_vae_or_its_answer_allows(
    open_api, connect
):
    webui = connect(await open_api(limits={"max_pixels": 96 * 64, "max_input_pixels": 200_000}))
    large = file(photo(128, 96))
    refused = await webui.refusal("img2img", **SMALL, init_images=[large], resize_mode=3)
    assert refused == (422, "init_images")
    many = {"init_images": [large], "mask": file(mask(128, 96)), "batch_size": 10}
    widest = file(photo(256, 128))
    assert await webui.refusal("img2img", **SMALL, **many | {"init_images": [widest]}) == (
        422,
        "init_images",
    )


async def test_a_training_is_no_job_of_this_dialect(webui):
    training = {"name": "ink", "pictures": [{"image": f"data:image/png;base64,{file(photo())}"}]}
    made = await webui.api.http.post("/api/v1/loras", json=training)
    task_id = made.json()["task_id"]
    assert (await webui.get("progress", id_task=task_id))["progress"] == 0
    await webui.api.http.post(f"/sdapi/v1/interrupt?id_task={task_id}")
    task = (await webui.api.http.get(f"/api/v1/tasks/{task_id}")).json()
    assert task["status"] == "pending"
