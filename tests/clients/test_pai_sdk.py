"""The portrait SDK from PyPI, unchanged, against the application: real signatures, real faces, real
stages. A training keeps the photos and learns nothing; a prompt draws the same photo each time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_service_python_sdk.client.api.ai_service_aigc_images_api import AIGCImagesApi
from ai_service_python_sdk.client.api.ai_service_job_api import AiServiceJobApi
from ai_service_python_sdk.client.api_client import ApiClient
from ai_service_python_sdk.client.rest import ApiException
from PIL import Image

from configs.settings import Settings
from deployments.api.app import open_services
from deployments.api.pai.account import owner_of
from deployments.api.services import Services
from deployments.cli.demo import free_port
from deployments.local import local_redis_url
from deployments.portraits import Portraits
from deployments.tasks.errors import StoreUnavailable
from deployments.tasks.lora import OrderedLora
from deployments.tasks.model import Claimed, Output
from deployments.tasks.training import LORA_QUEUE, pictures_key
from pipelines.engine.request import ImageRequest
from pipelines.images import cover_image, decode_image, encode_image
from pipelines.portrait.errors import Fault, PortraitError
from tests.clients.conftest import Served, serving
from tests.support.portraits import PhotoHost, learned, photo_host
from tests.unit.pipelines.portrait.pictures import beside, photo, photo_file
from training.lora.source import read_archive

TOKEN = "demo-token"
FAULT = "fault: "
ROWS = {
    "app id": "400|PARAMETER_ERROR|not found appid",
    "quota": "400|EXCEEDED_QUOTA_ERROR|exceeded quota",
    "sign": "401|PARAMETER_ERROR|sign error",
    "model name": "404|PARAMETER_ERROR|model not found",
    "input": "462|error|Invalid input data. Please check the input dict.",
    "no template": "462|error|Image not provided. Please check the template_image.",
    "model id": "462|error|Prompts get error. Please check the model_id.",
    "no reference": "462|error|Roop image decord error. Pleace check the user's lora is trained "
    "or not.",
    "template": "462|error|Template image decord error. Please Give a new template.",
    "no face": "462|error|There is not face in template. Please Give a new template.",
    "template_processing": "462|error|Template image process error. Please Give a new template.",
    "first_fusion": "469|error|First Face Fusion Error, Can't get face in template image.",
    "first_repaint": "469|error|First Stable Diffusion Process error. Check the webui status.",
    "second_fusion": "469|error|Second Face Fusion Error, Can't get face in template image.",
    "second_repaint": "469|error|Second Stable Diffusion Process error. Check the webui status.",
    "faces": "469|error|Please confirm if the number of faces in the template corresponds to the "
    "user ID.",
    "background_repaint": "469|error|Third Stable Diffusion Process error. Check the webui status.",
    "face id": "500|error|Face id image decord error. Pleace check the user's lora is trained "
    "or not.",
}
"""All of the manual's. Those named as faults are of stages that no template makes fail at will."""


class Sdk:
    """Both of the SDK's APIs of one account."""

    def __init__(
        self, url: str, photos: PhotoHost, app_id: str = "ann", token: str = TOKEN
    ) -> None:
        client = ApiClient(url, app_id, token)
        self.images, self.jobs = AIGCImagesApi(client), AiServiceJobApi(client)
        self.photos = photos

    def url(self, name: str) -> str:
        return self.photos.url(photo_file(name), f"{name}.jpg")

    def trained(self, *names: str) -> str:
        """The model of a training that has ended well."""
        urls = [self.url(name) for name in names]
        made = self.images.aigc_images_train(urls, "", None)
        assert (made.code, made.message) == ("OK", "success")
        job = self.ended(made.data["job_id"])
        assert (job["state"], job["message"]) == (2, "success")
        return str(made.data["model_id"])

    def ended(self, job_id: int) -> dict[str, Any]:
        while True:
            job: dict[str, Any] = self.jobs.get_async_job_with_id(job_id).data["job"]
            if job["state"] != 1:
                return job
            time.sleep(0.05)

    def portrait(self, *args: Any) -> np.ndarray:
        """The picture of a `create` call."""
        return decoded(self.images.aigc_images_create(*args))


