"""Every setting of Daguerre: from defaults, a YAML file, the environment, or `serve` arguments.

The environment wins over the file: `DAGUERRE_HTTP__PORT=9000` is `http.port`. `DAGUERRE_CONFIG`
names the file. This is the only module that reads the environment.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from configs.model import ModelSettings
from configs.pai import PaiSettings
from configs.portraits import FaceSettings, PortraitSettings
from configs.section import HostPort, ModelName, Section, WebAddress
from configs.training import TrainingSettings
from configs.translation import TranslationSettings
from configs.upscaler import PackagedUpscaler

STYLES_FILE = Path(__file__).resolve().parent / "styles.csv"

_config_file: ContextVar[Path | None] = ContextVar("config_file", default=None)

NetworkName = Annotated[str, StringConstraints(pattern=r"^[^\s,][^,\r\n]{0,99}$")]
"""Stands in lists and in pictures' infotext."""
ApiKey = Annotated[SecretStr, Field(min_length=1, max_length=512)]


class HttpSettings(Section):
    host: str = Field("127.0.0.1", description="Address the HTTP proxy listens on.")
    port: int = Field(8000, ge=1, le=65535)
    public_url: WebAddress | None = Field(
        None,
        description="Base of the URLs handed to clients; by default that of their request, and in "
        "callbacks, which have none, `host` and `port`.",
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Larger bodies answer 413.")
    allowed_hosts: tuple[str, ...] = Field(
        ("*",), description="Host headers that are answered; on loopback with no keys: local names."
    )
    gzip_min_bytes: int = Field(
        1000,
        ge=0,
        description="JSON answers from this size on are compressed for clients that accept it, but "
        "for those with whole pictures in them; 0: none.",
    )
    disconnect_grace_s: float = Field(
        5.0,
        ge=0,
        description="A blocking call whose caller has gone cancels its task after this; 0: at "
        "once. One with an Idempotency-Key never does: its caller comes back.",
    )


class ApiSettings(Section):
    keys: tuple[ApiKey, ...] = Field(
        (), description="API keys. Empty: no key is asked for, allowed on loopback only."
    )
    key_header: str = Field(
        "X-API-Key",
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="Where clients give a key; `Authorization: Bearer KEY` does as well.",
    )


class StorageSettings(Section):
    kind: Literal["local", "s3"] = "local"
    prefix: str = Field("", description="Put before every key, e.g. `prod/`.")
    bucket: str = Field("daguerre", min_length=3, max_length=63)
    endpoint_url: str | None = Field(None, description="S3 endpoint; by default AWS.")
    region: str = "us-east-1"
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    urls: Literal["public", "presigned"] = Field(
        "presigned", description="`public` where the bucket may be read by anyone."
    )
    public_url: WebAddress | None = Field(
        None, description="Base of public URLs; by default endpoint/bucket."
    )
    presigned_ttl_s: int = Field(7 * 86400, ge=60, le=7 * 86400)

    @model_validator(mode="after")
    def _public_url_is_used(self) -> StorageSettings:
        if self.public_url and self.urls != "public":
            raise ValueError("public_url is only for `urls: public`: a signature names its host")
        return self


class LimitSettings(Section):
    max_side_px: int = Field(2048, ge=64)
    max_pixels: int = Field(1024 * 1024, ge=64 * 64, description="Width x height of one picture.")
    max_steps: int = Field(150, ge=1)
    max_guidance_scale: float = Field(30.0, ge=1)
    max_images: int = Field(10, ge=1, description="Pictures of one task.")
    max_prompt_chars: int = Field(4000, ge=1)
    max_input_pixels: int = Field(16_000_000, ge=1, description="Of a picture that a client sends.")
    max_controlnets: int = Field(3, ge=0, le=4, description="ControlNets of one request.")
    max_ip_adapters: int = Field(2, ge=0, le=4, description="IP-Adapters of one request.")
    max_loras: int = Field(8, ge=0, le=16, description="LoRAs of one request.")
    max_lora_weight: float = Field(4.0, gt=0, description="Weights go from minus this to this.")
    max_lora_bytes: int = Field(
        512 * 2**20, ge=1024, le=2 * 2**30, description="Of a LoRA file that a client sends."
    )
    max_lora_cache_bytes: int = Field(
        10 * 2**30, ge=0, description="Of the LoRA files that a worker's data_dir keeps unused."
    )
    max_owned_loras: int = Field(1000, ge=1, description="LoRAs of one key; more answer 409.")
    max_drafts: int = Field(
        50, ge=1, description="Models not yet trained, and as many datasets, of one key."
    )
    max_draft_bytes: int = Field(
        256 * 1024, ge=1024, description="Of one such, as JSON: a list of pictures' addresses."
    )
    draft_retention_s: float = Field(
        30 * 86400, ge=3600, description="Those that nobody changed or used for longer are removed."
    )
    max_schedules: int = Field(20, ge=1, description="Schedules of one key; more answer 409.")
    max_schedule_bytes: int = Field(
        256 * 1024, ge=1024, description="Of the request of one schedule, with its pictures."
    )
    max_queue: int = Field(1000, ge=1, description="Waiting tasks of one queue; more answer 429.")


class TaskSettings(Section):
    lease_s: float = Field(15.0, gt=0, description="A worker silent for longer loses its tasks.")
    heartbeat_s: float = Field(0.5, gt=0, description="Renewal, progress and cancel interval.")
    max_errors: int = Field(3, ge=1, description="Attempts that may end in an error.")
    max_lost: int = Field(3, ge=1, description="Attempts that may take their worker down.")
    backoff_s: float = Field(1.0, ge=0, description="First wait before a retry; then doubled.")
    retention_s: float = Field(
        7 * 86400, gt=0, description="Ended tasks and their pictures live on."
    )
    key_prefix: str = Field("daguerre", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    deadline_s: float = Field(
        1.5, gt=0, le=60, description="One command of the task store with all its retries."
    )


class CallbackSettings(Section):
    secret: SecretStr | None = Field(
        None,
        description="Signs callbacks (Standard Webhooks, `whsec_` + base64); None: unsigned. While "
        "a secret is being changed two, with a blank between: both sign.",
    )
    allowed_private_hosts: tuple[HostPort, ...] = Field(
        (), description="`host:port` that may be called though its address is private."
    )
    max_attempts: int = Field(8, ge=1)
    backoff_s: float = Field(5.0, ge=0, description="First wait; then tripled, with jitter.")
    timeout_s: float = Field(15.0, gt=0)


class SdapiSettings(Section):
    """Of the web UI's API."""

    rounding: Literal["truncate", "round"] = Field(
        "truncate",
        description="Of levels to 8 bits: down, as in the web UI, or to the nearest, as in "
        "diffusers and the other APIs here.",
    )


class _Environment(EnvSettingsSource):
    """Says which variable it is that cannot be read."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            fitting = (name for name, given in self.env_vars.items() if given == value)
            name = next((name.upper() for name in fitting if name.endswith(field_name)), field_name)
            raise ValueError(f'{name} must be JSON, such as \'["a", "b"]\' for a list') from None

    def __call__(self) -> dict[str, Any]:
        try:
            return super().__call__()
        except SettingsError as error:
            raise SettingsError(str(error.__cause__ or error)) from None


def _defaults_and_limits(preset: ModelSettings) -> tuple[tuple[str, float, str], ...]:
    """A default beyond its limit would have every request refused that does not give its own."""
    width, height = preset.width or 0, preset.height or 0
    return (
        ("num_inference_steps", preset.num_inference_steps, "max_steps"),
        ("guidance_scale", preset.guidance_scale, "max_guidance_scale"),
        ("width", width, "max_side_px"),
        ("height", height, "max_side_px"),
        ("width x height", width * height, "max_pixels"),
    )


class Settings(BaseSettings):
    """All of it. Unknown names are refused."""

    model_config = SettingsConfigDict(
        env_prefix="DAGUERRE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(Path("data"), description="Embedded store and local pictures live here.")
    redis_url: SecretStr | None = Field(
        None, description="redis://, rediss:// or unix://; None: an embedded server is started."
    )
    http: HttpSettings = HttpSettings()
    api: ApiSettings = ApiSettings()
    storage: StorageSettings = StorageSettings()
    models: dict[ModelName, ModelSettings] = Field(
        default_factory=lambda: {"embedded": ModelSettings()},
        min_length=1,
        description="By name; the first is the default.",
    )
    limits: LimitSettings = LimitSettings()
    tasks: TaskSettings = TaskSettings()
    callbacks: CallbackSettings = CallbackSettings()
    training: TrainingSettings = TrainingSettings()
    portraits: PortraitSettings = PortraitSettings()
    faces: FaceSettings = FaceSettings()
    pai: PaiSettings = PaiSettings()
    translation: TranslationSettings = TranslationSettings()
    sdapi: SdapiSettings = SdapiSettings()
    styles_file: Path = Field(
        STYLES_FILE,
        description="Styles that requests of the web UI's API may name: a CSV file of the columns "
        "name, prompt (with its place, `{prompt}`, or put behind) and negative_prompt.",
    )
    upscalers: dict[NetworkName, Path] = Field(
        default_factory=dict,
        description="Networks that enlarge pictures, by name: files of ESRGAN and of what else the "
        "package spandrel reads (.safetensors; .pth that holds tensors alone).",
    )
    face_restorers: dict[NetworkName, Path] = Field(
        default_factory=dict,
        description="Networks that make faces clear, by name, files of GFPGAN, RestoreFormer or "
        "CodeFormer. `GFPGAN` and `CodeFormer` are what extras' fields of these names mean.",
    )
    ingress_replicas: int = Field(1, ge=1)
    ingress_num_cpus: float = Field(0.1, ge=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        schemes = ("redis://", "rediss://", "unix://")
        if value is not None and not value.get_secret_value().startswith(schemes):
            raise ValueError(f"must start with {', '.join(schemes[:-1])} or {schemes[-1]}")
        return value

    @model_validator(mode="after")
    def _each_name_means_one_model(self) -> Settings:
        aliases = [alias for preset in self.models.values() for alias in preset.aliases]
        if twice := {name for name in aliases if name in self.models or aliases.count(name) > 1}:
            raise ValueError(f"models: {', '.join(sorted(twice))} would mean more than one of them")
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> Settings:
        if self.tasks.heartbeat_s * 2 > self.tasks.lease_s:
            raise ValueError(
                f"tasks.heartbeat_s is {self.tasks.heartbeat_s:g}, more than half of tasks.lease_s "
                f"{self.tasks.lease_s:g}: running tasks would be taken for lost"
            )
        for taken, whose in (("lora", "trainings"), ("portrait", "portraits")):
            if taken in self.models:
                raise ValueError(
                    f"models: {taken} is the name of the {whose}' queue, choose another"
                )
        named = {"portraits.model": self.portraits.model, "pai.xl_model": self.pai.xl_model}
        for field, model in named.items():
            if model not in (None, *self.models):
                raise ValueError(
                    f"{field} is {model}, which is none of models: {', '.join(self.models)}"
                )
        networks = (*get_args(PackagedUpscaler), *self.upscalers)
        if self.portraits.upscaler not in (None, *networks):
            raise ValueError(
                f"portraits.upscaler is {self.portraits.upscaler!r:.100}, which is none of "
                f"{', '.join(networks)}"
            )
        for name, preset in self.models.items():
            for field, given, limit in _defaults_and_limits(preset):
                if given > getattr(self.limits, limit):
                    raise ValueError(
                        f"models.{name}: {field} is {given:g}, more than limits.{limit} "
                        f"{getattr(self.limits, limit):g}"
                    )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources = [init_settings, _Environment(settings_cls)]
        if file := _config_file.get() or os.environ.get("DAGUERRE_CONFIG"):
            if not Path(file).is_file():
                # pydantic-settings would go on without it, and serve with the wrong settings
                raise FileNotFoundError(f"there is no settings file {file}")
            try:
                sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=file))
            except (ValueError, TypeError):
                raise SettingsError(
                    f"{file} must hold settings by name, such as `http: {{port: 9000}}`"
                ) from None
        return tuple(sources)

    @classmethod
    def load(cls, config: Path | None = None, **overrides: Any) -> Settings:
        """Settings from `config` instead of `DAGUERRE_CONFIG`; overrides win over everything.

        Nested overrides are merged: `http={"port": 9000}` keeps the file's `http.host`.
        """
        token = _config_file.set(config)
        try:
            return cls(**overrides)
        finally:
            _config_file.reset(token)

    @property
    def default_model(self) -> str:
        return next(iter(self.models))
