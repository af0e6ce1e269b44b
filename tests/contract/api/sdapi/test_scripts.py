"""Scripts: what they ask workers for, how they are told, and what of them is refused."""

import asyncio
import base64
import io
import json

import pytest
from PIL import Image

from deployments.tasks.model import Status

SMALL = {"prompt": "a fox", "steps": 3, "width": 64, "height": 64, "seed": 100}


def file(size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


async def drawn(webui, path, **body):
    """The answer of a call of several tasks, and what these asked for, in their order."""
    call, orders = asyncio.create_task(webui.post(path, **body)), []
    async with asyncio.timeout(300):
        while not call.done():
            for claimed in await webui.claim():
                orders.append(claimed.task.input)
                await webui.finish(claimed)
            await asyncio.sleep(0.01)
    answer = call.result()
    assert answer.status_code == 200, answer.text
    return answer.json(), orders


def plot(*words, **flags):
    return {"script_name": "X/Y/Z plot", "script_args": [*words, *flags.values()]}


async def test_scripts_are_listed_with_arguments_that_are_their_defaults(webui):
    listed = await webui.get("scripts")
    assert "x/y/z plot" in listed["txt2img"]
    assert "sd upscale" not in listed["txt2img"]
    assert {"sd upscale", "loopback", "outpainting mk2", "adetailer"} <= set(listed["img2img"])
    told = await webui.get("script-info")
    assert {(one["name"], one["is_img2img"]) for one in told} == {
        (name, kind == "img2img") for kind, names in listed.items() for name in names
    }
    args = next(one["args"] for one in told if one["name"] == "sd upscale")
    assert args[1] == {"label": "Tile overlap", "value": 64, "minimum": 0, "maximum": 256,
                       "step": None, "choices": None}  # fmt: skip
    assert args[2]["choices"][:2] == ["None", "Lanczos"]
    begin = {"init_images": [file()], "script_name": "loopback"}
    values = [arg["value"] for one in told if one["name"] == "loopback" for arg in one["args"]]
    _, orders = await drawn(webui, "img2img", **SMALL, **begin, script_args=values)
    _, same = await drawn(webui, "img2img", **SMALL, **begin)
    strengths = [[order["strength"] for order in each] for each in (orders, same)]
    assert strengths == [[0.75, 0.5]] * 2


async def test_axes_of_a_plot_are_named_by_place_or_name_and_change_its_field(webui):
    words = [1, "1-2", "", "sampler", "", ["Euler a", "Heun"], "Clip skip", "2", None]
    answer, orders = await drawn(webui, "txt2img", **SMALL, **plot(*words))
    asked = {(o["seed"], o["webui"]["sampler"], o["clip_skip"]) for o in orders}
    assert asked == {(s, sampler, 1) for s in (1, 2) for sampler in ("Euler a", "Heun")}
    info = json.loads(answer["info"])
    assert (len(answer["images"]), info["index_of_first_image"], info["all_seeds"]) == (1, 1, [])
    told = info["infotexts"][0]
    assert 'X Type: Seed, X Values: "1, 2", Y Type: Sampler' in told
    assert opened(answer["images"][0]).text["parameters"] == told


async def test_a_cell_of_a_plot_is_the_file_of_its_request_alone_to_the_byte(webui):
    words = ["Seed", "7,8", "", "Prompt S/R", "fox,owl", "", "Styles", "none", "", False, True]
    answer, _ = await drawn(webui, "txt2img", **SMALL, **plot(*words))
    cells = [
        SMALL | {"seed": seed, "prompt": prompt} for prompt in ("a fox", "a owl") for seed in (7, 8)
    ]
    for image, cell in zip(answer["images"][1:], cells, strict=True):
        alone, _ = await drawn(webui, "txt2img", **cell)
        assert alone["images"] == [image]


@pytest.mark.parametrize(
    ("axis", "values", "place", "expected"),
    [
        ("Var. seed", "3-4", "webui.variation_seed", {3, 4}),
        ("Var. strength", "0.5", "webui.variation_strength", {0.5}),
        ("CFG Scale", "2, 3.5", "guidance_scale", {2.0, 3.5}),
        ("Schedule type", "karras, Exponential", "webui.scheduler", {"Karras", "Exponential"}),
        ("Sigma Churn", "0.5", "webui.s_churn", {0.5}),
        ("Size", "64x128, 128x64", "width", {64, 128}),
        ("Checkpoint name", "embedded", "model", {"embedded"}),
        ("Prompt S/R", "fox, owl", "prompt", {"a fox", "a owl"}),
        ("Prompt order", "fox, a", "prompt", {"a fox", "fox a"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_axis_is_a_field_of_the_request(webui, axis, values, place, expected):
    body = SMALL | {"subseed_strength": 0.1}
    _, orders = await drawn(webui, "txt2img", **body, **plot(axis, values))
    first, _, second = place.partition(".")
    assert {order[first][second] if second else order[first] for order in orders} == expected


async def test_seeds_of_a_plot_are_fixed_or_vary_with_its_axes(webui):
    words = ["Steps", "2,3", "", "CFG Scale", "1,2", "", 0, "", ""]
    body = SMALL | {"seed": -1}
    _, orders = await drawn(webui, "txt2img", **body, **plot(*words))
    assert len({order["seed"] for order in orders}) == 1
    vary = [True, False, False, False, True, True]
    _, orders = await drawn(webui, "txt2img", **SMALL, **plot(*words, *vary))
    assert sorted(order["seed"] for order in orders) == [100, 101, 102, 103]


async def test_sheets_of_a_plot_and_its_pictures_come_in_the_order_of_the_web_ui(webui):
    words = ["Seed", "1,2", "", "Nothing", "", "", "Steps", "2,3,4", ""]
    answer, _ = await drawn(webui, "txt2img", **SMALL, **plot(*words, False, True, True))
    sizes = [opened(image).size for image in answer["images"]]
    assert sizes == [(384, 64), *[(128, 64)] * 3, *[(64, 64)] * 6]
    info = json.loads(answer["info"])
    assert (info["index_of_first_image"], info["all_seeds"]) == (4, [1, 2] * 3)
    assert len(info["infotexts"]) == 10


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["Face restore", "1"], "an axis must be one of Nothing, Seed"),
        (["Image CFG Scale", "1"], "an axis must be one of"),
        (["Steps", "many"], "the values of Steps must be numbers or ranges"),
        (["Steps", ""], "Steps must have a value"),
        (["Sampler", "string"], "a value must be one of DPM++ 2M"),
        (["Checkpoint name", "string"], "'string' not found"),
        (["Prompt S/R", "owl,fox"], "'owl' is neither in prompt"),
        (["Seed", "1-900"], "at most 200 pictures in all"),
        (["Steps", "2,9999"], "steps must be 1 to 150"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_a_plot_that_cannot_be_is_refused_by_what_is_wrong(webui, words, told):
    answer = await webui.post("txt2img", **SMALL, **plot(*words))
    assert answer.status_code == 422
    assert told in answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("script", "args", "place"),
    [
        ("x/y/z plot", [{}], 0),
        ("prompt matrix", [False, False, "both"], 2),
        ("loopback", [0], 0),
        ("loopback", [2, 0.5, "Linear", "CLIP"], 3),
        ("sd upscale", ["", 8, "Lanczos", 99], 3),
        ("sd upscale", ["", 8, "string"], "script_args"),
        ("sd upscale", ["", 33], "script_args"),
        ("outpainting mk2", ["", 128, 8, ["inwards"]], 3),
        ("outpainting mk2", ["", 128, 8, []], 3),
        ("poor man's outpainting", [128, 4, "string"], 2),
    ],
    ids=lambda value: str(value),
)
async def test_arguments_that_cannot_be_are_refused_by_their_place(webui, script, args, place):
    body = SMALL | {"init_images": [file()], "script_name": script, "script_args": args}
    answer = await webui.post("img2img", **body)
    assert answer.status_code == 422
    assert place in answer.json()["detail"][0]["loc"]


async def test_a_word_is_not_replaced_by_more_than_a_prompt_may_hold(webui):
    body = SMALL | {"prompt": "a" * 4000}
    answer = await webui.post("txt2img", **body, **plot("Prompt S/R", "a," + "b" * 15_000))
    assert answer.status_code == 422
    assert "at most 4000 characters" in answer.json()["detail"][0]["msg"]


async def test_pictures_of_a_plot_count_as_large_as_they_come_back(open_api, connect):
    webui = connect(await open_api(limits={"max_input_pixels": 64 * 64 * 4}))
    mask = Image.new("L", (64, 256), 255)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    body = SMALL | {"init_images": [file((64, 256))], **plot("Seed", "1-5")}
    masked = {"mask": base64.b64encode(buffer.getvalue()).decode()}
    assert await webui.refusal("img2img", **body, **masked) == (422, "script_args")
    await drawn(webui, "img2img", **body)


async def test_a_script_of_pictures_is_none_of_txt2img(webui):
    told = "Script 'SD upscale' not found"
    assert await webui.refusal("txt2img", script_name="SD upscale") == (422, told)


async def test_what_is_drawn_begins_with_the_bytes_that_the_last_round_drew(webui):
    body = SMALL | {"init_images": [file()], "n_iter": 2}
    args = {"script_name": "Loopback", "script_args": [2, 0.2, "Lazy"]}
    answer, orders = await drawn(webui, "img2img", **body, **args)
    assert [order["seed"] for order in orders] == [100, 101, 102, 103]
    first, second = (order["init_image_key"] for order in orders[:2])
    assert orders[2]["init_image_key"] == first
    stored = await webui.api.services.objects.get(second)
    assert base64.b64encode(stored).decode() == answer["images"][0]


async def test_an_interrupted_script_answers_with_what_is_drawn_and_begins_no_more(webui):
    body = SMALL | {"init_images": [file()], "script_name": "Loopback", "script_args": [5]}
    call, claimed = await webui.begin("img2img", **body)
    await webui.finish(claimed)
    while not (await webui.get("progress"))["progress"]:
        await asyncio.sleep(0.02)
    assert (await webui.get("progress"))["progress"] == pytest.approx(0.2)
    await webui.api.http.post("/sdapi/v1/interrupt")
    answer = await call
    assert answer.status_code == 200
    assert len(answer.json()["images"]) == 1


async def test_an_interrupt_between_two_tasks_of_a_call_lets_it_begin_no_more(webui, monkeypatch):
    generate, first, going_on = webui.api.services.generate, [True], asyncio.Event()

    async def held(*args):
        if not first:
            await going_on.wait()
        first.clear()
        return await generate(*args)

    monkeypatch.setattr(webui.api.services, "generate", held)
    body = SMALL | {"init_images": [file()], "script_name": "Loopback", "script_args": [5]}
    call, claimed = await webui.begin("img2img", **body)
    await webui.finish(claimed)
    while (await webui.get("progress"))["progress"] < 0.2:
        await asyncio.sleep(0.02)
    await webui.api.http.post("/sdapi/v1/interrupt")
    going_on.set()
    answer = await asyncio.wait_for(call, 300)
    assert (answer.status_code, len(answer.json()["images"])) == (200, 1)
    assert await webui.claim() == []


async def test_an_interrupt_ends_all_tasks_of_a_call_and_no_other(webui):
    other = asyncio.create_task(webui.post("txt2img", **SMALL))
    while not (await webui.api.http.get("/internal/pending-tasks")).json()["size"]:
        await asyncio.sleep(0.02)
    mine = plot("Seed", "1-3") | {"force_task_id": "mine"}
    call = asyncio.create_task(webui.post("txt2img", **SMALL, **mine))
    while (await webui.api.http.get("/internal/pending-tasks")).json()["size"] < 4:
        await asyncio.sleep(0.02)
    await webui.api.http.post("/sdapi/v1/interrupt", params={"id_task": "mine"})
    answer = await call
    assert (answer.status_code, answer.json()["images"]) == (200, [])
    claimed = await webui.api.claim()
    await webui.finish(claimed)
    assert (await other).status_code == 200


async def test_a_call_that_is_left_cancels_all_its_tasks(open_api, connect):
    webui = connect(await open_api(http={"disconnect_grace_s": 0.01}))
    call, claimed = await webui.begin("txt2img", **SMALL, **plot("Seed", "1-3"))
    call.cancel()
    store = webui.api.services.store
    async with asyncio.timeout(300):
        while (await store.get(claimed.task.id)).status is not Status.CANCELED:
            await asyncio.sleep(0.02)
        while (await store.depth(claimed.task.queue)).queued:
            await asyncio.sleep(0.02)


async def test_a_script_that_is_sent_again_by_its_id_finds_its_tasks_again(webui):
    body = SMALL | {"seed": -1, "init_images": [file()], "force_task_id": "again"}
    body |= {"script_name": "Loopback", "script_args": [2]}
    first, orders = await drawn(webui, "img2img", **body)
    again, none = await drawn(webui, "img2img", **body)
    assert (len(orders), none) == (2, [])
    assert again["images"] == first["images"]


async def test_what_a_model_refuses_in_one_cell_fails_the_call(open_api, connect):
    webui = connect(await open_api(http={"disconnect_grace_s": 0.01}))
    call, claimed = await webui.begin("txt2img", **SMALL, **plot("Seed", "1-3"))
    await webui.api.fail(claimed, "no")
    answer = await call
    assert (answer.status_code, answer.json()["errors"]) == (500, "no")
    async with asyncio.timeout(300):
        while (await webui.api.services.store.depth(claimed.task.queue)).queued:
            await asyncio.sleep(0.02)


# what ADetailer takes


@pytest.mark.parametrize(
    "args",
    [
        ["face_yolov8n.pt"],
        [True, False, True],
        [{"ad_model": "hand_yolov8n.pt"}],
        [{"ad_model": "face_yolov8n.pt", "ad_restore_face": True}],
        [{"ad_model": "face_yolov8n.pt", "ad_denoising_strength": 2}],
        [{"ad_model": "face_yolov8n.pt"}] * 11,
    ],
    ids=["word", "three flags", "hand", "restorer", "strength", "too many"],
)
async def test_what_adetailer_cannot_be_here_is_refused_before_anything_is_drawn(webui, args):
    body = SMALL | {"alwayson_scripts": {"adetailer": {"args": args}}}
    assert (await webui.post("txt2img", **body)).status_code == 422


async def test_a_picture_without_faces_is_left_as_it_is(webui):
    unit = {"ad_model": "face_yolov8n.pt", "ad_prompt": None}
    scripts = {"ADetailer": {"args": [True, False, unit, {"ad_model": "None"}]}}
    plain, _ = await drawn(webui, "txt2img", **SMALL)
    answer, orders = await drawn(webui, "txt2img", **SMALL, alwayson_scripts=scripts)
    assert len(orders) == 1
    assert answer["images"] == plain["images"]


NETWORK = {"init_images": [file()], "script_name": "SD upscale"}


@pytest.mark.parametrize("upscaler", ["4x-Sharp", 5, "R-ESRGAN 4x+"])
async def test_a_network_enlarges_before_the_tiles_are_drawn(open_api, connect, upscaler):
    webui = connect(await open_api(upscalers={"4x-Sharp": "sharp.pth"}))
    body = SMALL | NETWORK | {"script_args": ["", 8, upscaler, 2]}
    answer, (first, *tiles) = await drawn(webui, "img2img", **body, force_task_id="big")
    name = "4x-Sharp" if upscaler == 5 else upscaler
    assert (first["work"]["upscaler"], first["work"]["target"]) == (name, {"factor": 2})
    assert len(tiles) == 9
    assert [opened(image).size for image in answer["images"]] == [(128, 128)]
    assert f"SD upscale upscaler: {name}" in json.loads(answer["info"])["infotexts"][0]
    again = await webui.posted("img2img", **body, force_task_id="big")
    assert again["images"] == answer["images"]


async def test_what_a_network_cannot_enlarge_is_refused_before_it_is_queued(open_api, connect):
    webui = connect(await open_api(limits={"max_input_pixels": 64 * 64 * 4}))
    body = SMALL | NETWORK | {"script_args": ["", 8, "R-ESRGAN 4x+", 4]}
    assert await webui.refusal("img2img", **body) == (422, "script_args")
    assert (await webui.api.http.get("/api/v1/tasks")).json()["tasks"] == []


async def test_an_interrupt_ends_a_call_whose_picture_is_being_enlarged(webui):
    body = SMALL | NETWORK | {"script_args": ["", 8, "R-ESRGAN 4x+", 2]}
    call, claimed = await webui.begin("img2img", **body)
    assert (await webui.get("progress"))["state"]["job_count"] == 1
    await webui.api.http.post("/sdapi/v1/interrupt")
    answer = await call
    assert (answer.status_code, answer.json()["images"]) == (200, [])
    assert (await webui.api.task(claimed.task.id))["status"] == "canceled"


async def test_a_call_of_several_tasks_is_running_until_it_is_answered(webui):
    body = SMALL | {"init_images": [file()], "script_name": "Loopback", "script_args": [3]}
    call, claimed = await webui.begin("img2img", **body, force_task_id="rounds")
    for number in range(3):
        before = await webui.get("progress")
        assert before["progress"] >= number / 3
        await webui.finish(claimed)
        while number < 2 and not (claims := await webui.claim()):
            now = await webui.get("progress", id_task="rounds")
            assert (now["state"]["job_count"], now["progress"] > 0) == (1, True)
        (claimed,) = claims
    await call
    assert (await webui.get("progress"))["state"]["job_count"] == 0


async def test_between_two_tasks_of_a_call_its_caller_is_told_how_much_is_done(webui):
    store = webui.api.services.store
    await webui.draw("txt2img", **SMALL)
    owner = (await store.list(owner=None)).tasks[0].owner
    await store.callers.hold(owner, "mine", 0.25)
    told = await webui.get("progress", id_task="mine")
    assert (told["progress"], told["state"]["job_count"]) == (0.25, 1)
    assert (await webui.get("progress"))["progress"] == 0.25
    assert (await webui.get("progress", id_task="other"))["progress"] == 0
    internal = await webui.api.http.post("/internal/progress", json={"id_task": "mine"})
    assert (internal.json()["active"], internal.json()["progress"]) == (True, 0.25)
    await store.callers.let_go(owner, "mine")
    assert (await webui.get("progress"))["progress"] == 0
