"""A request with all that it does not say itself: options, styles, and what infotext adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from configs.settings import Settings
from deployments.api.errors import shown
from deployments.api.sdapi import infotext, options
from deployments.api.sdapi.checkpoint import UNKNOWN, Cards
from deployments.api.sdapi.controlnet import Guides, guides_of
from deployments.api.sdapi.schema import GenerationBody, Txt2ImgBody
from deployments.api.sdapi.vae import VAE, model_with_vae, vae_name, vae_names
from deployments.api.style import read_styles, styled
from deployments.tasks.limit import check_lengths
from deployments.tasks.lora import LoraEntry
from pipelines.errors import InvalidRequest
from pipelines.webui.network import LoraTag, Networks, extract_networks, lora_tags
from pipelines.webui.prompt import strip_comments
from pipelines.webui.sampler import WEBUI_SAMPLERS, default_eta, resolve_sampler

T = TypeVar("T", bound=GenerationBody)
Refusal = tuple[str, str, Any]
"""Field, what it must be, and what it is."""


@dataclass(frozen=True)
class Wanted:
    body: GenerationBody
    options: Mapping[str, Any]
    prompt: str
    """With styles, and with the tags of LoRAs."""
    negative_prompt: str
    hires_prompts: tuple[str, str]
    """Those of the second pass, likewise."""
    sampler: str
    schedule: str
    """Its label; Automatic stands for the sampler's own."""
    guides: Guides
    cards: Cards
    steps_before: int = 0
    """Of an earlier pass over the same picture."""
    restorers: tuple[str, ...] = ()
    """Names of the face restorers that are here."""
    vae: str | None = None
    """What stands in for the model's own."""

    @property
    def model(self) -> str:
        return str(self.options[options.CHECKPOINT])

    @property
    def clip_skip(self) -> int:
        return int(self.options[options.CLIP_SKIP])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels, both a multiple of 8."""
        width, height = self.asked_size
        return width - width % 8, height - height % 8

    @property
    def asked_size(self) -> tuple[int, int]:
        """As it is given, of which a second pass is reckoned."""
        width, height = self.given("width"), self.given("height")
        if isinstance(self.body, Txt2ImgBody) and self.body.firstphase_width:
            width = self.body.firstphase_width
        if isinstance(self.body, Txt2ImgBody) and self.body.firstphase_height:
            height = self.body.firstphase_height
        return width, height

    @property
    def eta(self) -> float | None:
        """None for samplers in which it means nothing."""
        return self.eta_of(self.sampler)

    def eta_of(self, sampler: str) -> float | None:
        if sampler not in _TAKE_ETA:
            return None
        if self.body.eta is not None:
            return self.body.eta
        by_timestep = WEBUI_SAMPLERS[sampler].by_timestep
        found = self.options["eta_ddim" if by_timestep else "eta_ancestral"]
        return default_eta(sampler) if found is None else float(found)

    @property
    def restores_faces(self) -> bool:
        """Whether that is asked for."""
        return bool(self.option("restore_faces", "face_restoration"))

    @property
    def comments(self) -> list[str]:
        """What was asked for and is left out."""
        found = []
        if self.restores_faces and not self.restorers:
            found = ["Faces are not restored: the setting face_restorers names no network."]
        networks = {} if self.body.disable_extra_networks else self._encoded(self.prompt)[1]
        names = ", ".join(args[0] for args in networks.get("hypernet", ()))
        return [*found, f"Hypernetworks are not here: {shown(names)}"] if names else found

    @property
    def face_restorer(self) -> str | None:
        """The name of the one to use: the option's if it is here, else the first; None for none."""
        if not self.restores_faces:
            return None
        named = str(self.options[options.RESTORER])
        return named if named in self.restorers else next(iter(self.restorers), None)

    @property
    def subseed(self) -> int | None:
        """None for a random one."""
        given: int = self.given("subseed")
        return given if given >= 0 else None

    def given(self, field: str) -> Any:
        """A field's value, or its default where it is null."""
        value = getattr(self.body, field)
        return type(self.body).model_fields[field].default if value is None else value

    def option(self, field: str, key: str) -> Any:
        """A field's value, or that of the option where it is null."""
        value = getattr(self.body, field)
        return self.options[key] if value is None else value

    def ruling_option(self, key: str) -> Any:
        """An option that goes before the field of its name, as it is not its default; or None."""
        found = self.options[key]
        return None if found == options.catalogue()[key] else found

    def encoded_prompts(self) -> tuple[str, str, list[LoraEntry]]:
        """Both prompts as they are encoded, without comments and tags, and the LoRAs to wear.

        The tags of the negative prompt are taken out and mean nothing. Raises InvalidRequest.
        """
        prompt, networks = self._encoded(self.prompt)
        negative, _ = self._encoded(self.negative_prompt)
        if self.body.disable_extra_networks:
            return prompt, negative, []
        try:
            entries = [_entry(tag) for tag in lora_tags(networks)]
        except ValueError:
            raise InvalidRequest(
                "prompt", "a LoRA in prompt must be <lora:name:weight>, with a name and numbers"
            ) from None
        return prompt, negative, entries

    def encoded_hires_prompts(self) -> tuple[str, str]:
        """Those of a second pass that wears what the first does."""
        prompt, _ = self._encoded(self.hires_prompts[0])
        negative, _ = self._encoded(self.hires_prompts[1])
        return prompt, negative

    @property
    def changes_loras(self) -> bool:
        """Whether the second pass wears others than the first."""
        worn, later = (self._encoded(text)[1] for text in (self.prompt, self.hires_prompts[0]))
        return worn != later and not self.body.disable_extra_networks

    def _encoded(self, text: str) -> tuple[str, Networks]:
        if self.options["enable_prompt_comments"]:
            text = strip_comments(text)
        return extract_networks(text)


