"""Who is asking: an API key, or nobody in particular where none are configured."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping

from configs.settings import ApiSettings
from deployments.api.errors import Unauthorized
from deployments.tasks.model import ANONYMOUS

MAX_KEY_CHARS = 512


class KeyAuth:
    """Knows the configured keys by their digests only."""

    def __init__(self, settings: ApiSettings) -> None:
        self.header = settings.key_header
        self.required = bool(settings.keys)
        keys = [key.get_secret_value() for key in settings.keys]
        self._owners = {_digest(spelt): owner_of(key) for key in keys for spelt in _spellings(key)}

    def owner(self, given: str | None) -> str:
        """The stable owner id of a key. Raises Unauthorized.

        Every configured key is compared, in constant time, so that timing tells nothing.
        """
        if not self.required:
            return ANONYMOUS
        if not given or len(given) > MAX_KEY_CHARS:
            raise Unauthorized
        digest, found = _digest(_bytes_of(given)), None
        for known, owner in self._owners.items():
            if hmac.compare_digest(digest, known):
                found = owner
        if found is None:
            raise Unauthorized
        return found

    def first_owner(self, given: Iterable[str]) -> str:
        """Of the first that is a key. Raises Unauthorized."""
        for key in given:
            with contextlib.suppress(Unauthorized):
                return self.owner(key)
        return self.owner(None)


def given_keys(headers: Mapping[str, str], *names: str) -> Iterator[str]:
    """In those headers, found in any case, and in `Authorization: Bearer KEY`."""
    yield from (headers[name] for name in names if headers.get(name))
    scheme, _, key = headers.get("authorization", "").partition(" ")
    # no more than spaces: others may be bytes of a letter in UTF-8
    if scheme.lower() == "bearer" and (key := key.strip(" ")):
        yield key


def _spellings(key: str) -> Iterator[bytes]:
    """Clients differ in how they write a letter beyond ASCII into a header."""
    yield key.encode()
    with contextlib.suppress(UnicodeEncodeError):
        yield key.encode("latin-1")


def _bytes_of(given: str) -> bytes:
    """As it was sent: headers are read as Latin-1, a password of HTTP Basic as UTF-8."""
    try:
        return given.encode("latin-1")
    except UnicodeEncodeError:
        return given.encode("utf-8", "surrogatepass")


def owner_of(key: str) -> str:
    """A stable id of a key that does not tell the key."""
    return hashlib.sha256(b"daguerre owner\0" + key.encode()).hexdigest()[:32]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
