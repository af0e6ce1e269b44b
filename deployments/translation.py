"""Prompts in another language, by a service that the settings name.

What a prompt is made of stays: `<tags>`, brackets, weights, commas, AND and BREAK; the words
between are sent, each piece on a line of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import httpx

from configs.translation import TranslationSettings
from deployments.fetch import INTERNET, FetchFailed, Network, UrlPolicy, UrlRefused, ask
from deployments.log import get_logger
from pipelines.errors import DaguerreError

log = get_logger(__name__)

ALIBABA_URL = "https://mt.aliyuncs.com/"
MAX_ANSWER_BYTES = 2**20

_SYNTAX = re.compile(r"(<[^<>]*>|\b(?:AND|BREAK)\b|\\[()\[\]\\]|[()\[\]{}|,:;\n，、；])")
_ASCII_FOR = {"，": ", ", "、": ", ", "；": "; "}
_NO_SYNTAX = str.maketrans(dict.fromkeys("()[]{}<>|:\\", " "))
"""What a translation must not add."""


class TranslationUnavailable(DaguerreError):
    """The service refused, did not answer in time, or answered what cannot be used."""


class Backend(Protocol):
    """One kind of service."""

    def request(self, text: str, now: datetime) -> tuple[bytes, Mapping[str, str]]:
        """Body and headers that ask for a text's translation."""

    def answer(self, found: Any) -> Any:
        """The translation in an answer's JSON. Raises LookupError, TypeError for another shape."""


class Translator:
    """Calls of the settings' service; holds no connection."""

    def __init__(
        self, settings: TranslationSettings, backend: Backend, url: str, *, network: Network
    ) -> None:
        self._settings, self._backend, self._url = settings, backend, url
        self._network = network
        # The deployer's own address may be a private one; it is not followed anywhere else.
        self._policy = UrlPolicy((_netloc(url),), settings.timeout_s, settings.timeout_s)

    @classmethod
    def of(cls, settings: TranslationSettings, *, network: Network = INTERNET) -> Translator | None:
        """None where the settings name no service."""
        if settings.backend == "none":
            return None
        if settings.backend == "alibaba":
            url = settings.url or ALIBABA_URL
            return cls(settings, Alibaba(settings, url), url, network=network)
        url = f"{(settings.url or '').rstrip('/')}/translate"
        return cls(settings, LibreTranslate(settings), url, network=network)

    async def prompt(self, text: str) -> str:
        """A prompt in the target language. Raises TranslationUnavailable."""
        parts = _SYNTAX.split(text)
        pieces = list(dict.fromkeys(part.strip() for part in parts[::2] if self._foreign(part)))
        if not pieces:
            return text
        known = dict(zip(pieces, await self._lines(pieces), strict=True))
        parts[::2] = [
            part.replace(part.strip(), known[part.strip()]) if self._foreign(part) else part
            for part in parts[::2]
        ]
        parts[1::2] = [_ASCII_FOR.get(part, part) for part in parts[1::2]]
        return "".join(parts)

    def _foreign(self, part: str) -> bool:
        if self._settings.source == "auto" and part.isascii():
            return False
        return any(letter.isalpha() for letter in part)

    async def _lines(self, pieces: Sequence[str]) -> list[str]:
        found = await self._translated("\n".join(" ".join(piece.split()) for piece in pieces))
        lines = [" ".join(line.translate(_NO_SYNTAX).split()) for line in found.strip().split("\n")]
        if len(lines) != len(pieces) or not all(lines):
            raise _unavailable(f"it answered {len(lines)} lines to {len(pieces)}")
        return lines

    async def _translated(self, text: str) -> str:
        body, headers = self._backend.request(text, datetime.now(UTC))
        try:
            status, data = await ask(
                self._url,
                body,
                headers,
                max_bytes=MAX_ANSWER_BYTES,
                policy=self._policy,
                network=self._network,
            )
        except (UrlRefused, FetchFailed) as error:
            raise _unavailable(str(error)) from None
        try:
            found = json.loads(data)
            translated = self._backend.answer(found) if status == 200 else None
        except (ValueError, LookupError, TypeError, RecursionError):
            found = translated = None
        if not isinstance(translated, str):
            raise _unavailable(f"it answered {status}{_code(found)}")
        return translated


