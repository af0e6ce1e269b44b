"""Portraits: who is put where, and every row of the manual that refuses one."""

import asyncio
import base64
import io
import json
import uuid

import numpy as np
import pytest
from PIL import Image

from deployments.api.pai.error import FAULTS
from deployments.tasks.exchange import Beat
from deployments.tasks.image import ImageOrder
from deployments.tasks.model import Progress
from pipelines.lora.header import PROMPTS
from tests.contract.api.pai.conftest import RESULT, created, told
from tests.support.portraits import learned
from tests.unit.pipelines.portrait.pictures import beside, photo, photo_file

INVALID = "462|error|Invalid input data. Please check the input dict."
NO_TEMPLATE = "462|error|Image not provided. Please check the template_image."
UNKNOWN_PERSON = "462|error|Prompts get error. Please check the model_id."
NO_REFERENCE = "462|error|Roop image decord error. Pleace check the user's lora is trained or not."
TEMPLATE = "462|error|Template image decord error. Please Give a new template."
NO_FACE = "462|error|There is not face in template. Please Give a new template."
FACE_COUNT = (
    "469|error|Please confirm if the number of faces in the template corresponds to the user ID."
)
FACE_ID = "500|error|Face id image decord error. Pleace check the user's lora is trained or not."
UNKNOWN_MODEL = "404|PARAMETER_ERROR|model not found"


async def test_one_person_is_put_into_a_template(pai):
    lora = await pai.learned()
    configure = {"lora_weights": 0.9, "first_denoising_strength": 1, "unheard_of": [1]}
    order, answer = await created(
        pai,
        model_id=lora.name,
        template_image=pai.url("ardern"),
        model_name="",
        configure=configure,
        model_ids=None,
        action="AIGCImageCreate",
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["code"], body["message"]) == ("OK", "success")
    assert list(body["data"]) == ["image", "cost_time"]
    assert base64.b64decode(body["data"]["image"], validate=True) == RESULT
    assert isinstance(body["data"]["cost_time"], float)
    (person,) = order.people
    assert person.references == lora.newest.references
    assert person.lora.id == lora.id
    assert (order.parameters["first_denoising_strength"], order.output_format) == (1, "jpeg")
    assert not order.sdxl


async def test_several_people_are_put_in_from_left_to_right(pai):
    loras = [await pai.learned(name) for name in ("obama", "collins")]
    both = io.BytesIO()
    Image.fromarray(beside(photo("ardern"), photo("obama"))).save(both, "png")
    order, answer = await created(
        pai,
        model_id="",
        model_ids=[lora.name for lora in loras],
        template_image=pai.photos.url(both.getvalue()),
    )
    assert answer.status_code == 200, answer.text
    assert [person.lora.id for person in order.people] == [lora.id for lora in loras]


async def test_a_model_is_also_named_by_its_lora_s_id_and_name(pai):
    lora = await pai.learned()
    for name in (lora.id, lora.name, lora.name.upper()):
        order, _ = await created(pai, model_id=name, template_image=pai.url("ardern"))
        assert order.people[0].lora.id == lora.id


async def test_one_photo_is_enough_with_ipa_control_only(pai):
    configure = {"ipa_control_only": True, "ipa_weight": 0.6, "ipa_image_path": pai.url("obama")}
    order, answer = await created(
        pai, model_id="", template_image=pai.url("ardern"), configure=configure
    )
    assert answer.status_code == 200, answer.text
    (person,) = order.people
    assert person.lora is None
    assert await pai.api.services.objects.get(person.references[0]) == photo_file("obama")
    assert await pai.api.services.objects.get(order.ipa_image) == photo_file("obama")
    assert pai.photos.asked(configure["ipa_image_path"]) == 1


