"""txt2img: what a request means to the engine, and what its answer tells."""

import asyncio
import base64
import io
import json

import pytest
from PIL import Image

from deployments.tasks.image import ImageJob
from deployments.tasks.model import TaskError

SMALL = {"prompt": "a fox", "steps": 3, "width": 64, "height": 64}


def pictures(answer):
    return [Image.open(io.BytesIO(base64.b64decode(image))) for image in answer["images"]]


async def test_defaults_are_those_of_the_web_ui(webui):
    answer = await webui.draw("txt2img")
    told = {"num_inference_steps": 50, "guidance_scale": 7.0, "width": 512, "height": 512}
    told |= {"prompt": "", "num_images": 1, "clip_skip": 0}
    assert {name: webui.order[name] for name in told} == told
    drawn = webui.order["webui"]
    assert (drawn["sampler"], drawn["scheduler"]) == ("Euler", "Automatic")
    assert (drawn["s_noise"], drawn["noise_multiplier"], drawn["variation_strength"]) == (1, 1, 0)
    assert answer["parameters"]["sampler_index"] == "Euler"
    assert answer["parameters"]["denoising_strength"] is None


async def test_null_everywhere_means_the_defaults_and_unknown_fields_are_ignored(webui):
    await webui.draw("txt2img")
    plain = webui.order
    await webui.draw("txt2img", **dict.fromkeys([*SMALL, "eta", "seed", "n_iter"]), url="x", auth=1)
    open_ = {"seed", "client_id"}
    assert {k: v for k, v in webui.order.items() if k not in open_} == {
        k: v for k, v in plain.items() if k not in open_
    }


async def test_values_are_read_as_loosely_as_clients_send_them(webui):
    await webui.draw(
        "txt2img",
        prompt=123,
        steps="7",
        width=512.9,
        height="256",
        restore_faces="False",
        batch_size=True,
        styles=["a", 1],
        hr_second_pass_steps=12.5,
        override_settings=[["CLIP_stop_at_last_layers", 2]],
        alwayson_scripts=[],
        seed=-5,
    )
    order = webui.order
    assert order["clip_skip"] == 1
    assert (order["prompt"], order["num_inference_steps"]) == ("123", 7)
    assert (order["width"], order["height"], order["num_images"]) == (512, 256, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ["a"]),
        ("seed", [1]),
        ("styles", "abc"),
        ("script_args", {}),
        ("steps", "many"),
        ("cfg_scale", "nan"),
        ("width", 10**40),
    ],
)
async def test_values_that_cannot_be_read_are_refused_by_name(webui, field, value):
    assert await webui.refusal("txt2img", **{field: value}) == (422, field)


async def test_a_batch_is_one_task_whose_seeds_count_up(webui):
    answer = await webui.draw("txt2img", **SMALL, batch_size=2, n_iter=2, seed=100)
    assert [picture.getpixel((0, 0))[0] for picture in pictures(answer)] == [100, 101, 102, 103]
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [100, 101, 102, 103]
    assert len(info["infotexts"]) == len(info["all_prompts"]) == 4
    assert (info["seed"], info["batch_size"], info["index_of_first_image"]) == (100, 2, 0)


async def test_faces_are_restored_by_what_the_settings_name(open_api, connect):
    files = {"GFPGAN": "g.pth", "CodeFormer": "c.pth"}
    webui = connect(await open_api(face_restorers=files))
    answer = await webui.draw("txt2img", **SMALL, restore_faces=True)
    assert webui.order["webui"]["restore_faces"] == "CodeFormer"
    info = json.loads(answer["info"])
    assert (info["restore_faces"], info["face_restoration_model"]) == (True, "CodeFormer")
    assert ", Face restoration: CodeFormer, Size: 64x64" in info["infotexts"][0]
    over = {"face_restoration": True, "face_restoration_model": "GFPGAN"}
    await webui.draw("txt2img", **SMALL, override_settings=over)
    assert webui.order["webui"]["restore_faces"] == "GFPGAN"
    await webui.draw("txt2img", **SMALL, override_settings=over, restore_faces=False)
    assert webui.order["webui"]["restore_faces"] is None


