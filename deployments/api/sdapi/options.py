"""Options as the web UI has them: each caller's own, and for one request on top of those.

Nothing here changes what is loaded: a checkpoint among a caller's options is the model of that
caller's later requests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from pydantic import TypeAdapter, ValidationError

from configs.settings import Settings
from deployments.api.errors import shown
from deployments.api.sdapi.checkpoint import UNKNOWN, Cards, find_model, title
from deployments.api.sdapi.coercion import Bool, Float, Str
from deployments.api.sdapi.vae import ITS_OWN, UNSAID, VAE, vae_names
from pipelines.emphasis import EMPHASES
from pipelines.errors import InvalidRequest

CHECKPOINT = "sd_model_checkpoint"
RESTORER = "face_restoration_model"
CLIP_SKIP = "CLIP_stop_at_last_layers"
MAX_VALUE_CHARS = 4000
MAX_CLIP_SKIP = 12
FILE_FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}

NOISE = "randn_source"
NOISE_SOURCES = {"CPU": "cpu", "GPU": "cuda", "NV": "cuda"}
"""A worker of any device draws the noise of either."""

RESTRICTED = frozenset({"api_enable_requests", "api_forbid_local_requests", "api_useragent"})
"""Calls over HTTP leave them as they are."""
_READERS: dict[type, TypeAdapter[Any]] = {
    bool: TypeAdapter(Bool),
    int: TypeAdapter(Float),
    float: TypeAdapter(Float),
    str: TypeAdapter(Str),
}
_FROM_SETTINGS = frozenset({CHECKPOINT, "sd_checkpoint_hash"})

_SAME = {
    "upscaler_for_img2img": (None, "", "None", "Lanczos"),
    "sd_unet": (None, "", "Automatic", "None"),
    "sd_hypernetwork": (None, "", "None"),
    "sd_lora": (None, "", "None"),
}
"""Of fixed options, the values that mean what is done anyway, where there are several."""


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(
        files(__package__).joinpath("options.json").read_text()
    )
    return found


@functools.cache
def catalogue() -> Mapping[str, Any]:
    """Every key that the settings do not rule, with its default."""
    return _tables()["kept"] | _tables()["fixed"]


def _fixed() -> Mapping[str, Any]:
    """Options that change pictures and cannot be honoured: only what is done anyway is taken."""
    return _tables()["fixed"]


def effective(settings: Settings, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """All options; later layers, which are checked ones, go before earlier ones."""
    values = dict(catalogue()) | {CHECKPOINT: settings.default_model, "sd_checkpoint_hash": ""}
    for layer in layers:
        values |= layer
    if values[CHECKPOINT] not in settings.models:  # it was, when it was stored
        values[CHECKPOINT] = settings.default_model
    return values


def told(values: Mapping[str, Any], cards: Cards) -> dict[str, Any]:
    """All options as a caller reads them: the checkpoint by its title, with its hash."""
    model = values[CHECKPOINT]
    known = cards[model].sha256 if model in cards else None
    return dict(values) | {CHECKPOINT: title(cards, model), "sd_checkpoint_hash": known or ""}


def checked(
    changes: Mapping[str, Any], settings: Settings, field: str, cards: Cards = UNKNOWN
) -> dict[str, Any]:
    """The changes as they are kept, without those of RESTRICTED. Raises InvalidRequest."""
    kept = {}
    for key, value in changes.items():
        if key in RESTRICTED or key == "sd_checkpoint_hash":
            continue
        if key not in catalogue() and key not in _FROM_SETTINGS:
            raise InvalidRequest(field, f"there is no option {shown(key)}")
        if key == CHECKPOINT:
            kept[key] = _model(value, settings, field, cards)
        elif key == RESTORER:
            kept[key] = _restorer(value, settings, field)
        elif key == VAE:
            kept[key] = _vae(value, settings, field)
        else:
            kept[key] = _value(key, value, field)
    return kept


def _value(key: str, value: Any, field: str) -> Any:
    default = catalogue()[key]
    same = _SAME.get(key, (default,))
    value = _like(key, value, default, field)
    if key in _fixed() and value not in same:
        raise InvalidRequest(field, f"{key} must be {same[-1]!r} here, given {shown(value)}")
    if key == "samples_format" and value not in FILE_FORMATS:
        raise InvalidRequest(field, f"{key} must be png, jpg or webp, given {shown(value)}")
    if key == NOISE and value not in NOISE_SOURCES:
        raise InvalidRequest(field, f"{key} must be CPU, GPU or NV, given {shown(value)}")
    if key == "emphasis" and value not in EMPHASES:
        raise InvalidRequest(field, f"{key} must be one of {EMPHASES}, given {shown(value)}")
    if key == CLIP_SKIP and not 1 <= value <= MAX_CLIP_SKIP:
        raise InvalidRequest(field, f"{key} must be 1 to {MAX_CLIP_SKIP}, given {shown(value)}")
    return value


def _like(key: str, value: Any, default: Any, field: str) -> Any:
    """The value in the type of the default, where it may be read so."""
    if value is None:
        return default
    if len(json.dumps(value)) > MAX_VALUE_CHARS:
        raise InvalidRequest(field, f"{key} must be at most {MAX_VALUE_CHARS} characters of JSON")
    kind = type(default)
    reader = _READERS.get(kind)
    try:
        read = value if reader is None else reader.validate_python(value)
    except ValidationError:
        read = None
    if reader is None and default is not None and not isinstance(value, kind):
        read = None
    if read is None:
        raise InvalidRequest(field, f"{key} must be of type {kind.__name__}, given {shown(value)}")
    return int(read) if kind is int and read == int(read) else read


def _restorer(value: Any, settings: Settings, field: str) -> Any:
    """The default stands for whichever is here: clients send it back as they read it."""
    name = _value(RESTORER, value, field)
    known = (catalogue()[RESTORER], *settings.face_restorers)
    if name not in known:
        raise InvalidRequest(field, f"there is no face restorer {shown(name)}")
    return name


def _vae(value: Any, settings: Settings, field: str) -> Any:
    name = _value(VAE, value, field)
    if name not in UNSAID and name not in (known := (ITS_OWN, *vae_names(settings))):
        raise InvalidRequest(
            field, f"{VAE} must be Automatic or one of {', '.join(known)}, given {shown(name)}"
        )
    return name


def _model(value: Any, settings: Settings, field: str, cards: Cards) -> str:
    if value is None or value == "":
        return settings.default_model
    if found := find_model(settings, str(value), cards):
        return found
    raise InvalidRequest(field, f"model {shown(value)} not found")
