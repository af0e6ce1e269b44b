"""Settings of the portrait SDK's API."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from configs.section import ModelName, Section


class PaiAccount(Section):
    """Who may call the portrait SDK's API."""

    app_id: str = Field(pattern=r"^[!-9;-~]{1,128}$", description="No colon: headers split there.")
    token: SecretStr = Field(min_length=1, max_length=512)
    calls: int | None = Field(
        None,
        ge=0,
        description="How many checks, trainings, portraits and pictures in all; refused ones do "
        "not count. None: without end.",
    )


class PaiSettings(Section):
    """The API of the PAI AI-portrait SDKs; without accounts nobody can call it."""

    accounts: tuple[PaiAccount, ...] = ()
    xl_model: ModelName | None = Field(
        None,
        description="The base model of `train_xl` and `create_xl`; None: these answer 404. Without "
        "a name it is `portraits.model`.",
    )
    training: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the LoRA job of every training, such as `{steps: 800}`.",
    )
    answer_within_s: float = Field(
        90.0,
        gt=0,
        le=3000,
        description="A portrait not done by then answers 469 and goes on as a job; the Java SDK "
        "waits for 100 s.",
    )
    max_request_age_s: float | None = Field(
        900.0,
        gt=0,
        description="A request whose X-Request-Time is further off is refused; one without that "
        "header never is. None: the header is not read.",
    )
    output_format: Literal["jpeg", "png"] = "jpeg"

    @field_validator("accounts")
    @classmethod
    def _one_token_each(cls, value: tuple[PaiAccount, ...]) -> tuple[PaiAccount, ...]:
        if len({account.app_id for account in value}) < len(value):
            raise ValueError("accounts must have different app_ids")
        return value