async def test_without_a_face_restorer_a_picture_is_drawn_and_tells_which_setting_names_them(webui):
    info = json.loads((await webui.draw("txt2img", **SMALL, restore_faces=True))["info"])
    assert webui.order["webui"]["restore_faces"] is None
    assert (info["restore_faces"], info["face_restoration_model"]) == (True, None)
    assert "Face restoration" not in info["infotexts"][0]
    assert "setting face_restorers" in info["comments"]
    plain = json.loads((await webui.draw("txt2img", **SMALL))["info"])
    assert plain["comments"] == ""


async def test_a_face_restorer_that_is_named_and_not_here_is_refused(webui):
    over = {"face_restoration_model": "CodeFormer"}
    status, told = await webui.refusal(
        "txt2img", **SMALL, restore_faces=True, override_settings=over
    )
    assert (status, told) == (422, "face_restoration_model")
    await webui.draw("txt2img", **SMALL, override_settings=over)
    assert (await webui.refusal("options", face_restoration_model="GFPGAN"))[0] == 422
    await webui.posted("options", **over)


async def test_info_has_the_keys_of_the_web_ui_in_their_order(webui):
    info = json.loads((await webui.draw("txt2img", **SMALL))["info"])
    keys = (
        "prompt all_prompts negative_prompt all_negative_prompts seed all_seeds subseed "
        "all_subseeds subseed_strength width height sampler_name cfg_scale steps batch_size "
        "restore_faces face_restoration_model sd_model_name sd_model_hash sd_vae_name sd_vae_hash "
        "seed_resize_from_w seed_resize_from_h denoising_strength extra_generation_params "
        "index_of_first_image infotexts styles job_timestamp clip_skip "
        "is_using_inpainting_conditioning version comments"
    )
    assert " ".join(info) == keys


async def test_a_seed_that_is_left_open_is_told(webui):
    answer = await webui.draw("txt2img", **SMALL, seed=-1)
    info = json.loads(answer["info"])
    assert pictures(answer)[0].getpixel((0, 0))[0] == info["seed"] % 256


async def test_a_picture_tells_in_its_file_how_it_was_drawn_and_can_be_asked_again(webui):
    answer = await webui.draw(
        "txt2img", **SMALL, seed=7, negative_prompt="bad, worse", sampler_name="DPM++ 2M"
    )
    text = pictures(answer)[0].text["parameters"]
    assert text == json.loads(answer["info"])["infotexts"][0]
    assert text.startswith(
        "a fox\nNegative prompt: bad, worse\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 7.0, Seed: 7, Size: 64x64, Model: embedded,"
    )
    told = await webui.posted("png-info", image=answer["images"][0])
    assert told["info"] == text
    assert told["parameters"]["Seed"] == "7"
    assert set(told["items"]) == {"daguerre"}
    first = webui.order
    await webui.draw("txt2img", infotext=text)
    assert {k: v for k, v in webui.order.items() if k != "client_id"} == {
        k: v for k, v in first.items() if k != "client_id"
    }


async def test_what_a_request_says_itself_goes_before_its_infotext(webui):
    text = "a fox\nSteps: 20, Sampler: Euler, CFG scale: 5, Seed: 9, Size: 64x128, Clip skip: 2"
    await webui.draw("txt2img", infotext=text, steps=4, seed=3)
    order = webui.order
    assert (order["num_inference_steps"], order["seed"], order["guidance_scale"]) == (4, 3, 5)
    assert (order["width"], order["height"], order["clip_skip"]) == (64, 128, 1)


async def test_send_images_false_sends_none_and_keeps_them(webui):
    answer = await webui.draw("txt2img", **SMALL, send_images=False, force_task_id="mine")
    assert answer["images"] == []
    tasks = (await webui.api.http.get("/api/v1/tasks")).json()["tasks"]
    assert tasks[0]["result_url"]


async def test_saved_pictures_of_a_batch_come_behind_a_grid_of_them(webui):
    answer = await webui.draw("txt2img", **SMALL, batch_size=3, save_images=True, seed=5)
    info = json.loads(answer["info"])
    assert len(answer["images"]) == len(info["infotexts"]) == 4
    assert info["index_of_first_image"] == 1
    assert info["infotexts"][0] == info["infotexts"][1]
    grid = pictures(answer)[0]
    assert grid.size == (128, 128)
    assert [grid.getpixel(at)[0] for at in [(9, 9), (99, 9), (9, 99)]] == [5, 6, 7]
    one = await webui.draw("txt2img", **SMALL, save_images=True)
    assert len(one["images"]) == 1


