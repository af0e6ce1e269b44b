"""Everything around drawing: options, lists, progress, extras, metadata, access."""

import asyncio
import base64
import io
import json

import pytest
from PIL import Image

from deployments.tasks.enhancement import EnhanceOrder
from deployments.tasks.model import Kind, Output
from pipelines.enhancement import Enhancement, Restoration
from pipelines.infotext import parse
from pipelines.upscaler.target import ByFactor

SMALL = {"prompt": "a fox", "steps": 3, "width": 64, "height": 64}


def file(width=64, height=64, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


# options


async def test_options_are_read_and_written_back_whole_with_one_changed(webui):
    everything = await webui.get("options")
    assert len(everything) > 300
    assert await webui.posted("options", **everything | {"send_seed": False}) is None
    assert (await webui.get("options")) == everything | {"send_seed": False}


async def test_a_checkpoint_among_the_options_is_the_model_of_later_requests(open_api, connect):
    webui = connect(await open_api(models={"first": {}, "second": {}}))
    await webui.posted("options", sd_model_checkpoint="second.safetensors [0123456789]")
    assert (await webui.get("options"))["sd_model_checkpoint"] == "second"
    over = {"sd_model_checkpoint": "first", "CLIP_stop_at_last_layers": 2}
    await webui.draw("txt2img", **SMALL, override_settings=over)
    assert (webui.order["model"], webui.order["clip_skip"]) == ("first", 1)
    call = asyncio.create_task(webui.post("txt2img", **SMALL))
    store = webui.api.services.store
    while not (claims := await store.claim("second", "w", limit=1, request_id="r")):
        await asyncio.sleep(0.02)
    await webui.finish(claims[0])
    assert (await call).status_code == 200
    assert (await webui.get("options"))["CLIP_stop_at_last_layers"] == 1


async def test_overrides_that_are_not_to_be_restored_are_the_caller_s_options_from_then_on(webui):
    over = {"override_settings": {"CLIP_stop_at_last_layers": 2}}
    await webui.draw("txt2img", **SMALL, **over)
    assert (await webui.get("options"))["CLIP_stop_at_last_layers"] == 1
    await webui.draw("txt2img", **SMALL, **over, override_settings_restore_afterwards=False)
    assert (await webui.get("options"))["CLIP_stop_at_last_layers"] == 2
    await webui.draw("txt2img", **SMALL)
    assert webui.order["clip_skip"] == 1


async def test_options_are_each_caller_s_own(open_api, connect):
    api = await open_api(api={"keys": ["a", "b"]}, headers={"X-API-Key": "a"})
    await connect(api).posted("options", CLIP_stop_at_last_layers=2)
    theirs = await api.http.get("/sdapi/v1/options", headers={"X-API-Key": "b"})
    assert theirs.json()["CLIP_stop_at_last_layers"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"sd_model_checkpoint": "nobody"},
        {"no_such_option": 1},
        {"CLIP_stop_at_last_layers": 99},
        {"CLIP_stop_at_last_layers": "many"},
        {"samples_format": "tiff"},
        {"token_merging_ratio": 0.5},
        {"randn_source": "TPU"},
        {"hide_samplers": ["x" * 5000]},
    ],
)
async def test_options_that_cannot_be_honoured_are_refused(webui, options):
    before = await webui.get("options")
    assert await webui.refusal("options", **options) == (422, "options")
    over = await webui.refusal("txt2img", override_settings=options)
    assert over == (422, "override_settings")
    assert await webui.get("options") == before


async def test_restricted_options_are_left_as_they_are(webui):
    await webui.posted("options", api_forbid_local_requests=False)
    assert (await webui.get("options"))["api_forbid_local_requests"] is True


async def test_the_format_of_files_is_an_option(webui):
    answer = await webui.draw("txt2img", **SMALL, override_settings={"samples_format": "jpg"})
    picture = opened(answer["images"][0])
    assert picture.format == "JPEG"
    told = await webui.posted("png-info", image=answer["images"][0])
    assert told["parameters"]["Prompt"] == "a fox"
    assert webui.order["output_quality"] == 80
    over = {"samples_format": "jpg", "jpeg_quality": 10}
    coarse = await webui.draw("txt2img", **SMALL, override_settings=over)
    assert opened(coarse["images"][0]).quantization[0] > picture.quantization[0]
    over["jpeg_quality"] = 101
    refused = await webui.refusal("txt2img", **SMALL, override_settings=over)
    assert refused == (422, "jpeg_quality")


