"""This dialect's words as what the services take."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import fields
from typing import Any

from configs.settings import Settings
from deployments.api.pai.error import Refused, Row
from deployments.api.pai.schema import DRAWN, Body
from deployments.api.portraits import PortraitSubmission, SentPerson
from deployments.api.services import Services
from deployments.loras.errors import LoraNotFound
from deployments.loras.model import Lora, is_id
from deployments.storage.store import ObjectNotFound
from deployments.tasks.errors import TaskNotFound
from deployments.tasks.lora import NamedLora
from pipelines.errors import InvalidImage
from pipelines.images import decode_image
from pipelines.portrait.parameters import PortraitParameters

XL_NAMES = frozenset({"train_xl", "create_xl"})
_DRAWING = ("t2i_prompt", "scene_id")
_FACE = "ipa_image_path"


def base_model(body: Body, settings: Settings) -> tuple[str, bool]:
    """The model's name in the settings, and whether it is an SDXL. Raises Refused."""
    name = body.model_name
    if name in XL_NAMES and settings.pai.xl_model is not None:
        return settings.pai.xl_model, True
    if not name:
        return settings.portraits.model or settings.default_model, False
    if name not in settings.models:
        raise Refused(Row.UNKNOWN_MODEL)
    return name, name == settings.pai.xl_model


async def portrait_of(body: Body, services: Services, owner: str) -> PortraitSubmission:
    """Raises Refused."""
    model, sdxl = base_model(body, services.settings)
    if not services.settings.portraits.enabled:
        raise Refused(Row.UNKNOWN_MODEL, "no portraits are made here")
    drawn = any(body.text(name) for name in _DRAWING)
    template = body.template_image
    if not drawn and template in ("", DRAWN):
        raise Refused(Row.NO_TEMPLATE)
    parameters = _parameters(body)
    if scene_id := body.text("scene_id"):
        scene = await _lora(services, scene_id, owner)
        parameters["scene_id"] = scene.name or scene.id
    return PortraitSubmission(
        people=await _people(body, services, owner),
        template=None if drawn else template,
        parameters=parameters,
        sdxl=sdxl,
        model=model,
        output_format=services.settings.pai.output_format,
    )


def _parameters(body: Body) -> dict[str, Any]:
    """What portraits know of `configure`; users send the keys of other models too."""
    known = {field.name: body.configure.get(field.name) for field in fields(PortraitParameters)}
    given = {name: each.strip() if isinstance(each, str) else each for name, each in known.items()}
    wanted = {name: value for name, value in given.items() if value not in (None, "")}
    if not body.text(_FACE) or not (body.flag("ipa_control") or body.flag("ipa_control_only")):
        wanted.pop(_FACE, None)  # nobody looks at it
    return wanted


async def _people(body: Body, services: Services, owner: str) -> list[SentPerson]:
    if body.flag("ipa_control_only"):
        photo = body.text(_FACE)
        if not photo:
            raise Refused(Row.INVALID_INPUT, f"ipa_control_only needs {_FACE}, given none")
        return [SentPerson(photos=[photo])]
    if not all(body.model_ids) or not body.model_ids:
        raise Refused(Row.UNKNOWN_PERSON, "model_id or model_ids must be given")
    loras = [
        await _lora(services, model_id, owner, of_a_person=True) for model_id in body.model_ids
    ]
    return [
        SentPerson(lora=lora, name=name) for lora, name in zip(loras, body.model_ids, strict=True)
    ]


async def _lora(
    services: Services, model_id: str, owner: str, *, of_a_person: bool = False
) -> NamedLora:
    """By the id of its training, as this API hands out, by its own id or by its name."""
    lora = await _found(services, model_id, owner)
    if lora is None:
        return NamedLora(model_id)
    if of_a_person:
        await _check_reference(services, lora)
    return NamedLora(lora.name, lora.id)


async def _found(services: Services, model_id: str, owner: str) -> Lora | None:
    """None for what can only be a name. Raises Refused, LoraNotFound."""
    store = services.loras.registry.store
    if is_id(model_id):
        return await store.get(model_id, owner=owner)
    try:
        task_id = str(uuid.UUID(model_id))
    except ValueError:
        return None
    if lora := await store.trained(task_id, owner=owner):
        return lora
    with contextlib.suppress(TaskNotFound):
        task = await services.task(task_id, owner)
        raise Refused(Row.NO_REFERENCE, f"the training of this model is {task.status}")
    raise LoraNotFound(model_id)


async def _check_reference(services: Services, lora: Lora) -> None:
    references = lora.newest.references
    if not references:
        raise Refused(Row.NO_REFERENCE, "the model keeps no photos of its person")
    try:
        photo = await services.objects.get(references[0])
        most = services.settings.limits.max_input_pixels
        await asyncio.to_thread(decode_image, photo, max_pixels=most)
    except (ObjectNotFound, InvalidImage) as error:
        raise Refused(Row.REFERENCE_DECODING, str(error)) from None
