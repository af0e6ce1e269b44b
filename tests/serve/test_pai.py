"""The portrait SDK from PyPI, unchanged: the whole way through the whole application."""

import base64
import json

import numpy as np
import pytest
from ai_service_python_sdk.client.api.ai_service_aigc_images_api import AIGCImagesApi
from ai_service_python_sdk.client.api.ai_service_job_api import AiServiceJobApi
from ai_service_python_sdk.client.api_client import ApiClient

from benchmarks.portrait_avatars import Case, cases
from pipelines.images import decode_image, encode_image
from pipelines.portrait.faces import FaceReader
from tests.support.portraits import PhotoHost
from tests.support.serving import Served, until
from training.embedded_model.attributes import Attributes
from training.embedded_model.measure import colour_of
from training.embedded_model.render import render


@pytest.fixture(scope="module")
def case() -> Case:
    (found,) = cases(1, 0, FaceReader())
    return found


def test_checked_trained_polled_and_drawn_the_person_is_in_the_template(
    served: Served, photos: PhotoHost, case: Case
) -> None:
    def url(avatar: Attributes) -> str:
        return photos.url(encode_image(render(avatar), "png")[0], "avatar.png")

    client = ApiClient(served.base_url, "ann", "demo-token")
    images, jobs = AIGCImagesApi(client), AiServiceJobApi(client)
    urls = [url(photo) for photo in case.photos]
    checked = images.aigc_images_check(urls, "", None)
    assert [each["code"] for each in checked.data["check_results"]] == [1] * len(urls)

    trained = images.aigc_images_train(urls, "", None)
    job = until(lambda: ended(jobs, trained.data["job_id"]), 600, 0.5)
    assert (job["state"], job["message"]) == (2, "success"), job
    assert json.loads(job["result"])["model_id"] == trained.data["model_id"]

    made = images.aigc_images_create(trained.data["model_id"], url(case.template), "", None)
    assert (made.code, made.message) == ("OK", "success")
    picture = np.asarray(decode_image(base64.b64decode(made.data["image"]), max_pixels=10**6))
    assert picture.shape == render(case.template).shape
    # not the hair: of so few steps the LoRA knows little of it
    for part in ("skin", "background", "clothes_colour"):
        assert colour_of(picture, case.expected, part) == getattr(case.expected, part), part


def ended(jobs: AiServiceJobApi, job_id: int) -> dict[str, object] | None:
    job: dict[str, object] = jobs.get_async_job_with_id(job_id).data["job"]
    return None if job["state"] == 1 else job