# lists

LISTS = [
    ("samplers", {"name", "aliases", "options"}),
    ("schedulers", {"name", "label", "aliases", "default_rho", "need_inner_model"}),
    ("upscalers", {"name", "model_name", "model_path", "model_url", "scale"}),
    ("latent-upscale-modes", {"name"}),
    ("realesrgan-models", {"name", "path", "scale"}),
    ("sd-models", {"title", "model_name", "hash", "sha256", "filename", "config"}),
    ("prompt-styles", {"name", "prompt", "negative_prompt"}),
    ("script-info", {"name", "is_alwayson", "is_img2img", "args"}),
]


@pytest.mark.parametrize(("path", "keys"), LISTS)
async def test_a_list_has_items_of_the_documented_keys(webui, path, keys):
    items = await webui.get(path)
    assert items
    assert all(set(item) == keys for item in items)


async def test_a_vae_is_chosen_by_the_model_that_is_the_same_but_for_it(open_api, connect):
    models = {"plain": {"source": "/m"}, "mse": {"source": "/m", "vae": "/v/mse"}, "other": {}}
    models["again"] = models["plain"]
    webui = connect(await open_api(models=models))
    assert await webui.get("sd-vae") == [{"model_name": "mse", "filename": "mse"}]

    async def drawn_by(model, **body):
        call = asyncio.create_task(webui.post("txt2img", **SMALL, **body))
        async with asyncio.timeout(30):
            while not (claims := await webui.claim_of(model)):
                await asyncio.sleep(0.02)
        await webui.finish(claims[0])
        return json.loads((await call).json()["info"])

    plain = await drawn_by("plain")
    assert plain["sd_vae_name"] is None
    info = await drawn_by("mse", override_settings={"sd_vae": "mse"})
    (text,) = info["infotexts"]
    assert info["sd_vae_name"] == "mse"
    assert ", Model: mse, VAE: mse, " in text
    await drawn_by("mse", infotext=text)
    over = {"sd_model_checkpoint": "mse", "sd_vae": "None"}
    await drawn_by("plain", override_settings=over)
    await drawn_by("again", override_settings={"sd_model_checkpoint": "again", "sd_vae": "None"})
    await webui.posted("options", sd_vae="mse")
    await drawn_by("mse")
    await drawn_by("other", override_settings={"sd_model_checkpoint": "other"})
    for over in ({"sd_vae": "nobody"}, {"sd_vae": "mse", "sd_model_checkpoint": "other"}):
        refused = await webui.refusal("txt2img", override_settings=over)
        assert refused == (422, "override_settings")


@pytest.mark.parametrize("path", ["sd-vae", "hypernetworks", "face-restorers", "extensions"])
async def test_what_is_not_here_is_an_empty_list(webui, path):
    assert await webui.get(path) == []


async def test_options_of_samplers_are_text(webui, vectors):
    known = {one["name"]: one for one in vectors["samplers"]}
    for item in await webui.get("samplers"):
        expected = known[item["name"]]
        assert item["aliases"] == expected["aliases"]
        assert item["options"] == {k: str(v) for k, v in expected["options"].items()}


async def test_loras_are_those_that_the_caller_may_name(webui):
    await webui.api.lora("ink")
    (lora,) = await webui.get("loras")
    assert (lora["name"], lora["alias"]) == ("ink", "ink")


@pytest.mark.parametrize(
    "path",
    ["refresh-checkpoints", "refresh-vae", "refresh-embeddings", "refresh-loras", "skip"],
)
async def test_verbs_with_nothing_to_do_answer_null(webui, path):
    answer = await webui.api.http.post(f"/sdapi/v1/{path}")
    assert (answer.status_code, answer.json()) == (200, None)


@pytest.mark.parametrize("path", ["unload-checkpoint", "reload-checkpoint", "interrupt"])
async def test_verbs_of_the_checkpoint_answer_an_object(webui, path):
    answer = await webui.api.http.post(f"/sdapi/v1/{path}")
    assert (answer.status_code, answer.json()) == (200, {})