@pytest.mark.parametrize("template", ["", "t2i_generate", "https://demo.jpg", None])
async def test_a_prompt_draws_the_template_whatever_is_sent_for_one(pai, template):
    lora = await pai.learned()
    configure = {"t2i_prompt": "a garden", "scene_id": ""}
    order, answer = await created(
        pai, model_id=lora.name, template_image=template, configure=configure
    )
    assert answer.status_code == 200, answer.text
    assert (order.template, order.prompt) == (None, "a garden")


async def test_a_scene_is_named_by_the_id_of_its_training(pai):
    lora, scene = await pai.learned(), await learned(pai.api.services, pai.owner, [])
    order, _ = await created(
        pai,
        model_id=lora.name,
        template_image="t2i_generate",
        configure={"scene_id": scene.name},
    )
    assert order.scene.id == scene.id


async def test_a_scene_without_a_prompt_is_drawn_by_one_of_its_own(pai):
    told = {PROMPTS: "a beach\na garden"}
    lora, scene = await pai.learned(), await learned(pai.api.services, pai.owner, [], metadata=told)
    configure, drawn = {"scene_id": scene.name}, set()
    for _ in range(40):  # each with a seed of its own
        order, _ = await created(pai, model_id=lora.name, configure=configure)
        drawn.add(order.prompt)
        if len(drawn) == 2:
            break
    assert drawn == {"a beach", "a garden"}
    order, _ = await created(
        pai, model_id=lora.name, configure=configure | {"t2i_prompt": "a street"}
    )
    assert order.prompt == "a street"


async def test_an_sdxl_is_used_by_its_name_where_one_is_set(open_pai):
    pai = await open_pai(xl_model="embedded", output_format="png")
    lora = await pai.learned()
    body = {"model_id": lora.name, "template_image": pai.url("ardern")}
    order, _ = await created(pai, **body, model_name="create_xl")
    assert order.sdxl
    assert order.output_format == "png"
    for name in ("create_xxl", "photog_infer_test2"):
        assert told(await pai.aigc("create", **body, model_name=name)) == UNKNOWN_MODEL


async def test_an_sdxl_that_is_not_served_is_not_found(pai):
    answer = await pai.aigc("create", model_id="x", template_image="y", model_name="create_xl")
    assert told(answer) == UNKNOWN_MODEL


async def test_input_that_is_none_is_refused(pai):
    lora = await pai.learned()
    good = {"model_id": lora.name, "template_image": pai.url("ardern")}
    for body in (
        b"", b"[]", b"{", b'{"model_id": 5}',
        json.dumps(good | {"configure": {"more_like_me": 7}}).encode(),
        json.dumps(good | {"configure": {"ipa_control_only": True}}).encode(),
        json.dumps(good | {"configure": {"ipa_control_only": "yes"}}).encode(),
        json.dumps(good | {"configure": {"style_name": "Cubist"}}).encode(),
    ):  # fmt: skip
        answer = await pai.post("/api/v1/aigc_images/create", body)
        assert told(answer) == INVALID, body
        assert answer.headers["x-error-detail"]


async def test_without_a_template_or_a_prompt_there_is_no_portrait(pai):
    lora = await pai.learned()
    for template in ("", None, "t2i_generate"):
        answer = await pai.aigc("create", model_id=lora.name, template_image=template)
        assert told(answer) == NO_TEMPLATE


async def test_a_model_that_nobody_trained_is_unknown(pai):
    template = pai.url("ardern")
    theirs = await learned(pai.api.services, "someone", [photo_file("obama")])
    for name in ("", "nonsense", str(uuid.uuid4()), theirs.name, theirs.id):
        answer = await pai.aigc("create", model_id=name, template_image=template)
        assert told(answer) == UNKNOWN_PERSON, name
        answer = await pai.aigc("create", model_id=name, template_image=pai.photos.missing())
        assert told(answer) == UNKNOWN_PERSON, "before its template is fetched"
    lora = await pai.learned()
    answer = await pai.aigc("create", model_ids=[lora.name, ""], template_image=template)
    assert told(answer) == UNKNOWN_PERSON
    answer = await pai.aigc("create", model_id=lora.name, template_image=pai.photos.missing())
    assert told(answer) == TEMPLATE
    assert not await pai.api.services.loras.registry.store.holds()


