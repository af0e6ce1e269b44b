"""Bodies of the gallery's API, field by field as its document has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from deployments.api.models import Model, PlanChanges
from deployments.api.submission import Submission
from deployments.drafts.model import Dataset, Draft, ImageId, Name, Pictures, WebAddress
from deployments.loras.model import Lora, LoraName, Visibility
from deployments.tasks.field import Real, Text, Whole
from deployments.tasks.image import ImageFields
from deployments.tasks.lora import LoraEntry
from deployments.tasks.model import Task
from pipelines.errors import InvalidRequest
from training.lora.job import LoraJob

MAX_WORDS = 20
SCHEDULERS = {
    "DDIM": "DDIMScheduler",
    "K_EULER": "EulerDiscreteScheduler",
    "DPMSolverMultistep": "DPMSolverMultistepScheduler",
    "K_EULER_ANCESTRAL": "EulerAncestralDiscreteScheduler",
    "PNDM": "PNDMScheduler",
    "KLMS": "LMSDiscreteScheduler",
}


def split_words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _type(text: str) -> str:
    if text.lower() not in ("lora", "rola"):
        raise ValueError("must be RoLa or lora: nothing else is trained here")
    return "lora"


def _words(text: str) -> str:
    words = text.split(",")
    if len(words) > MAX_WORDS or not text.isprintable():
        raise ValueError(f"must be printable, and at most {MAX_WORDS} words with commas between")
    return text


TriggerText = Annotated[
    str, StringConstraints(max_length=100, strip_whitespace=True), AfterValidator(_words)
]


class ModelFields(BaseModel):
    """What may be said of a model; null or absent leaves a field as it is."""

    model_config = ConfigDict(extra="forbid")

    name: LoraName | None = Field(None, description="How requests will name it.")
    source: Text | None = Field(None, max_length=200, description="Id of the model to train from.")
    data: Pictures | None = Field(None, description="To learn from.")
    trigger_words: TriggerText | None = Field(None, description="With commas between.")
    public: bool | None = Field(None, description="Every key may use it.")
    job: LoraJob | None = Field(None, description="How it is trained, as in the native API.")

    def to_changes(self) -> PlanChanges:
        words = self.trigger_words
        public = {None: None, True: Visibility.PUBLIC, False: Visibility.PRIVATE}[self.public]
        return PlanChanges(
            name=self.name,
            visibility=public,
            trigger_words=None if words is None else split_words(words),
            model=self.source or None,
            job=self.job,
            data=self.data,
        )


class NewModelBody(ModelFields):
    """A model to train."""

    name: LoraName
    type: Annotated[str, AfterValidator(_type)] = Field("lora", description="`RoLa` or `lora`.")


class ModelBody(ModelFields):
    """What to change."""

    status: Literal["initial", "ready"] | None = Field(
        None, description="`ready`: it is queued. The server alone sets the later ones."
    )


class DatasetPictures(BaseModel):
    """Pictures by address and by id."""

    model_config = ConfigDict(extra="forbid")

    oss: list[WebAddress] = Field([], description="Their http(s) addresses.")
    images: list[ImageId] = Field([], description="Pictures that were drawn, by id.")

    def to_domain(self) -> Pictures:
        return Pictures(oss=tuple(self.oss), images=tuple(self.images))


class DatasetBody(BaseModel):
    """A dataset to make."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    data: DatasetPictures

    def to_domain(self) -> Dataset:
        return Dataset(name=self.name, data=self.data.to_domain())


class DatasetChanges(BaseModel):
    """Null or absent leaves a field as it is."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    data: DatasetPictures | None = None

    def to_changes(self) -> dict[str, object]:
        given = {"name": self.name, "data": self.data.to_domain() if self.data else None}
        return {field: value for field, value in given.items() if value is not None}


class TaskStatusBody(BaseModel):
    """What to change of a task that is a model not yet queued."""

    model_config = ConfigDict(extra="forbid")

    name: LoraName | None = None
    status: Literal["initial", "ready"] | None = Field(None, description="`ready`: it is queued.")

    def to_changes(self) -> PlanChanges:
        return PlanChanges(name=self.name)


class DrawingBody(BaseModel):
    """What to draw, and with which model."""

    model_config = ConfigDict(extra="forbid")

    id: Text = Field("", max_length=200, description="Of the model; empty: the default one.")
    prompt: Text
    negative_prompt: Text | None = None
    width: Whole | None = None
    height: Whole | None = None
    num_inference_steps: Whole | None = None
    guidance_scale: Real | None = None
    scheduler: (
        Literal["DDIM", "K_EULER", "DPMSolverMultistep", "K_EULER_ANCESTRAL", "PNDM", "KLMS"] | None
    ) = None
    seed: Whole | None = None
    from_image: Text | None = Field(
        None, description="Picture to start from: an image's id, or a base64 data URL."
    )

    def to_domain(
        self, model: Model | None, models: Mapping[str, object], init_image: str | None
    ) -> Submission:
        """`model` is that of the id, `models` are those configured. Raises InvalidRequest."""
        if isinstance(model, Draft | Task):
            raise InvalidRequest("id", f"id: the model {self.id} is not trained")
        given = self.model_dump(exclude={"id", "scheduler", "from_image"}, exclude_none=True)
        name = model if isinstance(model, str) else None
        if isinstance(model, Lora):
            given["lora"] = [LoraEntry(id=model.id)]
            name = model.newest.base_model if model.newest.base_model in models else None
        if self.scheduler is not None:
            given["scheduler"] = SCHEDULERS[self.scheduler]
        return Submission(fields=ImageFields(**given), model=name, init_image=init_image)


class NewTaskBody(BaseModel):
    """A picture to draw; a training is made by `POST /api/models`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["Inference", "inference"]
    data: DrawingBody
