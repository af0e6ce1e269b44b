"""Who translates prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, model_validator

from configs.section import Section, WebAddress


class TranslationSettings(Section):
    """Of prompts that ask for it (`translate`): who translates, and from what to what."""

    backend: Literal["none", "alibaba", "libretranslate"] = "none"
    url: WebAddress | None = Field(
        None,
        description="Of the service; by default Alibaba's own. May be a private address: it is not "
        "a client's.",
    )
    source: str = Field(
        "auto",
        pattern=r"^[A-Za-z-]{2,10}$",
        description="Language of prompts, as the service calls it. `auto`: it is found out, and "
        "what has no letters beyond ASCII stays as it is.",
    )
    target: str = Field("en", pattern=r"^[A-Za-z-]{2,10}$")
    access_key_id: SecretStr | None = Field(None, description="Of Alibaba's.")
    access_key_secret: SecretStr | None = None
    api_key: SecretStr | None = Field(None, description="Of LibreTranslate, where it asks for one.")
    timeout_s: float = Field(5.0, gt=0, le=60)

    @model_validator(mode="after")
    def _has_what_its_backend_needs(self) -> TranslationSettings:
        if self.backend == "libretranslate" and self.url is None:
            raise ValueError("url is needed for `backend: libretranslate`")
        if self.backend == "alibaba" and not (self.access_key_id and self.access_key_secret):
            raise ValueError(
                "access_key_id and access_key_secret are needed for `backend: alibaba`"
            )
        return self
