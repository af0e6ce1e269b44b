"""ControlNets and IP-Adapters of `generate`: what is kept, and what is refused."""

import hashlib

import pytest

ADAPTER = {"source": "/models/ip.safetensors", "image_encoder": "/models/encoder"}
MODELS = {"main": {"controlnets": {"canny": "/models/canny"}, "ip_adapters": {"face": ADAPTER}}}


@pytest.fixture
async def guided(open_api):
    return await open_api(models=MODELS)


async def refusal(api, **fields):
    answer = await api.http.post("/api/v1/generate", json={"prompt": "a fox"} | fields)
    assert answer.status_code == 422, answer.text
    (detail,) = answer.json()["detail"]
    return detail["loc"], detail["msg"]


async def test_an_order_keeps_names_numbers_and_the_pictures_as_they_were_sent(
    guided, png, data_url
):
    sketch, face = png("png", (32, 24)), png("jpeg", (48, 48))
    control = {"name": "canny", "image": data_url(sketch), "weight": 0.5, "end": 0.8}
    control |= {"preprocessor": "canny", "parameters": [50, None], "resolution": 256}
    await guided.submit(
        controlnet=[control],
        ip_adapter=[{"name": "face", "image": data_url(face, "jpeg"), "weight": 0.7}],
    )
    order = (await guided.claim()).task.input
    (kept,) = order["controls"]
    assert kept == {
        "name": "canny",
        "image_key": f"inputs/{hashlib.sha256(sketch).hexdigest()}",
        "weight": 0.5,
        "start": 0.0,
        "end": 0.8,
        "preprocessor": "canny",
        "resolution": 256,
        "parameters": [50, 200],
        "resize_mode": "crop",
        "hires": True,
        "mode": "balanced",
    }
    (prompt,) = order["image_prompts"]
    assert (prompt["name"], prompt["weight"]) == ("face", 0.7)
    assert await guided.services.objects.get(kept["image_key"]) == sketch
    assert await guided.services.objects.get(prompt["image_key"]) == face
    assert "base64" not in str(order)


async def test_without_a_picture_of_its_own_it_is_the_initial_one(guided, png, data_url):
    await guided.submit(init_image=data_url(png()), controlnet=[{"name": "canny"}])
    order = (await guided.claim()).task.input
    assert order["controls"][0]["image_key"] == order["init_image_key"]


async def test_a_repeated_call_finds_its_task_and_another_picture_is_another_call(
    guided, png, data_url
):
    first, other = (data_url(png("png", size)) for size in ((32, 32), (40, 40)))
    body = {"controlnet": [{"name": "canny", "image": first}], "idempotency_key": "k"}
    assert await guided.submit(**body) == await guided.submit(**body)
    body["controlnet"] = [{"name": "canny", "image": other}]
    answer = await guided.http.post("/api/v1/generate", json={"prompt": "a fox"} | body)
    assert answer.status_code == 409


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        (
            {"controlnet": [{"name": "depth", "image": "x"}]},
            ["body", "controlnet"],
            "controlnet must name one that this model has, given 'depth'; it has canny",
        ),
        (
            {"ip_adapter": [{"name": "canny", "image": "x"}]},
            ["body", "ip_adapter"],
            "it has face",
        ),
        ({"controlnet": [{"name": "canny"}]}, ["body", "controlnet"], "needs an image"),
        (
            {"controlnet": [{"name": "canny", "image": "AAAA"}] * 4},
            ["body", "controlnet"],
            "at most 3 entries, given 4",
        ),
        (
            {"controlnet": [{"name": "canny", "image": "AAAA"}]},
            ["body", "controlnet.0.image"],
            "is not a picture",
        ),
        (
            {"controlnet": [{"name": "canny", "image": "http://127.0.0.1:1/a.png"}]},
            ["body", "controlnet.0.image"],
            "cannot be fetched",
        ),
        (
            {"controlnet": [{"name": "canny", "image": "x", "weight": 2.5}]},
            ["body", "controlnet", 0, "weight"],
            "less than or equal to 2",
        ),
        (
            {"controlnet": [{"name": "canny", "image": "x", "preprocessor": "pose"}]},
            ["body", "controlnet", 0, "preprocessor"],
            "must be one of none, canny",
        ),
        (
            {
                "controlnet": [
                    {"name": "canny", "image": "x", "preprocessor": "canny", "parameters": [0, 1]}
                ]
            },
            ["body", "controlnet", 0],
            "Low Threshold must be 1 to 255, given 0",
        ),
        (
            {"controlnet": [{"name": "canny", "image": "x", "start": 0.6, "end": 0.5}]},
            ["body", "controlnet", 0],
            "start must be at most end",
        ),
    ],
    ids=[
        "unknown name", "name of another kind", "no picture", "too many", "no image",
        "private address", "weight", "preprocessor", "parameter", "steps",
    ],
)  # fmt: skip
async def test_what_cannot_be_honoured_is_refused_by_its_place(guided, fields, place, message):
    told = await refusal(guided, **fields)
    assert told[0] == place
    assert message in told[1]


async def test_what_preprocessors_make_for_one_call_has_a_bound_together(open_api, png, data_url):
    api = await open_api(limits={"max_input_pixels": 64 * 64})
    one = data_url(png("png", (64, 64)))
    for count, status in ((4, 200), (5, 422)):
        body = {"controlnet_module": "invert", "controlnet_input_images": [one] * count}
        answer = await api.http.post("/controlnet/detect", json=body)
        assert answer.status_code == status, answer.text
    assert "at most 16384 pixels in all" in answer.text