async def test_memory_and_flags_are_told(webui):
    ram = (await webui.get("memory"))["ram"]
    assert 0 < ram["free"] <= ram["total"]
    assert (await webui.get("cmd-flags"))["api"] is True
    assert await webui.get("embeddings") == {"loaded": {}, "skipped": {}}
    assert set(await webui.get("scripts")) == {"txt2img", "img2img"}


# progress and interrupt


async def test_progress_goes_from_idle_over_the_queue_to_idle(webui):
    idle = await webui.get("progress")
    assert (idle["progress"], idle["eta_relative"], idle["current_image"]) == (0, 0, None)
    assert (idle["state"]["job"], idle["state"]["job_count"]) == ("", 0)
    call = asyncio.create_task(webui.post("txt2img", **SMALL, batch_size=2, force_task_id="mine"))
    while not (await webui.api.http.get("/internal/pending-tasks")).json()["size"]:
        await asyncio.sleep(0.02)
    pending = (await webui.api.http.get("/internal/pending-tasks")).json()
    assert pending == {"size": 1, "tasks": ["mine"]}
    assert (await webui.get("progress"))["textinfo"] == "In queue: 1/1"
    claimed = await webui.api.claim()
    await webui.api.services.store.renew([beat(claimed, step=4, steps=6)])
    told = await webui.get("progress", skip_current_image=True)
    assert told["progress"] == pytest.approx(4 / 6)
    assert told["eta_relative"] > 0
    state = told["state"]
    assert (state["job"], state["job_count"]) == ("scripts_txt2img", 2)
    assert (state["job_no"], state["sampling_step"], state["sampling_steps"]) == (1, 1, 3)
    await webui.finish(claimed)
    await call
    assert (await webui.get("progress"))["state"]["job_count"] == 0
    assert (await webui.get("progress", id_task="mine"))["progress"] == 1
    assert (await webui.get("progress", id_task="other"))["progress"] == 0


def beat(claimed, **progress):
    from deployments.tasks.exchange import Beat
    from deployments.tasks.model import Progress

    return Beat(claim=claimed.claim, progress=Progress(**progress))


async def test_progress_shows_the_newest_preview(webui):
    call, claimed = await webui.begin("txt2img", **SMALL, force_task_id="mine")
    await webui.get("progress")
    renewal = await webui.api.services.store.renew([beat(claimed, step=1, steps=3)])
    assert claimed.task.id in renewal.watched
    jpeg = base64.b64decode(file(kind="JPEG"))
    await webui.api.services.store.preview(claimed.claim, jpeg)
    assert base64.b64decode((await webui.get("progress"))["current_image"]) == jpeg
    body = {"id_task": "mine", "id_live_preview": -1, "live_preview": True}
    told = (await webui.api.http.post("/internal/progress", json=body)).json()
    assert told["live_preview"].startswith("data:image/jpeg;base64,")
    assert (told["active"], told["queued"], told["completed"]) == (True, False, False)
    body["id_live_preview"] = told["id_live_preview"]
    again = (await webui.api.http.post("/internal/progress", json=body)).json()
    assert again["live_preview"] is None
    await webui.finish(claimed)
    await call


async def test_interrupt_has_the_worker_end_the_newest_job_with_what_is_drawn(webui):
    first, one = await webui.begin("txt2img", **SMALL, seed=1)
    second, two = await webui.begin("txt2img", **SMALL, seed=2, batch_size=3)
    assert (await webui.api.http.post("/sdapi/v1/interrupt")).json() == {}
    renewal = await webui.api.services.store.renew([beat(one, step=1), beat(two, step=1)])
    assert renewal.hurried == {two.task.id}
    await webui.finish(two, count=1)
    await webui.finish(one)
    assert len((await second).json()["images"]) == 1
    assert len((await first).json()["images"]) == 1


async def test_interrupt_takes_a_waiting_job_out_of_the_queue(webui):
    call = asyncio.create_task(webui.post("txt2img", **SMALL, force_task_id="mine"))
    while not (await webui.api.http.get("/internal/pending-tasks")).json()["size"]:
        await asyncio.sleep(0.02)
    native = await webui.api.submit()
    await webui.api.http.post("/sdapi/v1/interrupt", params={"id_task": "mine"})
    answer = await asyncio.wait_for(call, 300)
    assert (answer.status_code, answer.json()["images"]) == (200, [])
    await webui.api.http.post("/sdapi/v1/interrupt")
    assert (await webui.api.task(native))["status"] == "pending"


