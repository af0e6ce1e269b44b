"""Bodies that guides to the web UI's API show, sent as one would copy them: Swagger's placeholders
are among them. The last tests draw with a real, tiny model.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

_COMMON = """
  "prompt": "", "styles": ["string"], "seed": -1, "subseed": -1, "subseed_strength": 0,
  "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": "string", "batch_size": 1,
  "n_iter": 1, "steps": 50, "cfg_scale": 7, "width": 512, "height": 512, "restore_faces": false,
  "tiling": false, "negative_prompt": "string", "eta": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0,
  "s_noise": 1, "override_settings": {}, "override_settings_restore_afterwards": true,
  "script_args": [], "sampler_index": "Euler", "script_name": "string"
"""
_LATER = """
  "do_not_save_samples": false, "do_not_save_grid": false, "s_min_uncond": 0, "send_images": true,
  "save_images": false, "alwayson_scripts": {}
"""
_HIRES = """
  "enable_hr": false, "denoising_strength": 0, "firstphase_width": 0, "firstphase_height": 0,
  "hr_scale": 2, "hr_upscaler": "string", "hr_second_pass_steps": 0, "hr_resize_x": 0,
  "hr_resize_y": 0
"""
_PICTURE = """
  "init_images": ["string"], "resize_mode": 0, "denoising_strength": 0.75, "image_cfg_scale": 0,
  "mask": "string", "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": true,
  "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "initial_noise_multiplier": 0,
  "include_init_images": false
