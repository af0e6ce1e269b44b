"""Bodies of the native API, field by field as its document has them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer

from deployments.api.native import examples
from deployments.api.submission import MAX_DELAY_S, Submission
from deployments.schedules.model import Recipe
from deployments.tasks.field import Real, Text, Whole
from deployments.tasks.image import ImageFields
from deployments.tasks.model import MAX_PRIORITY, MIN_PRIORITY, Kind, Position, Status, Task

StatusWord = Literal["pending", "processing", "completed", "failed", "canceled", "paused"]

WORDS: dict[Status, StatusWord] = {
    Status.QUEUED: "pending",
    Status.SCHEDULED: "pending",
    Status.RUNNING: "processing",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELED: "canceled",
    Status.PAUSED: "paused",
}

CREATED = "任务已创建，正在处理中"
MAX_STYLES = 20

# Pydantic would write `Z`, which older clients' date parsers refuse.
Time = Annotated[
    datetime,
    PlainSerializer(
        lambda time: time.isoformat(), when_used="json", return_type=Annotated[str, Field()]
    ),
]


def statuses_of(word: StatusWord | None) -> tuple[Status | None, ...]:
    """The store's statuses that the word stands for; `(None,)` for all of them."""
    if word is None:
        return (None,)
    return tuple(status for status, its_word in WORDS.items() if its_word == word)


class DrawBody(ImageFields):
    """What to draw; with `init_image` from that picture, else from the prompt alone."""

    model_config = ConfigDict(json_schema_extra={"examples": list(examples.GENERATE.values())})

    init_image: str | None = Field(
        None,
        description="Picture to start from: a base64 data URL of a PNG, JPEG or WebP file.",
    )
    mask_image: str | None = Field(
        None,
        description="Inpainting: what to repaint of `init_image` (white) and what to keep (black); "
        "a base64 data URL, scaled to the picture.",
    )
    callback_url: Text | None = Field(
        None, max_length=2048, description="The result is posted here when the task has ended."
    )
    model: Text | None = Field(None, max_length=200, description="A configured model's name.")
    priority: Whole | None = Field(
        0, ge=MIN_PRIORITY, le=MAX_PRIORITY, description="Higher starts earlier."
    )
    translate: bool | None = Field(
        False,
        description="Translate both prompts first, where the server has a translator. Tags, "
        "brackets and weights stay.",
    )
    styles: list[Text] | None = Field(
        None,
        max_length=MAX_STYLES,
        description="Put on the prompts, one after the other: names of the settings' "
        "`styles_file`, as `/sdapi/v1/prompt-styles` lists them.",
    )

    def recipe(self) -> Recipe:
        """All of it, in no dialect's words."""
        return Recipe(
            fields=ImageFields(**self.model_dump(include=set(ImageFields.model_fields))),
            model=self.model,
            init_image=self.init_image,
            mask_image=self.mask_image,
            priority=self.priority or 0,
            callback_url=self.callback_url,
            translate=self.translate or False,
            styles=tuple(self.styles or ()),
        )


class GenerateBody(DrawBody):
    """What to draw, and when."""

    delay_s: Real | None = Field(
        0, ge=0, le=MAX_DELAY_S, description="Start no earlier than this from now, seconds."
    )
    not_before: AwareDatetime | None = Field(
        None,
        description="Start no earlier than this time, at most 7 days ahead; in place of `delay_s`.",
        examples=["2026-01-01T12:00:00+00:00"],
    )
    idempotency_key: Text | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="The same key and body again give the same task; also as the header "
        "Idempotency-Key.",
    )

    def to_domain(self, idempotency_key: str | None) -> Submission:
        """The same in no dialect's words; a key in the body goes before that of the header."""
        key = self.idempotency_key or idempotency_key
        return replace(
            Submission.of(self.recipe(), idempotency_key=key),
            delay_s=self.delay_s or 0.0,
            not_before=self.not_before,
        )


class PriorityBody(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [examples.PRIORITY]})

    priority: Whole = Field(ge=MIN_PRIORITY, le=MAX_PRIORITY, description="Higher starts earlier.")


class CreatedView(BaseModel):
    task_id: str
    status: StatusWord
    message: str

    @classmethod
    def of(cls, task: Task) -> CreatedView:
        return cls(task_id=task.id, status=WORDS[task.status], message=CREATED)


class ProgressView(BaseModel):
    step: int = Field(
        description="Denoising steps done, over all pictures of the task; stages of a portrait."
    )
    steps: int = Field(description="Of them in all; 0 while not known.")