# extras and metadata


async def test_a_picture_is_enlarged_by_a_factor_down_to_a_multiple_of_eight(webui):
    body = {"image": file(50, 40), "upscaler_1": "Lanczos", "upscaling_resize": 2.5}
    answer = await webui.posted("extra-single-image", **body)
    assert opened(answer["image"]).size == (120, 96)
    assert "Lanczos" in answer["html_info"]


async def test_a_picture_is_enlarged_to_a_size(webui):
    body = {"image": file(50, 40), "upscaler_1": "Nearest", "resize_mode": 1}
    body |= {"upscaling_resize_w": 100, "upscaling_resize_h": 100}
    assert opened((await webui.posted("extra-single-image", **body))["image"]).size == (100, 100)
    body["upscaling_crop"] = False
    assert opened((await webui.posted("extra-single-image", **body))["image"]).size == (125, 100)


async def test_without_an_upscaler_a_picture_stays_as_it_is(webui):
    answer = await webui.posted("extra-single-image", image=file(50, 40), model="clip")
    assert opened(answer["image"]).size == (50, 40)


async def test_several_pictures_are_enlarged_and_two_ways_mixed(webui):
    files = [{"data": file(16, 16), "name": "a"}, {"data": file(24, 24), "name": "b"}]
    body = {"imageList": files, "upscaler_1": "Lanczos", "upscaler_2": "Nearest"}
    answer = await webui.posted("extra-batch-images", **body, extras_upscaler_2_visibility=0.5)
    assert [opened(image).size for image in answer["images"]] == [(32, 32), (48, 48)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("upscaler_1", "ScuNET GAN"),
        ("upscaler_2", "4x-UltraSharp"),
        ("codeformer_visibility", 1),
        ("gfpgan_visibility", 0.5),
        ("gfpgan_visibility", 2),
        ("upscaling_resize", 1000),
        ("upscaling_resize", 0),
        ("resize_mode", 2),
    ],
)
async def test_extras_that_are_not_here_are_refused_by_name(webui, field, value):
    body = {"image": file(), "upscaler_1": "Lanczos"} | {field: value}
    assert await webui.refusal("extra-single-image", **body) == (422, field)


NETWORKS = {"upscalers": {"4x-Sharp": "sharp.pth"}, "face_restorers": {"GFPGAN": "gfpgan.pth"}}


async def test_extras_with_a_network_are_a_task_of_the_models_workers(open_api, connect):
    webui = connect(await open_api(**NETWORKS))
    files = [{"data": file(16, 16), "name": "a"}, {"data": file(24, 24), "name": "b"}]
    body = {"imageList": files, "upscaler_1": "Lanczos", "upscaler_2": "4x-Sharp"}
    body |= {"extras_upscaler_2_visibility": 0.25, "gfpgan_visibility": 0.5, "upscale_first": True}
    call, claimed = await webui.begin("extra-batch-images", **body)
    assert claimed.task.kind is Kind.ENHANCE
    order = EnhanceOrder.model_validate(claimed.task.input)
    assert order.work == Enhancement(
        ByFactor(2), "Lanczos", "4x-Sharp", 0.25, (Restoration("GFPGAN", 0.5, 0),), True
    )
    sent = [await webui.api.services.objects.get(key) for key in order.pictures]
    assert sent == [base64.b64decode(each["data"]) for each in files]
    outputs = []
    for index, data in enumerate(sent[::-1]):
        await webui.api.services.objects.put(f"results/x/{index}.png", data, "image/png")
        outputs.append(Output(key=f"results/x/{index}.png", content_type="image/png"))
    assert await webui.api.services.store.succeed(claimed.claim, outputs)
    answer = (await call).json()
    assert [opened(image).size for image in answer["images"]] == [(24, 24), (16, 16)]
    assert answer["html_info"] == "<p>Upscaler: Lanczos, scale: 2</p>"
    native = await webui.api.task(claimed.task.id)
    assert (native["status"], native["progress"]["steps"]) == ("completed", 0)