def decoded(response: Any) -> np.ndarray:
    assert (response.code, response.message) == ("OK", "success")
    data = base64.b64decode(response.data["image"], validate=True)
    return np.asarray(decode_image(data, max_pixels=10**7))


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ApiException) as refused:
        call()
    body = json.loads(refused.value.body)
    assert body["data"] == {}
    return f"{refused.value.status}|{body['code']}|{body['message']}"


class Workers:
    """Claim what the application queues."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def run(self) -> None:
        services = open_services(self._settings)
        redis_url = local_redis_url(self._settings.data_dir)
        portraits = Portraits(self._settings, redis_url=redis_url, draw=_drawn)
        try:
            while True:
                with contextlib.suppress(StoreUnavailable):  # a machine that is busy
                    await _train_one(services)
        finally:
            await portraits.drain()
            await services.close()


async def _train_one(services: Services) -> None:
    for claimed in await services.store.claim(
        LORA_QUEUE, "trainer", limit=1, request_id=uuid.uuid4().hex
    ):
        await _learned(services, claimed)
    await services.store.wait_for_work(LORA_QUEUE, timeout_s=0.2)


async def _learned(services: Services, claimed: Claimed) -> None:
    task = claimed.task
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "pictures.zip")
        await services.objects.fetch(pictures_key(task.id), archive)
        photos = [example.data for example in read_archive(archive)]
    lora = await learned(services, task.owner, photos, task_id=task.id)
    output = Output(key=lora.newest.key, content_type="x", lora_id=lora.id)
    await services.store.succeed(claimed.claim, [output])


async def _drawn(_model: str, request: ImageRequest, _loras: Sequence[OrderedLora]) -> np.ndarray:
    """What is repainted stays as it is; a template is always the same photo, or a fault."""
    if named := re.search(FAULT + r"(\w+)", request.prompt):
        raise PortraitError(Fault(named[1]), "why")
    if request.init_image is not None:
        return request.init_image
    size = (request.width, request.height)
    return np.asarray(cover_image(Image.fromarray(photo("ardern")), *size))


@pytest.fixture(scope="module")
def photos() -> Iterator[PhotoHost]:
    with photo_host() as host:
        yield host


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, photos: PhotoHost) -> Settings:
    allowed = {"allowed_private_hosts": [photos.netloc]}
    accounts = [("ann", TOKEN, None), ("poor", TOKEN, 0)]
    return Settings(
        data_dir=tmp_path_factory.mktemp("pai"),
        http={"port": free_port()},
        pai={
            "accounts": [
                {"app_id": app_id, "token": token, "calls": calls}
                for app_id, token, calls in accounts
            ],
            "xl_model": "embedded",
            "answer_within_s": 600,
        },
        portraits=allowed,
        training=allowed,
        tasks={"deadline_s": 20, "lease_s": 600},
    )


@pytest.fixture(scope="module")
def served_pai(settings: Settings) -> Iterator[Served]:
    with serving(settings, lambda: Workers(settings).run()) as found:
        yield found


@pytest.fixture(scope="module")
def sdk(served_pai: Served, photos: PhotoHost) -> Sdk:
    return Sdk(served_pai.url, photos)


@pytest.fixture(scope="module")
def model_id(sdk: Sdk) -> str:
    return sdk.trained("obama", "obama")


def test_photos_are_checked(sdk):
    urls = [sdk.url("obama"), sdk.url("obama"), sdk.url("ardern"), sdk.photos.missing()]
    response = sdk.images.aigc_images_check(urls, "", None)
    assert (response.code, response.message) == ("OK", "success")
    assert response.data["images"] == urls
    found = response.data["check_results"]
    assert [(each["code"], each["url"]) for each in found] == list(
        zip([1, 1, 6, 2], urls, strict=True)
    )


def test_a_training_is_polled_until_it_has_ended(sdk):
    urls = [sdk.url("obama"), sdk.photos.missing(), sdk.url("obama")]
    made = sdk.images.aigc_images_train(urls, "train_xl", {"train_scene_lora_bool": False})
    job = sdk.ended(made.data["job_id"])
    assert job["app_id"] == "ann"
    result = json.loads(job["result"])
    assert result["model_id"] == made.data["model_id"]
    assert [each["code"] for each in result["states"]] == [1, 2, 1]
    batch = sdk.jobs.get_batch_job_with_id(made.data["job_id"])
    assert batch.data["state"] == 2


def test_a_portrait_is_the_template_with_another_face(sdk, model_id):
    config = {"lora_weights": 0.9, "more_like_me": 1, "background_restore": False}
    found = sdk.portrait(model_id, sdk.url("ardern"), "", config)
    template = photo("ardern").astype(int)
    assert found.shape == template.shape
    changed = np.abs(found.astype(int) - template).max(axis=2) > 40
    assert changed[:20].mean() < 0.01
    assert changed[template.shape[0] // 3 : template.shape[0] // 2].mean() > 0.05


def test_several_people_are_in_one_portrait(sdk, model_id):
    other = sdk.trained("collins")
    two = encode_image(beside(photo("ardern"), photo("obama")), "png")[0]
    response = sdk.images.aigc_images_create_by_multi_model_ids(
        [model_id, other], sdk.photos.url(two), "", None
    )
    assert decoded(response).shape == beside(photo("ardern"), photo("obama")).shape


def test_one_photo_is_enough(sdk):
    config = {"ipa_control_only": True, "ipa_weight": 0.6, "ipa_image_path": sdk.url("obama")}
    assert sdk.portrait("", sdk.url("ardern"), "", config).shape == photo("ardern").shape


def test_a_prompt_makes_the_template(sdk, model_id):
    config = {"t2i_prompt": "(portrait:1.5), 1girl"}
    drawn = sdk.portrait(model_id, "https://demo.jpg", "", config)
    xl = sdk.portrait(model_id, "t2i_generate", "create_xl", config)
    assert xl.shape == drawn.shape
    assert drawn.std() > 20


def test_every_error_of_the_manual_has_its_words(sdk, served_pai, settings, photos, model_id):
    lost = sdk.trained("collins")
    asyncio.run(_lose_photos(settings, lost))
    template, create = sdk.url("ardern"), sdk.images.aigc_images_create
    urls, missing = [template], photos.missing()
    nobody = photos.url(encode_image(np.full((128, 128, 3), 99, np.uint8), "png")[0])
    found = {
        "app id": refusal(
            lambda: Sdk(served_pai.url, photos, "eve").images.aigc_images_check(urls, "", None)
        ),
        "quota": refusal(
            lambda: Sdk(served_pai.url, photos, "poor").images.aigc_images_check(urls, "", None)
        ),
        "sign": refusal(
            lambda: Sdk(served_pai.url, photos, "ann", "x").images.aigc_images_check(urls, "", None)
        ),
        "model name": refusal(lambda: create(model_id, template, "photog_infer_test2", None)),
        "input": refusal(lambda: create(model_id, template, "", {"more_like_me": 7})),
        "no template": refusal(lambda: create(model_id, "", "", None)),
        "model id": refusal(lambda: create("foto10", template, "", None)),
        "no reference": refusal(
            lambda: create("", template, "", {"ipa_control_only": True, "ipa_image_path": missing})
        ),
        "template": refusal(lambda: create(model_id, missing, "", {})),
        "no face": refusal(lambda: create(model_id, nobody, "", {})),
        "faces": refusal(
            lambda: sdk.images.aigc_images_create_by_multi_model_ids(
                [model_id, model_id], template, "", None
            )
        ),
        "face id": refusal(lambda: create(lost, template, "", None)),
    }
    for row in set(ROWS) - set(found):
        prompt = {"t2i_prompt": FAULT + Fault(row).value}
        found[row] = refusal(lambda prompt=prompt: create(model_id, "", "", prompt))
    assert found == ROWS


async def _lose_photos(settings: Settings, model_id: str) -> None:
    services = open_services(settings, local_redis_url(settings.data_dir))
    try:
        lora = await services.loras.registry.store.trained(model_id, owner=owner_of("ann"))
        for key in lora.newest.references:
            await services.objects.delete(key)
    finally:
        await services.close()