class LibreTranslate:
    """LibreTranslate's `POST /translate`, which others speak as well."""

    def __init__(self, settings: TranslationSettings) -> None:
        self._settings = settings

    def request(self, text: str, now: datetime) -> tuple[bytes, Mapping[str, str]]:
        settings = self._settings
        body = {"q": text, "source": settings.source, "target": settings.target, "format": "text"}
        if settings.api_key is not None:
            body["api_key"] = settings.api_key.get_secret_value()
        return json.dumps(body).encode(), {"Content-Type": "application/json"}

    def answer(self, found: Any) -> Any:
        return found["translatedText"]


class Alibaba:
    """Alibaba Cloud Machine Translation, TranslateGeneral of 2018-10-12, signed with
    ACS3-HMAC-SHA256 (Alibaba Cloud SDK, "Request syntax and signature method V3").
    """

    def __init__(self, settings: TranslationSettings, url: str) -> None:
        self._settings = settings
        parsed = httpx.URL(url)
        # as it will stand in the header: without a port that is the scheme's own
        self._host, self._path = parsed.netloc.decode(), parsed.path

    def request(self, text: str, now: datetime) -> tuple[bytes, Mapping[str, str]]:
        settings = self._settings
        body = urlencode(
            {
                "FormatType": "text",
                "Scene": "general",
                "SourceLanguage": settings.source,
                "SourceText": text,
                "TargetLanguage": settings.target,
            }
        ).encode()
        headers = {
            "host": self._host,
            "content-type": "application/x-www-form-urlencoded",
            "x-acs-action": "TranslateGeneral",
            "x-acs-content-sha256": hashlib.sha256(body).hexdigest(),
            "x-acs-date": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "x-acs-signature-nonce": uuid.uuid4().hex,
            "x-acs-version": "2018-10-12",
        }
        assert settings.access_key_id is not None
        assert settings.access_key_secret is not None
        signed = signature(
            settings.access_key_secret.get_secret_value(), "POST", self._path, "", headers
        )
        key_id, names = settings.access_key_id.get_secret_value(), ";".join(sorted(headers))
        authorization = f"{ALGORITHM} Credential={key_id},SignedHeaders={names},Signature={signed}"
        sent = {name: value for name, value in headers.items() if name != "host"}
        return body, sent | {"Authorization": authorization, "Accept": "application/json"}

    def answer(self, found: Any) -> Any:
        return found["Data"]["Translated"] if str(found["Code"]) == "200" else None


ALGORITHM = "ACS3-HMAC-SHA256"


def signature(secret: str, method: str, path: str, query: str, headers: Mapping[str, str]) -> str:
    """Hexadecimal. `headers` are all that are signed, by lower-case name, the body's digest
    (`x-acs-content-sha256`) among them; `query` is sorted and encoded.
    """
    named = sorted(headers.items())
    canonical = "\n".join(
        [
            method,
            quote(path, safe="/~"),
            query,
            *(f"{name}:{value.strip()}" for name, value in named),
            "",
            ";".join(name for name, _ in named),
            headers["x-acs-content-sha256"],
        ]
    )
    text = f"{ALGORITHM}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _unavailable(reason: str) -> TranslationUnavailable:
    log.warning("no translation: %s", reason)
    return TranslationUnavailable(f"The prompt could not be translated: {reason}.")


def _code(found: Any) -> str:
    """The error code of an answer, and no more of it: messages may repeat what was sent."""
    code = str(found.get("Code", "")) if isinstance(found, dict) else ""
    return f" ({code})" if re.fullmatch(r"[A-Za-z0-9._-]{1,80}", code) else ""


def _netloc(url: str) -> str:
    """`host:port` as `UrlPolicy` has it."""
    split = urlsplit(url)
    host = split.hostname or ""
    port = split.port or {"https": 443}.get(split.scheme, 80)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
