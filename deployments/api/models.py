"""Models as a gallery has them: planned, trained, or what is served, under one id."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError

from deployments.api.errors import shown
from deployments.api.training import NamedPicture, NewTraining
from deployments.drafts.errors import DraftNotFound, Locked
from deployments.drafts.model import Dataset, Draft, Kind, ModelPlan, Pictures
from deployments.drafts.store import Drafts, DraftStore
from deployments.loras.errors import LoraNotFound
from deployments.loras.model import Changes, Filter, Lora, Visibility, is_id
from deployments.loras.store import MAX_PAGE
from deployments.tasks import model as tasks
from deployments.tasks.errors import TaskNotFound
from deployments.tasks.model import TERMINAL, Status, Task
from pipelines.errors import InvalidRequest
from training.lora.job import LoraJob

if TYPE_CHECKING:
    from deployments.api.services import Services

Model: TypeAlias = Draft | Task | Lora | str
"""Planned; being trained, or failed at it; a LoRA; a configured model's name.

The id of a plan becomes its task's, and stays what its LoRA is found by.
"""

_FIELDS = {"pictures": "data", "model": "source"}
"""What trainings call a field, and plans."""


@dataclass(frozen=True, kw_only=True)
class PlanChanges:
    """None leaves a field as it is."""

    name: str | None = None
    visibility: Visibility | None = None
    trigger_words: tuple[str, ...] | None = None
    model: str | None = None
    job: LoraJob | None = None
    data: Pictures | None = None

    @property
    def of_a_lora(self) -> bool:
        """Whether a LoRA could be changed so."""
        return self.model is None and self.job is None and self.data is None


class ModelService:
    """Each verb may raise StoreUnavailable, and StorageUnavailable where it touches files."""

    def __init__(self, services: Services, drafts: DraftStore) -> None:
        self._services, self.drafts = services, drafts
        self._limits = services.settings.limits

    async def plan(self, name: str, changes: PlanChanges, owner: str) -> Draft:
        """A model as all defaults have it but for the changes; nothing is trained before `change`
        says it is ready. Raises InvalidRequest, TooManyDrafts."""
        model = self._services.settings.default_model
        plan = _changed(ModelPlan(name=name, model=model), changes)
        await self._check(plan, owner)
        return await self.drafts.create(plan, owner=owner, most=self._limits.max_drafts)

    async def find(self, model_id: str, owner: str) -> Model:
        """Raises DraftNotFound, LoraNotFound; also for someone else's private one."""
        if model_id in self._services.settings.models:
            return model_id
        if is_id(model_id):
            return await self._services.loras.get(model_id, owner)
        with contextlib.suppress(ValueError):
            found = await self._by_task(str(uuid.UUID(model_id)), owner)
            if found is not None:
                return found
        raise DraftNotFound(Kind.MODEL, model_id)

    async def _by_task(self, task_id: str, owner: str) -> Model | None:
        if lora := await self._services.loras.registry.store.trained(task_id, owner=owner):
            return lora
        with contextlib.suppress(TaskNotFound):
            task = await self._services.store.get(task_id, owner=owner)
            trains = task.kind is tasks.Kind.LORA and task.status is not Status.SUCCEEDED
            return task if trains else None
        return await self.drafts.get(Kind.MODEL, task_id, owner=owner)

    async def list(self, owner: str, chosen: Filter) -> AsyncIterator[Model]:
        """All that an owner may see: plans, trainings, LoRAs, configured models; each kind the
        newest first. `chosen` is about LoRAs."""
        trainings = [task async for task in self._trainings(owner)]
        ids = {task.id for task in trainings}
        for draft in await self.plans(owner):
            if draft.id not in ids:
                yield draft
        for task in trainings:
            yield task
        cursor: str | None = None
        while True:
            page = await self._services.loras.list(owner, chosen, MAX_PAGE, cursor)
            for lora in page.loras:
                yield lora
            if (cursor := page.next_cursor) is None:
                break
        for name in self._services.settings.models:
            yield name

    async def _trainings(self, owner: str) -> AsyncIterator[Task]:
        cursor: str | None = None
        while True:
            page = await self._services.store.list(
                owner=owner, kind=tasks.Kind.LORA, limit=MAX_PAGE, cursor=cursor
            )
            for task in page.tasks:
                if task.status is not Status.SUCCEEDED:
                    yield task
            if (cursor := page.next_cursor) is None:
                return

    async def plans(self, owner: str) -> Drafts:
        """Models that were not made ready, the newest first."""
        return await self.drafts.list(Kind.MODEL, owner=owner)

    async def change(
        self, model_id: str, changes: PlanChanges, owner: str, *, ready: bool = False
    ) -> Model:
        """`ready` queues a plan: its pictures are judged, and it is a task.

        Raises DraftNotFound, LoraNotFound, Locked, NameTaken, TooManyLoras, QueueFull,
        InvalidRequest.
        """
        found = await self.find(model_id, owner)
        if isinstance(found, Draft):
            return await self._change_plan(found, changes, ready)
        if isinstance(found, Lora) and found.owner != owner:
            raise LoraNotFound(model_id)
        if isinstance(found, Lora) and changes.of_a_lora and not ready:
            return await self._services.loras.update(
                found.id,
                Changes(
                    name=changes.name,
                    visibility=changes.visibility,
                    trigger_words=changes.trigger_words,
                ),
                None,
                owner,
            )
        raise Locked(_why_locked(found))

    async def delete(self, model_id: str, owner: str) -> Model:
        """Raises DraftNotFound, LoraNotFound, Locked."""
        found = await self.find(model_id, owner)
        if isinstance(found, Draft):
            return await self.drafts.delete(found)
        if isinstance(found, Lora):
            return await self._services.loras.delete(found.id, owner)
        if isinstance(found, Task) and found.status in TERMINAL:
            return await self._services.delete(found.id, owner)
        raise Locked(_why_locked(found))

    async def add_dataset(self, dataset: Dataset, owner: str) -> Draft:
        """Raises InvalidRequest, TooManyDrafts."""
        await self._check(dataset, owner)
        return await self.drafts.create(dataset, owner=owner, most=self._limits.max_drafts)

    async def change_dataset(self, draft_id: str, changes: dict[str, object], owner: str) -> Draft:
        """Raises DraftNotFound, InvalidRequest."""
        draft = await self.dataset(draft_id, owner)
        changed = draft.dataset.model_copy(update=changes)
        await self._check(changed, owner)
        return await self.drafts.update(draft, changed)

    async def dataset(self, draft_id: str, owner: str) -> Draft:
        """Raises DraftNotFound."""
        return await self.drafts.get(Kind.DATASET, draft_id, owner=owner)

    async def sweep(self) -> None:
        """Remove what nobody changed or used for long."""
        while await self.drafts.sweep(self._limits.draft_retention_s):
            pass

    async def _change_plan(self, draft: Draft, changes: PlanChanges, ready: bool) -> Model:
        plan = _changed(draft.plan, changes)
        if plan != draft.plan:
            await self._check(plan, draft.owner)
            draft = await self.drafts.update(draft, plan)
        if not ready:
            return draft
        if not self._services.settings.training.enabled:
            raise InvalidRequest("status", "status cannot be ready: nothing is trained here")
        async with self.drafts.becoming_a_task(draft) as held:
            new = await self._training(held)
            try:
                return await self._services.train(new, held.owner)
            except InvalidRequest as error:
                field = _FIELDS.get(error.field, error.field)
                raise InvalidRequest(field, str(error)) from error

    async def _training(self, draft: Draft) -> NewTraining:
        plan = draft.plan
        pictures = _named("data", plan.data)
        most = self._services.settings.training.max_pictures
        for number, dataset_id in enumerate(dict.fromkeys(plan.data.choices)):
            dataset = await self._choice(number, dataset_id, draft.owner)
            pictures += _named(f"data.choices.{number}", dataset.dataset.data)
            await self.drafts.update(dataset, dataset.dataset)  # it is in use: its age begins anew
            if len(pictures) > most:
                raise InvalidRequest(
                    "data", f"data must name at most {most} pictures, given {len(pictures)} or more"
                )
        return NewTraining(
            name=plan.name,
            job=plan.job,
            model=plan.model,
            visibility=plan.visibility,
            pictures=pictures,
            task_id=draft.id,
        )

    async def _check(self, body: ModelPlan | Dataset, owner: str) -> None:
        models = self._services.settings.models
        if isinstance(body, ModelPlan) and body.model not in models:
            raise InvalidRequest(
                "source", f"source must be one of {list(models)}, given {shown(body.model)}"
            )
        most, given = self._services.settings.training.max_pictures, len(body.data)
        if given > most:
            raise InvalidRequest("data", f"data must name at most {most} pictures, given {given}")
        size = len(body.model_dump_json())
        if size > self._limits.max_draft_bytes:
            raise InvalidRequest(
                "data",
                f"data may have at most {self._limits.max_draft_bytes} bytes of JSON, given {size}",
            )
        for number, dataset_id in enumerate(body.data.choices):
            await self._choice(number, dataset_id, owner)

    async def _choice(self, number: int, dataset_id: str, owner: str) -> Draft:
        try:
            return await self.dataset(dataset_id, owner)
        except DraftNotFound:
            raise InvalidRequest(
                "data", f"data.choices.{number}: there is no dataset {shown(dataset_id)}"
            ) from None


