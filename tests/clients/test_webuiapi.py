"""The PyPI package `webuiapi`, a client of the web UI's API, against the application."""

from __future__ import annotations

import threading
import time

import pytest
from PIL import Image
from webuiapi import HiResUpscaler, Upscaler, WebUIApi

SMALL = {"prompt": "a fox", "width": 64, "height": 64, "steps": 3}


@pytest.fixture
def webui(served) -> WebUIApi:
    host, _, port = served.netloc.partition(":")
    return WebUIApi(host=host, port=int(port), username="user", password=served.key)


@pytest.fixture
def photo() -> Image.Image:
    image = Image.new("RGB", (96, 64), "teal")
    image.paste("white", (32, 16, 64, 48))
    return image


def test_txt2img_gives_pictures_info_and_parameters(webui):
    result = webui.txt2img(**SMALL, seed=100, batch_size=2, negative_prompt="blurry")
    assert [picture.getpixel((0, 0))[0] for picture in result.images] == [100, 101]
    assert result.info["all_seeds"] == [100, 101]
    assert result.info["sampler_name"] == "Euler a"
    assert result.parameters["prompt"] == "a fox"
    told = webui.png_info(result.image)
    assert "Seed: 100" in told.info


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "DDIM", "UniPC", "LMS"])
def test_txt2img_with_another_sampler(webui, sampler):
    result = webui.txt2img(**SMALL, sampler_name=sampler, scheduler="automatic")
    assert result.info["sampler_name"] == sampler


def test_img2img_with_and_without_a_mask(webui, photo):
    plain = webui.img2img(images=[photo], **SMALL, denoising_strength=0.5)
    assert plain.image.size == (64, 64)
    mask = Image.new("RGB", photo.size, "black")
    mask.paste("white", (32, 16, 64, 48))
    result = webui.img2img(
        images=[photo], mask_image=mask, **SMALL, inpainting_fill=1, inpaint_full_res=False
    )
    assert "Mask blur: 4" in result.info["infotexts"][0]


@pytest.mark.parametrize("upscaler", HiResUpscaler)
def test_hires_fix_with_every_upscaler_that_the_package_knows(webui, upscaler):
    names = {one["name"] for one in webui.get_upscalers()}
    names |= {one["name"] for one in webui.get_latent_upscale_modes()}
    body = SMALL | {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": upscaler}
    if upscaler.value not in names:
        with pytest.raises(RuntimeError, match=r"422.*hr_upscaler must be one of"):
            webui.txt2img(**body)
        return
    result = webui.txt2img(**body)
    assert result.image.size == (96, 96)
    assert result.parameters["hr_upscaler"] == upscaler.value


def test_styles_and_options_of_one_request(webui):
    over = {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": webui.util_get_current_model()}
    result = webui.txt2img(**SMALL, styles=["watercolour"], override_settings=over)
    assert result.info["prompt"].startswith("a fox, watercolour painting")
    assert result.info["clip_skip"] == 2


def test_extras_enlarge_one_picture_and_several(webui, photo):
    one = webui.extra_single_image(image=photo, upscaler_1=Upscaler.Lanczos, upscaling_resize=1.5)
    assert one.image.size == (144, 96)
    several = webui.extra_batch_images([photo, photo], upscaler_1=Upscaler.Nearest)
    assert [picture.size for picture in several.images] == [(192, 128)] * 2


def test_options_are_set_and_read(webui):
    webui.set_options({"send_seed": False})
    assert webui.get_options()["send_seed"] is False
    webui.set_options({"send_seed": True})


def test_a_model_is_chosen_by_the_nearest_name(webui):
    (name,) = webui.util_get_model_names()
    webui.util_set_model(name[:4])
    assert webui.util_get_current_model() == name


def test_lists(webui):
    assert "Euler a" in webui.util_get_sampler_names()
    assert "karras" in webui.util_get_scheduler_names()
    assert [one["name"] for one in webui.get_upscalers()][:3] == ["None", "Lanczos", "Nearest"]
    assert {one["name"] for one in webui.get_latent_upscale_modes()} >= {HiResUpscaler.Latent.value}
    assert webui.get_cmd_flags()["api"] is True
    assert webui.get_prompt_styles()
    assert webui.get_memory()["ram"]["total"] > 0
    assert webui.get_embeddings()["loaded"] == {}
    assert set(webui.get_scripts()) == {"txt2img", "img2img"}
    assert [one["scale"] for one in webui.get_realesrgan_models()] == [4, 4]
    empty = ("loras", "sd_vae", "hypernetworks", "face_restorers")
    for name in empty:
        assert getattr(webui, f"get_{name}")() == [], name
    webui.refresh_checkpoints()


def test_waiting_until_nothing_is_drawn_and_verbs_without_a_job(webui):
    started = time.monotonic()
    webui.util_wait_for_ready(check_interval=0.1)
    assert webui.interrupt() == {}
    assert webui.skip() is None
    assert webui.get_progress()["progress"] == 0
    assert time.monotonic() - started < 300


def test_calls_side_by_side_get_their_own_pictures(webui):
    found: dict[int, int] = {}

    def draw(seed: int) -> None:
        found[seed] = webui.txt2img(**SMALL, seed=seed).image.getpixel((0, 0))[0]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(10, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: seed for seed in range(10, 16)}


def test_what_cannot_be_honoured_is_an_error_that_says_so(webui):
    with pytest.raises(RuntimeError, match=r"422.*Script .*roop.* not found"):
        webui.txt2img(**SMALL, alwayson_scripts={"roop": {"args": []}})
    with pytest.raises(RuntimeError, match=r"404.*Model not found"):
        webui.interrogate(Image.new("RGB", (64, 64)))


def test_a_wrong_password_is_refused(served):
    host, _, port = served.netloc.partition(":")
    stranger = WebUIApi(host=host, port=int(port), username="user", password="wrong")
    with pytest.raises(RuntimeError, match="401"):
        stranger.txt2img(**SMALL)