class PositionView(BaseModel):
    ahead: int = Field(description="Tasks that start before this one.")
    eta_s: float | None = Field(description="Seconds until it is done; null while unmeasured.")


class TrainingView(BaseModel):
    """What a LoRA training says besides."""

    name: str = Field(description="What the LoRA is called.")
    lora_id: str | None = Field(description="Once it is completed.")
    loss: float | None = Field(description="Smoothed.")
    lr: float | None = Field(description="The step's learning rate.")
    samples_per_s: float | None = Field(description="Pictures learned from in a second.")
    eta_s: float | None = Field(description="Seconds until it is done, while it runs.")

    @classmethod
    def of(cls, task: Task) -> TrainingView | None:
        """None for other kinds of tasks."""
        if task.kind is not Kind.LORA:
            return None
        told, runs = task.progress, task.status is Status.RUNNING
        return cls(
            name=str(task.input.get("name", "")),
            lora_id=task.lora_id,
            loss=told.loss,
            lr=told.lr,
            samples_per_s=told.samples_per_s if runs else None,
            eta_s=told.eta_s if runs else None,
        )


class PortraitView(BaseModel):
    """What a portrait says besides."""

    people: list[str] = Field(description="Their names, left to right.")
    stage: str | None = Field(description="What is being done, while it runs.")
    notes: list[str] = Field(description="What it was made without, once it is completed.")

    @classmethod
    def of(cls, task: Task) -> PortraitView | None:
        """None for other kinds of tasks."""
        if task.kind is not Kind.PORTRAIT:
            return None
        people = task.input.get("people", ())
        return cls(
            people=[str(person.get("name", "")) for person in people],
            stage=task.progress.stage if task.status is Status.RUNNING else None,
            notes=[note for output in task.outputs for note in output.notes],
        )


class TaskView(BaseModel):
    """A task; the first seven fields are the documented ones."""

    task_id: str
    status: StatusWord
    result_url: str | None = Field(description="Of one picture (`num_images` is 1), or a LoRA.")
    result_urls: list[str] | None = Field(
        description="Of several pictures, in order of seed; of a LoRA, its previews and, where "
        "pictures were held out, the file of the least validation loss."
    )
    error_message: str | None = Field(description="Why it failed.")
    created_at: Time
    updated_at: Time
    model: str
    prompt: str | None
    original_prompt: str | None = Field(
        description="As it was sent, where it was translated or has styles on."
    )
    seed: int | None = Field(description="Of the first picture; picture i has seed + i.")
    priority: int
    progress: ProgressView
    not_before: Time | None = Field(description="When it may start, while that is to come.")
    position: PositionView | None = Field(description="While it waits; null in lists.")
    training: TrainingView | None = Field(description="Of a LoRA's training; null for pictures.")
    portrait: PortraitView | None = Field(description="Of a portrait; null for others.")

    @classmethod
    def of(cls, task: Task, urls: list[str], position: Position | None = None) -> TaskView:
        single = task.input.get("num_images", 1) == 1
        several = not single or task.kind is Kind.LORA
        failed = task.status is Status.FAILED and task.error is not None
        return cls(
            task_id=task.id,
            status=WORDS[task.status],
            result_url=urls[0] if urls and single else None,
            result_urls=urls if urls and several else None,
            error_message=task.error.message if failed and task.error else None,
            created_at=task.created_at,
            updated_at=task.updated_at,
            model=task.input.get("model", task.queue),
            prompt=task.input.get("prompt"),
            original_prompt=(task.input.get("originals") or (None,))[0],
            seed=task.input.get("seed"),
            priority=task.priority,
            not_before=task.not_before if task.status is Status.SCHEDULED else None,
            progress=ProgressView(step=task.progress.step, steps=task.progress.steps),
            position=PositionView(ahead=position.ahead, eta_s=position.eta_s) if position else None,
            training=TrainingView.of(task),
            portrait=PortraitView.of(task),
        )


class TaskList(BaseModel):
    tasks: list[TaskView] = Field(description="Newest first.")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page.")


class HealthView(BaseModel):
    status: Literal["ok", "unavailable"]
    model_loaded: bool = Field(description="A worker of the default model is ready.")


class Problem(BaseModel):
    """Any error but a refused field."""

    detail: str


class FieldProblem(BaseModel):
    loc: list[str | int] = Field(description="Where: `body`, `query` or `header`, then the field.")
    msg: str = Field(description="What is wrong, with the limit and the given value.")
    type: str


class ValidationProblem(BaseModel):
    """Refused fields."""

    detail: list[FieldProblem]