def _changed(plan: ModelPlan, changes: PlanChanges) -> ModelPlan:
    job = changes.job or plan.job
    if changes.trigger_words is not None:
        words = {"trigger": ", ".join(changes.trigger_words)}
        try:
            job = LoraJob.model_validate(job.model_dump(exclude_unset=True) | words)
        except ValidationError as refused:
            reason = refused.errors()[0]["msg"].removeprefix("Value error, ")
            raise InvalidRequest("trigger_words", f"trigger_words: {reason}") from None
    given = {
        "name": changes.name,
        "visibility": changes.visibility,
        "model": changes.model,
        "data": changes.data,
        "job": job,
    }
    return plan.model_copy(update={k: value for k, value in given.items() if value is not None})


def _named(place: str, data: Pictures) -> list[NamedPicture]:
    images = [image.replace(".", "/") for image in data.images]
    return [
        NamedPicture(image, name=f"{place}.{field}.{number}")
        for field, found in (("oss", data.oss), ("images", images))
        for number, image in enumerate(found)
    ]


def _why_locked(model: Task | Lora | str) -> str:
    if isinstance(model, str):
        return f"The model {model} is the server's own: it can be neither changed nor deleted."
    if isinstance(model, Lora):
        return f"The model {model.name} is trained: only name, public and trigger_words can change."
    if model.status in TERMINAL:
        return f"The training of the model {model.id} has {model.status}: it can only be deleted."
    return (
        f"The model {model.id} is {model.status}: until its training has ended it can be neither "
        "changed nor deleted; deleting the task of this id cancels it."
    )