async def test_styles_are_put_on_in_order_and_unknown_ones_are_ignored(open_api, connect, tmp_path):
    file = tmp_path / "styles.csv"
    file.write_text('name,prompt,negative_prompt\nink,"ink of {prompt}",colour\nold,aged,new\n')
    webui = connect(await open_api(styles_file=file))
    assert [style["name"] for style in await webui.get("prompt-styles")] == ["ink", "old"]
    answer = await webui.draw("txt2img", **SMALL, styles=["ink", "nobody", "old"])
    info = json.loads(answer["info"])
    assert info["prompt"] == webui.order["prompt"] == "ink of a fox, aged"
    assert info["negative_prompt"] == "colour, new"
    assert info["styles"] == ["ink", "nobody", "old"]


async def test_samplers_are_named_as_the_web_ui_names_them(webui, vectors):
    for sampler, scheduler, name, label in vectors["sampler_scheduler_resolution"]:
        body = SMALL | {"sampler_name": sampler, "sampler_index": None, "scheduler": scheduler}
        known = {one["name"] for one in await webui.get("samplers")}
        if name not in known:
            assert await webui.refusal("txt2img", **body) == (422, "sampler_name")
            continue
        info = json.loads((await webui.draw("txt2img", **body))["info"])
        assert info["sampler_name"] == name
        drawn = webui.order["webui"]
        assert (drawn["sampler"], drawn["scheduler"]) == (name, label)


async def test_noise_is_a_field_s_else_an_option_s(webui):
    over = {"eta_ancestral": 0.5, "s_churn": 2, "s_noise": 1.1, "eta_noise_seed_delta": 31337}
    body = SMALL | {"sampler_name": "Euler a", "override_settings": over}
    await webui.draw("txt2img", **body)
    assert webui.order["eta"] == 0.5
    assert (webui.order["webui"]["s_churn"], webui.order["webui"]["s_noise"]) == (2, 1.1)
    assert webui.order["webui"]["eta_noise_seed_delta"] == 31337
    told = json.loads((await webui.draw("txt2img", **body))["info"])["infotexts"][0]
    assert ", Eta: 0.5, Sigma churn: 2.0, Sigma noise: 1.1, " in told
    given = {"eta": 0, "s_churn": 1, "s_tmax": 5, "s_min_uncond": 2}
    answer = await webui.draw("txt2img", **body, **given)
    drawn = webui.order["webui"]
    assert (webui.order["eta"], drawn["s_churn"], drawn["s_tmax"]) == (0, 2, 5)
    assert drawn["s_min_uncond"] == 2
    told = json.loads(answer["info"])["infotexts"][0]
    assert "Sigma tmax" not in told
    again = {name: SMALL[name] for name in ("width", "height")}
    await webui.draw("txt2img", **again, infotext=told, s_tmax=5)
    assert webui.order["eta"] == 0
    assert webui.order["webui"] == drawn
    await webui.draw("txt2img", **SMALL, sampler_name="DDIM")
    assert webui.order["eta"] == 0


@pytest.mark.parametrize(
    ("option", "source", "told"),
    [("CPU", "cpu", ", RNG: CPU"), ("GPU", "cuda", ""), ("NV", "cuda", ", RNG: NV")],
)
async def test_where_noise_is_drawn_is_an_option_and_told(webui, option, source, told):
    answer = await webui.draw("txt2img", **SMALL, override_settings={"randn_source": option})
    assert webui.order["webui"]["noise_source"] == source
    (text,) = json.loads(answer["info"])["infotexts"]
    assert f"Model: embedded{told}, Version" in text
    await webui.draw("txt2img", infotext=text)
    assert webui.order["webui"]["noise_source"] == source


async def test_noise_is_that_of_a_gpu_for_infotext_of_the_web_ui_that_tells_of_none(webui):
    text = "a fox\nSteps: 2, Sampler: Euler, Seed: 9, Size: 64x64, Version: "
    for version, source in (("v1.9.4", "cuda"), ("daguerre", "cpu")):
        await webui.draw("txt2img", infotext=text + version)
        assert webui.order["webui"]["noise_source"] == source