"""


def body(*parts: str) -> dict[str, Any]:
    return json.loads("{" + ",".join(parts) + "}")


TXT2IMG = {
    "of mid 2023": body(_HIRES, _COMMON),
    "with every comment": body(_HIRES, _COMMON, _LATER),
}
IMG2IMG = {
    "of mid 2023": body(_PICTURE, _COMMON),
    "with every comment": body(_PICTURE, _COMMON, _LATER),
}
SMALL = {"prompt": "a fox", "steps": 4, "width": 64, "height": 64, "seed": 7}


@pytest.fixture
def webui(served) -> Iterator[httpx.Client]:
    with client_of(served) as client:
        yield client


@pytest.fixture
def drawing(drawn) -> Iterator[httpx.Client]:
    with client_of(drawn) as client:
        yield client


def client_of(served: Any) -> httpx.Client:
    url = f"{served.url}/sdapi/v1/"
    return httpx.Client(base_url=url, auth=("user", served.key), timeout=600)


def file(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def posted(client: httpx.Client, path: str, given: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(client: httpx.Client, path: str, given: dict[str, Any]) -> str:
    answer = client.post(path, json=given)
    assert answer.status_code == 422, answer.text
    return answer.json()["detail"]


def pixels(answer: dict[str, Any]) -> np.ndarray:
    (text,) = answer["images"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("guide", TXT2IMG)
def test_txt2img_of_a_guide_draws_once_its_script_is_left_out(webui, guide):
    given = TXT2IMG[guide]
    assert refusal(webui, "txt2img", given) == "Script 'string' not found"
    answer = posted(webui, "txt2img", given | {"script_name": None})
    assert pixels(answer).shape == (512, 512, 3)
    info = json.loads(answer["info"])
    assert (info["sampler_name"], info["steps"]) == ("DPM++ 2M", 50)
    assert info["negative_prompt"] == "string"
    assert answer["parameters"]["styles"] == ["string"]


@pytest.mark.parametrize("guide", TXT2IMG)
def test_hires_fix_of_a_guide_needs_an_upscaler_that_is_here(webui, guide):
    given = TXT2IMG[guide] | {"script_name": None, "enable_hr": True}
    (fault,) = refusal(webui, "txt2img", given)
    assert fault["loc"] == ["body", "hr_upscaler"]
    assert "must be one of Latent, " in fault["msg"]
    assert "Lanczos" in fault["msg"]
    answer = posted(webui, "txt2img", given | {"hr_upscaler": "Latent"})
    assert pixels(answer).shape == (1024, 1024, 3)
    assert json.loads(answer["info"])["denoising_strength"] == 0


@pytest.mark.parametrize("guide", IMG2IMG)
def test_img2img_of_a_guide_draws_once_its_placeholders_are_pictures(webui, guide):
    given = IMG2IMG[guide]
    assert refusal(webui, "img2img", given) == "Script 'string' not found"
    given = given | {"script_name": None}
    assert refusal(webui, "img2img", given) == "Invalid encoded image"
    given |= {"init_images": [file(Image.new("RGB", (96, 64), "teal"))]}
    assert refusal(webui, "img2img", given) == "Invalid encoded image"
    answer = posted(webui, "img2img", given | {"mask": None})
    assert pixels(answer).shape == (512, 512, 3)
    assert "Noise multiplier: 0" in json.loads(answer["info"])["infotexts"][0]
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (16, 16, 40, 40))
    answer = posted(webui, "img2img", given | {"mask": file(mask)})
    assert "Inpaint area: Only masked" in json.loads(answer["info"])["infotexts"][0]
    assert (answer["parameters"]["mask"], answer["parameters"]["init_images"]) == (None, None)


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos", "R-ESRGAN 4x+ Anime6B"])
@pytest.mark.parametrize("strength", [0, 0.5])
def test_hires_fix_draws_at_the_larger_size(drawing, upscaler, strength):
    first = SMALL | {"sampler_name": "Euler a"}
    hires = {"enable_hr": True, "denoising_strength": strength, "hr_upscaler": upscaler}
    answer = posted(drawing, "txt2img", first | hires | {"hr_scale": 1.5})
    picture = pixels(answer)
    assert picture.shape == (96, 96, 3)
    assert picture.std() > 5
    told = json.loads(answer["info"])["infotexts"][0]
    again = pixels(posted(drawing, "txt2img", {"infotext": told}))
    assert np.abs(picture.astype(int) - again).max() <= 1


def test_what_the_model_cannot_do_in_the_second_pass_is_told(drawing):
    hires = {"enable_hr": True, "denoising_strength": 0.001, "sampler_name": "DDIM"}
    (fault,) = refusal(drawing, "txt2img", SMALL | hires)
    assert fault["loc"] == ["body", "enable_hr"]
    assert "steps must be 1..1000" in fault["msg"]


def test_tiles_are_other_pictures(drawing):
    plain = pixels(posted(drawing, "txt2img", SMALL))
    tile = pixels(posted(drawing, "txt2img", SMALL | {"tiling": True}))
    assert np.abs(plain.astype(int) - tile).max() > 3


@pytest.mark.parametrize("sampler", ["DPM adaptive", "DDIM CFG++", "DPM fast", "Restart"])
def test_samplers_that_only_the_web_ui_has_draw(drawing, sampler):
    answer = posted(drawing, "txt2img", SMALL | {"sampler_name": sampler})
    assert json.loads(answer["info"])["sampler_name"] == sampler
    assert pixels(answer).std() > 5


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("hires", [False, True])
def test_an_interrupted_call_answers_with_what_is_drawn_by_then(drawing, hires):
    given = SMALL | {"steps": 100, "width": 192, "height": 192, "sampler_name": "Euler a"}
    given |= {"enable_hr": hires, "denoising_strength": 0.5}
    with ThreadPoolExecutor() as pool:
        call = pool.submit(posted, drawing, "txt2img", given)
        told = drawing.get("progress").json()
        while told["state"]["sampling_step"] == 0:
            assert not call.done()
            time.sleep(0.02)
            told = drawing.get("progress").json()
        assert drawing.post("interrupt").json() == {}
        answer = call.result()
    picture = pixels(answer)
    assert picture.shape == (192, 192, 3)
    assert picture.std() > 1
    assert drawing.get("progress").json()["progress"] == 0
    whole = pixels(posted(drawing, "txt2img", given | {"enable_hr": False}))
    assert np.abs(picture.astype(int) - whole).max() > 3


def test_extras_enlarge_by_a_network_what_one_sees(drawing):
    checks = np.kron(np.indices((4, 4)).sum(0) % 2, np.ones((12, 12))) * 255
    given = Image.fromarray(checks.astype(np.uint8)).convert("RGB")
    answer = posted(
        drawing, "extra-single-image", {"image": file(given), "upscaler_1": "R-ESRGAN 4x+ Anime6B"}
    )
    larger = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert larger.size == (96, 96)
    again = np.asarray(larger.resize((48, 48), Image.Resampling.BOX).convert("L"))
    assert np.corrcoef(again.ravel(), checks.ravel())[0, 1] > 0.9
    plain = given.resize((96, 96), Image.Resampling.LANCZOS)
    assert larger.tobytes() != plain.tobytes()
