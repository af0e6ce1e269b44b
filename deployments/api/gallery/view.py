"""What the gallery's API answers, field by field as its document has it.

Where the document spells a field in two ways, its examples go before its structures: `createdAt`
and `pageSize`, but `trigger_words` and `user_id`, which no example has.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from deployments.api.gallery.body import SCHEDULERS, split_words
from deployments.api.models import Model
from deployments.api.native.schema import Time
from deployments.drafts.model import Draft, Pictures
from deployments.loras.model import Lora, Visibility
from deployments.tasks.model import Kind, Output, Status, Task

T = TypeVar("T")

StatusWord = Literal["initial", "ready", "waiting", "running", "success", "error"]
WORDS: dict[Status, StatusWord] = {
    Status.SCHEDULED: "waiting",
    Status.QUEUED: "waiting",
    Status.PAUSED: "waiting",
    Status.RUNNING: "running",
    Status.SUCCEEDED: "success",
    Status.FAILED: "error",
    Status.CANCELED: "error",
}
_BASES = {"sd": "SD1.5", "sdxl": "SDXL"}


class ListView(BaseModel, Generic[T]):
    page: int
    pageSize: int  # noqa: N815 - the document's name
    next: bool = Field(description="There is another page.")
    list: list[T]


class _Stamped(BaseModel):
    createdAt: Time | None  # noqa: N815
    updatedAt: Time | None  # noqa: N815
    user_id: str = Field(description="Of whose key it is; empty: the server's own.")


class ModelView(_Stamped):
    id: str
    name: str
    type: Literal["lora", "ckp"]
    trigger_words: str
    base_model: str = Field(description="`SD1.5`, `SDXL`, or the name of the model trained from.")
    model_path: str = Field(description="Where its file is; empty while there is none.")
    status: StatusWord
    progress: int = Field(ge=0, le=100)
    image: str = Field(description="A picture of it; empty where there is none.")
    tags: str = Field(description="With commas between.")
    public: bool
    error: str = Field(description="Why its training failed; else empty.")


class DatasetView(_Stamped):
    id: str
    name: str
    total: int = Field(description="How many pictures.")
    data: Pictures | None = Field(description="Null in lists.")

    @classmethod
    def of(cls, draft: Draft, *, whole: bool = True) -> DatasetView:
        dataset = draft.dataset
        return cls(
            id=draft.id,
            name=dataset.name,
            total=len(dataset.data),
            data=dataset.data if whole else None,
            createdAt=draft.created_at,
            updatedAt=draft.updated_at,
            user_id=draft.owner,
        )


class TaskView(_Stamped):
    id: str
    name: str
    type: Literal["train", "Inference"]
    status: StatusWord
    progress: int = Field(ge=0, le=100)
    data: dict[str, Any] = Field(description="`id` of the model, and what is drawn or was drawn.")


class ImageView(_Stamped):
    id: str
    name: str
    width: int
    height: int
    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    seed: int
    image: str = Field(description="Its address.")


def progress_of(task: Task) -> int:
    """Percent."""
    if task.status is Status.SUCCEEDED:
        return 100
    return percent(task.progress.step, task.progress.steps)


def percent(step: int, steps: int) -> int:
    return max(0, min(100, step * 100 // steps)) if steps else 0


def model_id(model: Model) -> str:
    """The one under which it was created, as long as it lives."""
    if isinstance(model, Lora):
        return model.trained_by or model.id
    return model if isinstance(model, str) else model.id


def owner_of(model: Model) -> str:
    return "" if isinstance(model, str) else model.owner


def is_public(model: Model) -> bool:
    if isinstance(model, Lora):
        return model.visibility is Visibility.PUBLIC
    if isinstance(model, Draft):
        return model.plan.visibility is Visibility.PUBLIC
    return isinstance(model, str) or model.input.get("visibility") == "public"


def tags_of(model: Model) -> tuple[str, ...]:
    """Its trigger words, and the tags that its file says."""
    if isinstance(model, Lora):
        return (*model.trigger_words, *split_words(model.newest.metadata.get("modelspec.tags", "")))
    if isinstance(model, Draft):
        return split_words(model.plan.job.trigger)
    return () if isinstance(model, str) else trigger_of(model)


def trigger_of(task: Task) -> tuple[str, ...]:
    job = task.input.get("job")
    return split_words(str(job.get("trigger", ""))) if isinstance(job, dict) else ()


def view_of(model: Model, *, image: str = "", path: str = "") -> ModelView:
    """`image` and `path` are addresses of a LoRA's."""
    return ModelView(
        id=model_id(model),
        tags=",".join(tags_of(model)),
        public=is_public(model),
        user_id=owner_of(model),
        createdAt=None if isinstance(model, str) else model.created_at,
        updatedAt=None if isinstance(model, str) else model.updated_at,
        image=image,
        model_path=path,
        type="ckp" if isinstance(model, str) else "lora",
        **_told(model),
    )