async def test_variations_share_a_seed_and_count_their_own(webui):
    body = SMALL | {"seed": 7, "subseed": 20, "subseed_strength": 0.3, "n_iter": 3}
    body |= {"seed_resize_from_w": 128, "seed_resize_from_h": 64}
    info = json.loads((await webui.draw("txt2img", **body))["info"])
    assert info["all_seeds"] == [7, 7, 7]
    assert info["all_subseeds"] == [20, 21, 22]
    job = ImageJob.from_input(webui.order, default_size=64)
    requests = job.requests("r")
    assert [(one.seed, one.variation_seed) for one in requests] == [(7, 20), (7, 21), (7, 22)]
    assert (requests[0].variation_strength, requests[0].seed_resize) == (0.3, (128, 64))
    assert (
        "Variation seed: 21, Variation seed strength: 0.3, Seed resize from: 128x64"
        in (info["infotexts"][1])
    )


async def test_a_random_variation_is_the_same_for_a_repeated_call(webui):
    body = SMALL | {"subseed_strength": 0.3, "force_task_id": "mine"}
    first = await webui.draw("txt2img", **body)
    assert await webui.posted("txt2img", **body) == first


async def test_the_engine_is_asked_for_the_web_ui_s_own_sampler_and_prompt_language(webui):
    over = {"CLIP_stop_at_last_layers": 2}
    body = SMALL | {"prompt": "a [fox:owl:0.5] AND moon", "sampler_name": "DPM++ 2M SDE Karras"}
    await webui.draw("txt2img", **body, override_settings=over, cfg_scale=0.5, seed=3, n_iter=2)
    first, second = ImageJob.from_input(webui.order, default_size=64).requests("r")
    assert (first.scheduler, first.schedule) == ("DPM++ 2M SDE", "Karras")
    assert (first.prompt, first.prompt_editing) == ("a [fox:owl:0.5] AND moon", True)
    assert (first.clip_skip, first.negative_clip_skip, first.guidance_scale) == (1, 1, 0.5)
    assert (first.seed, second.seed, first.s_tmax) == (3, 4, float("inf"))


async def test_loras_of_the_prompt_are_worn_by_the_web_ui_s_order_of_weights(webui):
    await webui.api.lora("ink")
    prompt = "a <lora:ink:0.5:0.8>fox # red\n<lyco:ink:te=0.1>"
    answer = await webui.draw("txt2img", **SMALL | {"prompt": prompt})
    assert webui.order["prompt"] == "a fox \n"
    worn = [(one["name"], one["text_weight"], one["weight"]) for one in webui.order["loras"]]
    assert worn == [("ink", 0.5, 0.8), ("ink", 0.1, 0.1)]
    assert "<lora:ink:0.5:0.8>" in json.loads(answer["info"])["infotexts"][0]
    await webui.draw("txt2img", **SMALL | {"prompt": prompt}, disable_extra_networks=True)
    assert webui.order["loras"] == []


async def test_loras_that_are_not_here_are_left_out_and_told(webui):
    await webui.api.lora("ink")
    prompt = "<lora:nobody:1>a <lora:Ink:0.5>fox<lora:none:2>"
    answer = await webui.draw("txt2img", **SMALL | {"prompt": prompt})
    assert [(one["name"], one["weight"]) for one in webui.order["loras"]] == [("ink", 0.5)]
    assert webui.order["prompt"] == "a fox"
    comments = json.loads(answer["info"])["comments"]
    assert comments == "LoRAs that are not here were left out: 'nobody, none'"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subseed_strength", 1.5),
        ("s_noise", -1),
        ("eta", 2),
        ("steps", 0),
        ("steps", 10_000),
        ("width", 8),
        ("n_iter", 0),
        ("cfg_scale", -1),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(webui, field, value):
    assert await webui.refusal("txt2img", **({"sampler_name": "Euler a"} | {field: value})) == (
        422,
        field,
    )


async def test_more_pictures_than_the_limit_are_refused_in_the_caller_s_words(webui):
    answer = await webui.post("txt2img", batch_size=4, n_iter=4)
    (fault,) = answer.json()["detail"]
    assert fault["msg"] == "batch_size x n_iter must be 1 to 10, given 16"