async def test_a_model_that_is_not_trained_yet_has_no_reference(pai):
    template = pai.url("ardern")
    made = (await pai.aigc("train", images=[pai.url("obama")])).json()["data"]
    waiting = await pai.aigc("create", model_id=made["model_id"], template_image=template)
    assert told(waiting) == NO_REFERENCE
    assert "queued" in waiting.headers["x-error-detail"]
    plain = await learned(pai.api.services, pai.owner, [])
    for name in (plain.name, plain.id):
        answer = await pai.aigc("create", model_id=name, template_image=template)
        assert told(answer) == NO_REFERENCE
    for photo_of_nobody in (pai.photos.missing(), pai.photos.url(b"no picture")):
        configure = {"ipa_control_only": True, "ipa_image_path": photo_of_nobody}
        answer = await pai.aigc("create", template_image=template, configure=configure)
        assert told(answer) == NO_REFERENCE


async def test_a_reference_that_is_lost_or_damaged_is_told(pai):
    template = pai.url("ardern")
    damaged, lost = await learned(pai.api.services, pai.owner, [b"no picture"]), await pai.learned()
    await pai.api.services.objects.delete(lost.newest.references[0])
    for lora in (damaged, lost):
        answer = await pai.aigc("create", model_id=lora.name, template_image=template)
        assert told(answer) == FACE_ID


async def test_a_template_that_is_no_picture_is_refused(pai):
    lora = await pai.learned()
    for template in (pai.photos.missing(), pai.photos.url(b"x"), "http://127.0.0.1:1/", "x"):
        answer = await pai.aigc("create", model_id=lora.name, template_image=template)
        assert told(answer) == TEMPLATE, template
        assert answer.headers["x-error-detail"]


async def test_a_template_must_have_as_many_faces_as_there_are_people(pai, grey):
    lora = await pai.learned()
    nobody = await pai.aigc("create", model_id=lora.name, template_image=pai.photos.url(grey))
    assert told(nobody) == NO_FACE
    answer = await pai.aigc("create", model_ids=[lora.name] * 2, template_image=pai.url("ardern"))
    assert told(answer) == FACE_COUNT
    assert "it has 1" in answer.headers["x-error-detail"]


async def test_a_stage_that_fails_is_told_by_its_row(pai):
    lora = await pai.learned()
    body = {"model_id": lora.name, "template_image": pai.url("ardern")}
    for fault, row in FAULTS.items():
        _, answer = await created(pai, lambda c, f=fault: pai.fail(c, f.value), **body)
        assert told(answer) == "|".join(map(str, row.value))
    _, answer = await created(pai, lambda c: pai.fail(c, "worker_lost", "it died"), **body)
    assert told(answer) == "500|error|it died"


class Patience:
    """Stands for asyncio where the answer is waited for: the time is up when a test says so."""

    def __init__(self):
        self.waits = []

    def timeout(self, within_s):
        assert 0 <= within_s <= 90
        self.waits.append(asyncio.timeout(None))
        return self.waits[-1]

    async def end(self):
        while not self.waits:
            await asyncio.sleep(0.01)
        self.waits[-1].reschedule(asyncio.get_running_loop().time())


