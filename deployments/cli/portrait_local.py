"""`portrait --local --model`: a configured model repaints, in this process."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from configs.settings import Settings
from deployments.cli.fault import CliFault, ExitCode
from deployments.cli.local import drawing
from pipelines.lora.header import read_header
from pipelines.portrait.array import Picture
from pipelines.portrait.base_model import BaseModel, PersonLora
from pipelines.portrait.drawing import Adapted, draw_template, with_model
from pipelines.portrait.engine_repaint import EngineRepaint
from pipelines.portrait.job import PortraitJob, Subject, Tools
from pipelines.portrait.parameters import PortraitParameters

Given = tuple[Tools, PortraitParameters, Sequence[Subject]]


@dataclass(frozen=True)
class LocalModel:
    """What `--model`, `--lora` and `--seed` say."""

    name: str | None
    loras: Sequence[Path] = ()
    """Of the subjects, in their order; the last may have none."""
    seed: int | None = None

    def prepared(
        self, settings: Settings, template: Picture | None, given: Given, held: ExitStack
    ) -> Adapted:
        """What the model makes of a portrait, and of its prompt where there is no template. The
        model is loaded until `held` ends.
        """
        tools, parameters, subjects = given
        if self.name is None:
            if template is None or self.loras:
                what = "a portrait without --template" if template is None else "--lora"
                raise CliFault(f"{what} needs --model", ExitCode.USAGE)
            return Adapted(PortraitJob(template, tuple(subjects), tools, parameters))
        repaint = self._repaint(settings, self.name, subjects, held)
        if template is None:
            prompt = parameters.t2i_prompt or ""
            template = draw_template(prompt, parameters, subjects, repaint, tools.detect)
        return with_model(PortraitJob(template, tuple(subjects), tools, parameters), repaint)

    def _repaint(
        self, settings: Settings, name: str, subjects: Sequence[Subject], held: ExitStack
    ) -> EngineRepaint:
        if name not in settings.models:
            known = ", ".join(settings.models)
            raise CliFault(f"there is no model {name!r}; configured: {known}", ExitCode.USAGE)
        if len(self.loras) > len(subjects):
            raise CliFault(
                f"{len(self.loras)} --lora are more than the {len(subjects)} --subject",
                ExitCode.USAGE,
            )
        preset = settings.models[name]
        worn = {
            subject.name: _lora(path) for subject, path in zip(subjects, self.loras, strict=False)
        }
        seed = secrets.randbits(32) if self.seed is None else self.seed
        return EngineRepaint(BaseModel.of(preset), held.enter_context(drawing(preset)), seed, worn)


def _lora(path: Path) -> PersonLora:
    if not path.is_file():
        raise CliFault(f"there is no LoRA file {path}", ExitCode.USAGE)
    return PersonLora(path, read_header(path).metadata.get("modelspec.trigger_phrase", ""))