async def test_scripts_that_are_not_here_are_refused(webui):
    told = "Script 'string' not found"
    assert await webui.refusal("txt2img", script_name="string") == (422, told)
    for name, told in (("AnimateDiff", "not found"), ("x/y/z plot", "a selectable script")):
        refused = await webui.refusal("txt2img", alwayson_scripts={name: {"args": []}})
        assert refused[0] == 422
        assert told in refused[1]
    scripts = {"Comments": {"args": []}, "ControlNet": {"args": []}}
    scripts |= {"Sampler": {"args": [9, "Heun"]}, "Refiner": {"args": [False, "", 0.8]}}
    await webui.draw("txt2img", **SMALL, alwayson_scripts=scripts)
    for name in ("Refiner", "Hypertile", "Soft Inpainting"):
        status, _ = await webui.refusal("txt2img", alwayson_scripts={name: {"args": [True]}})
        assert status == 422


async def test_what_the_model_refuses_is_told_as_any_other_bad_field(webui):
    call, claimed = await webui.begin("txt2img", **SMALL)
    fault = TaskError(code="invalid_request", message="num_inference_steps: num_inference_steps is")
    await webui.api.services.store.fail(claimed.claim, fault, retryable=False)
    answer = await call
    assert answer.status_code == 422
    assert answer.json()["detail"][0] == {
        "loc": ["body", "steps"],
        "msg": "steps is",
        "type": "value_error",
    }


async def test_a_failed_task_is_an_error_in_the_web_ui_s_shape(webui):
    call, claimed = await webui.begin("txt2img", **SMALL)
    await webui.api.fail(claimed, "生成过程中发生错误")
    answer = await call
    assert answer.status_code == 500
    assert answer.json() == {
        "error": "RuntimeError",
        "detail": "",
        "body": "",
        "errors": "生成过程中发生错误",
    }


async def test_the_same_force_task_id_finds_the_same_pictures(webui):
    first = await webui.draw("txt2img", **SMALL, force_task_id="mine")
    again = await webui.posted("txt2img", **SMALL, force_task_id="mine")
    assert again == first
    status, _ = await webui.refusal("txt2img", **SMALL | {"steps": 4}, force_task_id="mine")
    assert status == 409


async def test_a_canceled_task_answers_without_pictures(webui):
    call, claimed = await webui.begin("txt2img", **SMALL)
    await webui.api.http.delete(f"/api/v1/tasks/{claimed.task.id}")
    answer = await call
    assert (answer.status_code, answer.json()["images"]) == (200, [])


async def test_two_callers_of_different_keys_do_not_see_each_other(open_api, connect):
    api = await open_api(api={"keys": ["a", "b"]}, headers={"Authorization": "Bearer a"})
    webui = connect(api)
    call, claimed = await webui.begin("txt2img", **SMALL)
    other = {"Authorization": "Bearer b"}
    told = (await api.http.get("/sdapi/v1/progress", headers=other)).json()
    assert (told["progress"], told["state"]["job_count"]) == (0, 0)
    assert (await api.http.post("/sdapi/v1/interrupt", headers=other)).json() == {}
    assert (await webui.get("progress"))["state"]["job_count"] == 1
    await webui.finish(claimed)
    assert (await asyncio.wait_for(call, 300)).status_code == 200


async def test_an_empty_force_task_id_is_none(webui):
    for steps in (2, 3):
        await webui.draw("txt2img", **SMALL | {"steps": steps}, force_task_id="")


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("prompt", "fox\n#" + "a" * 30_000),
        ("negative_prompt", "<x:" + "b" * 30_000 + ">"),
        ("infotext", "a" * 30_000),
        ("styles", ["none"] * 101),
    ],
)
async def test_text_that_no_prompt_may_have_is_refused_before_it_is_parsed(webui, field, given):
    assert await webui.refusal("txt2img", **SMALL | {field: given}) == (422, field)


async def test_half_a_surrogate_pair_is_refused_wherever_it_stands(webui):
    for path, body in (
        ("options", b'{"disabled_extensions": ["\\ud800"]}'),
        ("txt2img", b'{"prompt": "a fox", "comments": {"a": "\\ud800"}}'),
    ):
        headers = {"Content-Type": "application/json"}
        answer = await webui.api.http.post(f"/sdapi/v1/{path}", content=body, headers=headers)
        assert 400 <= answer.status_code < 500
    assert await webui.get("options")