def _told(model: Model) -> dict[str, Any]:
    done: dict[str, Any] = {"status": "success", "progress": 100, "error": "", "trigger_words": ""}
    if isinstance(model, str):
        return done | {"name": model, "base_model": ""}
    if isinstance(model, Lora):
        base = _BASES.get(model.newest.base or "", model.newest.base_model or "")
        words = ",".join(model.trigger_words)
        return done | {"name": model.name, "base_model": base, "trigger_words": words}
    if isinstance(model, Draft):
        plan = model.plan
        return {
            "name": plan.name,
            "base_model": plan.model,
            "trigger_words": plan.job.trigger,
            "status": "ready" if model.locked else "initial",
            "progress": 0,
            "error": "",
        }
    return {
        "name": str(model.input.get("name", "")),
        "base_model": str(model.input.get("model", "")),
        "trigger_words": ",".join(trigger_of(model)),
        "status": WORDS[model.status],
        "progress": progress_of(model),
        "error": error_of(model),
    }


def error_of(task: Task) -> str:
    """Why it is in error; empty where it is not."""
    if task.status is Status.CANCELED:
        return "It was canceled."
    return task.error.message if task.status is Status.FAILED and task.error else ""


def task_view(task: Task | Draft, urls: list[str]) -> TaskView:
    """`urls` are those of its outputs. A draft is a model not yet queued."""
    if isinstance(task, Draft):
        plan, word = task.plan, "ready" if task.locked else "initial"
        data: dict[str, Any] = {"id": task.id, "source": plan.model, "total": len(plan.data)}
        return _task(task, plan.name, word, 0, data, trains=True)
    trains = task.kind is Kind.LORA
    return _task(
        task,
        str(task.input.get("name" if trains else "prompt", ""))[:100],
        WORDS[task.status],
        progress_of(task),
        result_of(task, urls),
        trains=trains,
    )


def _task(
    task: Task | Draft, name: str, word: str, progress: int, data: dict[str, Any], *, trains: bool
) -> TaskView:
    return TaskView.model_validate(
        {
            "id": task.id,
            "name": name,
            "type": "train" if trains else "Inference",
            "status": word,
            "progress": progress,
            "data": data,
            "createdAt": task.created_at,
            "updatedAt": task.updated_at,
            "user_id": task.owner,
        }
    )


def result_of(task: Task, urls: list[str]) -> dict[str, Any]:
    """What a task's `data` says."""
    data: dict[str, Any] = {"id": task.id if task.kind is Kind.LORA else task.input.get("model")}
    if task.kind is Kind.LORA:
        data |= {"loss": task.progress.loss, "source": task.input.get("model")}
    else:
        data |= {"prompt": task.input.get("prompt"), "seed": task.input.get("seed")}
    if urls:
        data["images"] = [
            url
            for output, url in zip(task.outputs, urls, strict=True)
            if output.content_type.startswith("image/")
        ]
    if problem := error_of(task):
        data["error"] = problem
    return data


_SCHEDULER_WORDS = {name: word for word, name in SCHEDULERS.items()}


def image_id(task: Task, number: int) -> str:
    return f"{task.id}.{number}"


def image_view(task: Task, number: int, output: Output, url: str) -> ImageView:
    given = task.input
    name = str(given.get("scheduler", ""))
    return ImageView(
        id=image_id(task, number),
        name=str(given.get("prompt", ""))[:100],
        width=output.width,
        height=output.height,
        prompt=str(given.get("prompt", "")),
        negative_prompt=str(given.get("negative_prompt", "")),
        num_inference_steps=int(given.get("num_inference_steps", 0)),
        guidance_scale=float(given.get("guidance_scale", 0)),
        scheduler=_SCHEDULER_WORDS.get(name, name),
        seed=output.seed or 0,
        image=url,
        createdAt=task.created_at,
        updatedAt=task.finished_at or task.updated_at,
        user_id=task.owner,
    )