async def test_a_portrait_that_takes_too_long_goes_on_as_a_job(open_pai, monkeypatch):
    pai = await open_pai(answer_within_s=90, calls=1)
    lora, held, patience = await pai.learned(), [], Patience()
    monkeypatch.setattr("deployments.api.pai.routes.asyncio", patience)

    async def begin(claimed):
        held.append(claimed)
        progress = Progress(step=3, steps=14, stage="repaint_first")
        await pai.api.services.store.renew([Beat(claimed.claim, progress)])
        await patience.end()

    _, answer = await created(pai, begin, model_id=lora.name, template_image=pai.url("ardern"))
    number, task = 1, held[0].task.id
    assert told(answer) == (
        "469|error|The portrait took longer than 90 s and was in its stage repaint_first. It goes "
        f"on as job {number}: ask for /api/v1/async_jobs/{number} (task {task})."
    )
    job = await pai.job(number)
    assert (job["state"], job["message"], job["result"]) == (1, "running", "")
    await pai.succeed(held[0], RESULT)
    job = await pai.job(number)
    assert job["state"] == 2
    assert base64.b64decode(json.loads(job["result"])["image"]) == RESULT
    again = await pai.aigc("create", model_id=lora.name, template_image=pai.url("ardern"))
    assert told(again) == "400|EXCEEDED_QUOTA_ERROR|exceeded quota"


async def drawn(pai, **configure):
    """The order that `aigc_images_sd` made, and its answer."""
    call = asyncio.create_task(pai.aigc("sd", model_name="", configure=configure))
    claimed = await pai.claim(pai.api.settings.default_model)
    await pai.succeed(claimed, RESULT)
    answer = await call
    assert base64.b64decode(answer.json()["data"]["image"]) == RESULT
    return ImageOrder.model_validate(claimed.task.input)


async def pixels(pai, key):
    data = await pai.api.services.objects.get(key)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


async def test_a_prompt_becomes_a_picture(pai):
    order = await drawn(
        pai, prompt="a fox", output_width=64, output_height=128, steps=3, seed=5, nonsense=1
    )
    assert (order.prompt, order.width, order.height) == ("a fox", 64, 128)
    assert (order.num_inference_steps, order.seed, order.init_image_key) == (3, 5, None)


async def test_a_picture_is_outpainted_around_its_middle(pai):
    order = await drawn(
        pai, task="outpaint", input_image=pai.url("collins"), output_width=320, output_height=256
    )
    canvas = await pixels(pai, order.init_image_key)
    mask = await pixels(pai, order.mask_image_key)
    assert canvas.shape == mask.shape == (256, 320, 3)
    left = (320 - photo("collins").shape[1]) // 2
    np.testing.assert_array_equal(canvas[:, left : left + 217], photo("collins"))
    assert set(np.unique(mask)) == {0, 255}
    assert mask[:, left + 16 : left + 201].max() == 0
    assert mask[:, : left + 16].min() == mask[:, left + 201 :].min() == 255


async def test_a_picture_is_changed_whole_or_within_a_mask(pai, grey):
    whole = await drawn(pai, prompt="a fox", input_image=pai.photos.url(grey), strength=0.4)
    assert (whole.strength, whole.mask_image_key) == (0.4, None)
    part = await drawn(
        pai, input_image=pai.photos.url(grey), mask_image=pai.photos.url(grey), output_width=64
    )
    assert part.mask_image_key


@pytest.mark.parametrize(
    "configure",
    [
        {"task": "dance"},
        {"task": "outpaint", "output_width": 64, "output_height": 64},
        {"task": "inpaint", "input_image": "%photo%"},
        {"task": "text_to_image", "input_image": "%photo%"},
        {"task": "outpaint", "input_image": "%photo%", "output_width": 64},
        {"task": "outpaint", "input_image": "%photo%", "output_width": 63, "output_height": 64},
        {"input_image": "http://127.0.0.1:1/x.png"},
        {"prompt": 5},
        {"prompt": "a fox", "steps": 100_000},
    ],
    ids=["task", "no picture", "no mask", "a picture", "no size", "odd", "fetch", "text", "steps"],
)
async def test_what_cannot_be_drawn_is_refused(pai, configure):
    text = json.dumps(configure).replace("%photo%", pai.url("collins"))
    answer = await pai.aigc("sd", configure=json.loads(text))
    assert told(answer) == INVALID
    assert answer.headers["x-error-detail"]
