"""Pictures that clients send in any of the ways they may: files, base64 and addresses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from urllib.parse import quote

from deployments.fetch import FetchFailed, UrlPolicy, UrlRefused, fetch
from pipelines.errors import InvalidImage, InvalidRequest
from pipelines.images import decode_data_url

SentPhoto = str | bytes
"""A picture's file, or its data URL, base64 or http(s) URL."""

_FETCHES = 8
"""Pictures fetched at once, of all requests."""
FETCH_ALL_S = 60.0
"""For all pictures of one request: others wait meanwhile."""
_URL_CHARACTERS = "%:/?#[]@!$&'()*+,;="


class SentPhotos:
    """Reads them within bounds of number, bytes and time."""

    def __init__(self, policy: UrlPolicy, *, max_bytes: int, max_total_bytes: int) -> None:
        """`max_bytes` are of one picture, `max_total_bytes` of one request."""
        self._policy = policy
        self._max_bytes, self._max_total_bytes = max_bytes, max_total_bytes
        self._slots = asyncio.Semaphore(_FETCHES)

    async def files(self, sent: Mapping[str, SentPhoto]) -> dict[str, bytes]:
        """The files of all, by field. Raises InvalidImage for the first that cannot be had."""
        found = await self.outcomes(sent)
        for data in found.values():
            if isinstance(data, InvalidImage):
                raise data
        return {field: data for field, data in found.items() if isinstance(data, bytes)}

    async def outcomes(self, sent: Mapping[str, SentPhoto]) -> dict[str, bytes | InvalidImage]:
        """The file of each, or why it cannot be had; what is there twice is asked for once. Raises
        InvalidRequest for too much in all."""
        left, times = self._max_total_bytes, Counter(sent.values())
        until = asyncio.get_running_loop().time() + FETCH_ALL_S

        async def one(field: str, photo: SentPhoto) -> bytes | InvalidImage:
            nonlocal left
            try:
                async with asyncio.timeout_at(until), self._slots:
                    data = await self._file(field, photo)
            except InvalidImage as error:
                return error
            except TimeoutError:
                return InvalidImage(
                    field,
                    f"{field} was not there when all pictures had taken {FETCH_ALL_S:g} s",
                )
            left -= len(data) * times[photo]
            if left < 0:
                raise InvalidRequest(
                    field, f"all pictures may have at most {self._max_total_bytes} bytes together"
                )
            return data

        named: dict[SentPhoto, str] = {}
        for field, photo in sent.items():
            named.setdefault(photo, field)
        tasks = [asyncio.create_task(one(field, photo)) for photo, field in named.items()]
        try:
            found = dict(zip(named, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()
        return {field: found[photo] for field, photo in sent.items()}

    async def _file(self, field: str, photo: SentPhoto) -> bytes:
        if isinstance(photo, bytes):
            if len(photo) > self._max_bytes:
                raise InvalidImage(
                    field,
                    f"{field} may have at most {self._max_bytes} bytes, given {len(photo)}",
                )
            return photo
        if photo[:7].lower() == "http://" or photo[:8].lower() == "https://":
            try:
                return await fetch(as_sent(photo), max_bytes=self._max_bytes, policy=self._policy)
            except (UrlRefused, FetchFailed) as error:
                raise InvalidImage(field, f"{field}: {error}") from None
        return await asyncio.to_thread(
            decode_data_url, photo, field=field, max_bytes=self._max_bytes
        )


def as_sent(url: str) -> str:
    """An address as it goes over the wire: what is not ASCII, or a blank, percent-encoded."""
    return quote(url, safe=_URL_CHARACTERS, errors="replace")
