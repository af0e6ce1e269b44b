"""What a plot may vary: by the names and places of the web UI's list."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from configs.settings import Settings
from deployments.api.errors import shown
from deployments.api.sdapi.checkpoint import find_model
from deployments.api.sdapi.options import CHECKPOINT, CLIP_SKIP
from deployments.api.sdapi.schema import GenerationBody
from pipelines.errors import InvalidRequest
from pipelines.webui.plot import numbers
from pipelines.webui.sampler import WEBUI_SAMPLERS, WEBUI_SCHEDULERS

FIELD = "script_args"
MAX_ORDERED = 5
"""Words whose every order is drawn."""
Fields = dict[str, Any]
Read = Callable[[Sequence[str], GenerationBody, Settings], list[Any]]
Put = Callable[[GenerationBody, Any], Fields]


@dataclass(frozen=True)
class Axis:
    name: str
    read: Read
    """The values of what is written. Raises InvalidRequest, ValueError."""
    put: Put
    """The fields of a request that has one of them."""
    show: Callable[[Any], str] = str

    def title(self, value: Any) -> str:
        """Of a row or column."""
        shown_ = self.show(value)
        return f"{self.name}: {shown_}" if isinstance(value, int | float) else shown_


def _numbers(
    words: Sequence[str], body: GenerationBody, settings: Settings, *, whole: bool
) -> list[Any]:
    return numbers(words, whole=whole)


def _field(field: str, body: GenerationBody, value: Any) -> Fields:
    return {field: value}


def _option(key: str, body: GenerationBody, value: Any) -> Fields:
    return {"override_settings": (body.override_settings or {}) | {key: value}}


def _words(words: Sequence[str], body: GenerationBody, settings: Settings) -> list[Any]:
    return list(words)


def _known(
    words: Sequence[str], body: GenerationBody, settings: Settings, *, names: Sequence[str]
) -> list[Any]:
    by_word = {name.lower(): name for name in names}
    for word in words:
        if word.lower() not in by_word:
            raise InvalidRequest(
                FIELD, f"a value must be one of {', '.join(names)}, given {shown(word)}"
            )
    return [by_word[word.lower()] for word in words]


def _models(words: Sequence[str], body: GenerationBody, settings: Settings) -> list[Any]:
    found = [find_model(settings, word) for word in words]
    if None in found:
        raise InvalidRequest(FIELD, f"model {shown(words[found.index(None)])} not found")
    return found


def _replaced(words: Sequence[str], body: GenerationBody, settings: Settings) -> list[Any]:
    """What the first word is replaced by: itself first of all."""
    if not words:
        return []
    first, most = words[0], settings.limits.max_prompt_chars
    if not first or not any(first in text for text in _prompts(body)):
        message = f"{shown(first)} is neither in prompt nor in negative_prompt"
        raise InvalidRequest(FIELD, message)
    longer = max(map(len, words)) - len(first)
    if any(len(text) + text.count(first) * longer > most for text in _prompts(body)):
        raise InvalidRequest(FIELD, f"a prompt must be at most {most} characters, given more")
    return [(first, word) for word in words]


def _ordered(words: Sequence[str], body: GenerationBody, settings: Settings) -> list[Any]:
    if len(words) > MAX_ORDERED:
        raise InvalidRequest(FIELD, f"at most {MAX_ORDERED} words may be ordered")
    if missing := [word for word in words if word not in _prompts(body)[0]]:
        raise InvalidRequest(FIELD, f"{shown(missing[0])} is not in prompt")
    return list(itertools.permutations(words))


def _prompts(body: GenerationBody) -> tuple[str, str]:
    return body.prompt or "", body.negative_prompt or ""


def _put_word(body: GenerationBody, pair: tuple[str, str]) -> Fields:
    prompt, negative = (text.replace(*pair) for text in _prompts(body))
    return {"prompt": prompt, "negative_prompt": negative}


def _put_order(body: GenerationBody, order: tuple[str, ...]) -> Fields:
    """The words take the places that they have in the prompt, in their new order."""
    prompt = _prompts(body)[0]
    places = sorted((prompt.index(word), word) for word in order)
    parts, end = [], 0
    for (start, old), new in zip(places, order, strict=True):
        parts += [prompt[end:start], new]
        end = start + len(old)
    return {"prompt": "".join(parts) + prompt[end:]}


def _sizes(words: Sequence[str], body: GenerationBody, settings: Settings) -> list[Any]:
    pairs = [word.lower().partition("x") for word in words]
    if not all(
        width.strip().isdecimal() and height.strip().isdecimal() for width, _, height in pairs
    ):
        raise ValueError("width x height each")
    return [f"{int(width[:6])}x{int(height[:6])}" for width, _, height in pairs]


def _put_size(body: GenerationBody, value: str) -> Fields:
    width, _, height = value.partition("x")
    return {"width": int(width), "height": int(height)}


def _put_styles(body: GenerationBody, value: str) -> Fields:
    return {"styles": [*(body.styles or ()), *(name.strip() for name in value.split(","))]}


def _whole(name: str, field: str) -> Axis:
    return Axis(name, partial(_numbers, whole=True), partial(_field, field))


def _real(name: str, field: str) -> Axis:
    return Axis(name, partial(_numbers, whole=False), partial(_field, field))


_SAMPLERS = partial(_known, names=tuple(WEBUI_SAMPLERS))
_SCHEDULES = partial(_known, names=tuple(one.label for one in WEBUI_SCHEDULERS))
AXES = {
    axis.name: axis
    for axis in (
        Axis("Nothing", lambda *_: [None], lambda *_: {}, lambda _: ""),
        _whole("Seed", "seed"),
        _whole("Var. seed", "subseed"),
        _real("Var. strength", "subseed_strength"),
        _whole("Steps", "steps"),
        _whole("Hires steps", "hr_second_pass_steps"),
        _real("CFG Scale", "cfg_scale"),
        Axis("Prompt S/R", _replaced, _put_word, lambda pair: pair[1]),
        Axis("Prompt order", _ordered, _put_order, ", ".join),
        Axis("Sampler", _SAMPLERS, partial(_field, "sampler_name")),
        Axis("Hires sampler", _SAMPLERS, partial(_field, "hr_sampler_name")),
        Axis("Checkpoint name", _models, partial(_option, CHECKPOINT)),
        _real("Negative Guidance minimum sigma", "s_min_uncond"),
        _real("Sigma Churn", "s_churn"),
        _real("Sigma min", "s_tmin"),
        _real("Sigma max", "s_tmax"),
        _real("Sigma noise", "s_noise"),
        Axis("Schedule type", _SCHEDULES, partial(_field, "scheduler")),
        _real("Eta", "eta"),
        Axis("Clip skip", partial(_numbers, whole=True), partial(_option, CLIP_SKIP)),
        _real("Denoising", "denoising_strength"),
        _real("Initial noise multiplier", "initial_noise_multiplier"),
        Axis("Hires upscaler", _words, partial(_field, "hr_upscaler")),
        Axis("Styles", _words, _put_styles),
        Axis("Size", _sizes, _put_size),
    )
}
"""Those that mean something here."""

_BEFORE = ("Nothing", "Seed", "Var. seed", "Var. strength", "Steps")
_PROMPTS = ("Prompt S/R", "Prompt order")
_MIDDLE = (
    "Checkpoint name",
    "Negative Guidance minimum sigma",
    "Sigma Churn",
    "Sigma min",
    "Sigma max",
    "Sigma noise",
    "Schedule type",
    "Schedule min sigma",
    "Schedule max sigma",
    "Schedule rho",
    "Beta schedule alpha",
    "Beta schedule beta",
    "Eta",
    "Clip skip",
    "Denoising",
    "Initial noise multiplier",
    "Extra noise",
)
_AFTER = (
    "VAE",
    "Styles",
    "UniPC Order",
    "Face restore",
    "Token merging ratio",
    "Token merging ratio high-res",
    "Always discard next-to-last sigma",
    "SGM noise multiplier",
    "Refiner checkpoint",
    "Refiner switch point",
    "RNG source",
    "FP8 mode",
    "Size",
)
LISTED = {
    False: (
        *(*_BEFORE, "Hires steps", "CFG Scale", *_PROMPTS, "Sampler", "Hires sampler"),
        *(*_MIDDLE, "Hires upscaler", *_AFTER),
    ),
    True: (
        *(*_BEFORE, "CFG Scale", "Image CFG Scale", *_PROMPTS, "Sampler"),
        *(*_MIDDLE, "Cond. Image Mask Weight", *_AFTER),
    ),
}
"""The web UI's list, by whether it is that of img2img: clients name an axis by its place there."""


def axis_of(given: int | str, *, img2img: bool) -> Axis:
    """By its place in the list, or its name in any case. Raises InvalidRequest."""
    listed = LISTED[img2img]
    name = str(given).strip()
    if name.isdecimal() and int(name[:4]) < len(listed):
        name = listed[int(name[:4])]
    names = {each.lower(): each for each in AXES if each in listed}
    if name.lower() not in names:
        known = ", ".join(names.values())
        raise InvalidRequest(FIELD, f"an axis must be one of {known}, given {shown(name)}")
    return AXES[names[name.lower()]]