async def test_extras_with_a_network_are_judged_before_they_are_queued(open_api, connect):
    webui = connect(await open_api(**NETWORKS))
    body = {"image": file(), "upscaler_1": "4x-Sharp"}
    wide = await webui.refusal("extra-single-image", **(body | {"upscaling_resize": 1000}))
    assert wide == (422, "upscaling_resize")
    broken = await webui.refusal("extra-single-image", **(body | {"image": "bm90"}))
    assert broken == (422, "Invalid encoded image")
    refused = await webui.refusal("extra-single-image", **(body | {"codeformer_visibility": 1}))
    assert refused == (422, "codeformer_visibility")


async def test_networks_of_the_settings_are_listed(open_api, connect):
    webui = connect(await open_api(**NETWORKS))
    upscalers = [one["name"] for one in await webui.get("upscalers")]
    assert upscalers[:3] == ["None", "Lanczos", "Nearest"]
    assert upscalers[-1] == "4x-Sharp"
    assert await webui.get("face-restorers") == [{"name": "GFPGAN", "cmd_dir": None}]
    assert {one["name"] for one in await webui.get("realesrgan-models")} < set(upscalers)


async def test_a_picture_without_metadata_tells_nothing(webui):
    told = await webui.posted("png-info", image=file())
    assert (told["info"], told["items"]) == ("", {})
    assert told["parameters"] == parse("")
    assert await webui.refusal("png-info", image="string") == (422, "Invalid encoded image")
    assert await webui.refusal("png-info") == (422, "image")


async def test_no_model_describes_pictures(webui):
    status, told = await webui.refusal("interrogate", image=file(), model="clip")
    assert status == 404
    assert told.startswith("Model not found")


# access

BASIC = {
    "the password": ("anyone", "secret"),
    "the user": ("secret", ""),
}


@pytest.mark.parametrize("pair", BASIC.values(), ids=BASIC.keys())
async def test_a_key_may_come_by_http_basic(open_api, pair):
    api = await open_api(api={"keys": ["secret", "user:pass"]})
    get = api.http.get
    assert (await get("/sdapi/v1/samplers", auth=pair)).status_code == 200
    assert (await get("/sdapi/v1/samplers", auth=("user", "pass"))).status_code == 200
    for wrong, told in (((), "Not authenticated"), (("user", "x"), "Incorrect username or")):
        answer = await get("/sdapi/v1/samplers", **({"auth": wrong} if wrong else {}))
        assert answer.status_code == 401
        assert answer.json()["detail"].startswith(told)
        assert set(answer.json()) == {"error", "detail", "body", "errors"}


async def test_without_keys_any_basic_header_is_let_in(api):
    answer = await api.http.get("/sdapi/v1/samplers", auth=("any", "one"))
    assert answer.status_code == 200
    assert float(answer.headers["X-Process-Time"]) >= 0


async def test_ping_needs_no_key_and_unknown_routes_are_not_found(open_api):
    api = await open_api(api={"keys": ["secret"]})
    assert (await api.http.get("/internal/ping")).json() == {}
    answer = await api.http.get("/sdapi/v1/artists")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


async def test_a_body_that_is_no_json_is_refused(api):
    answer = await api.http.post(
        "/sdapi/v1/txt2img", content="{", headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body"]


async def test_emphasis_is_an_option_of_each_request_and_told_where_brackets_are(webui):
    body = SMALL | {"prompt": "a (fox:1.2)"}
    for word in ("No norm", "Ignore", "None", "Original"):
        answer = await webui.draw("txt2img", **body, override_settings={"emphasis": word})
        assert webui.order["webui"]["emphasis"] == word
        (text,) = json.loads(answer["info"])["infotexts"]
        assert (f"Emphasis: {word}" in text) is (word != "Original")
        await webui.draw("txt2img", **SMALL, infotext=text)
        assert webui.order["webui"]["emphasis"] == word
    plain = await webui.draw("txt2img", **SMALL, override_settings={"emphasis": "None"})
    assert "Emphasis" not in plain["info"]
    refusal = await webui.refusal("txt2img", override_settings={"emphasis": "Loud"})
    assert refusal == (422, "override_settings")


async def test_levels_are_cut_as_the_web_ui_does_unless_the_settings_say_otherwise(
    webui, connect, open_api
):
    await webui.draw("txt2img", **SMALL)
    assert webui.order["webui"]["rounding"] == "truncate"
    rounding = connect(await open_api(sdapi={"rounding": "round"}))
    await rounding.draw("txt2img", **SMALL)
    assert rounding.order["webui"]["rounding"] == "round"