def _entry(tag: LoraTag) -> LoraEntry:
    return LoraEntry(
        name=tag.name, weight=tag.weight, text_encoder_weight=tag.text_weight, rank=tag.rank
    )


_TAKE_ETA = frozenset(
    {"DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a"}
    | {"DPM2 a", "DPM fast", "DPM adaptive", "DDIM", "DDIM CFG++"}
)


def wanted_of(
    body: T, stored: Mapping[str, Any], settings: Settings, cards: Cards = UNKNOWN
) -> Wanted:
    """What a request means beside its caller's stored options.

    Raises InvalidRequest, Refused, and RequestValidationError for infotext that does not fit.
    """
    body, said = _with_infotext(body)
    if said.get(VAE) not in vae_names(settings):
        said.pop(VAE, None)
    overrides = said | (body.override_settings or {})
    over = options.checked(overrides, settings, "override_settings", cards)
    values = options.effective(settings, stored, over)
    chosen, must = values[options.CHECKPOINT], VAE in (body.override_settings or {})
    values[options.CHECKPOINT] = model_with_vae(settings, chosen, values, must=must)
    known = read_styles(settings.styles_file)
    worn = [known[name] for name in body.styles or () if name in known]
    prompts = body.prompt or "", body.negative_prompt or ""
    prompt, negative = _plain(styled(prompts, worn), values)
    hires_prompts = _plain(styled(_hires_prompts(body, prompts), worn), values)
    texts = dict(zip(("hr_prompt", "hr_negative_prompt"), hires_prompts, strict=True))
    check_lengths(settings.limits, prompt=prompt, negative_prompt=negative, **texts)
    sampler, schedule = resolve_sampler(body.sampler_name or body.sampler_index, body.scheduler)
    preset = settings.models[values[options.CHECKPOINT]]
    hires = isinstance(body, Txt2ImgBody) and bool(body.enable_hr)
    guides = guides_of(body, preset, hires=hires)
    wanted = Wanted(body, values, prompt, negative, hires_prompts, sampler, schedule, guides, cards)
    vae = vae_name(settings, values[options.CHECKPOINT])
    return replace(wanted, restorers=tuple(settings.face_restorers), vae=vae)


def _plain(prompts: tuple[str, str], values: Mapping[str, Any]) -> tuple[str, str]:
    """Without comments, unless an option keeps them."""
    if not values["enable_prompt_comments"]:
        return prompts
    return strip_comments(prompts[0]), strip_comments(prompts[1])


def _hires_prompts(body: GenerationBody, prompts: tuple[str, str]) -> tuple[str, str]:
    if not isinstance(body, Txt2ImgBody):
        return prompts
    return body.hr_prompt or prompts[0], body.hr_negative_prompt or prompts[1]


def _with_infotext(body: T) -> tuple[T, dict[str, Any]]:
    """The request with the fields that its infotext says and it does not, and options."""
    if not body.infotext:
        return body, {}
    fields, said = infotext.fields_of(body.infotext)
    given = body.model_dump(exclude_unset=True)
    try:
        return type(body).model_validate(fields | given), said
    except ValidationError as error:
        faults = [{**each, "loc": ("body", "infotext", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(faults) from None
