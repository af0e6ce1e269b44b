"""Pictures that clients send: read, judged and named."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from configs.settings import Settings
from deployments.fetch import FetchFailed, UrlPolicy, UrlRefused, fetch
from deployments.storage.store import BINARY, ObjectStore
from deployments.tasks.image import INPUT_PREFIX, ImageFields, ImageOrder
from deployments.tasks.limit import MIN_SIDE_PX, Size
from pipelines.errors import InvalidRequest
from pipelines.images import decode_data_url, decode_image

Work = Callable[[], "SentPicture"]

MIN_GUIDE_SIDE_PX = 8
"""Of pictures that guide: they may be smaller than what is drawn."""


@dataclass(frozen=True)
class SentPicture:
    key: str
    data: bytes
    content_type: str
    size: Size

    async def keep(self, objects: ObjectStore) -> None:
        """Raises StorageUnavailable."""
        await objects.put(self.key, self.data, self.content_type)


class SentPictures:
    """Reads pictures within the limits of the settings."""

    def __init__(
        self, settings: Settings, decode: Callable[[Work], Awaitable[SentPicture]]
    ) -> None:
        """`decode` runs work on pictures in a thread, and not too much of it at once."""
        self._settings = settings
        self._decode = decode

    async def read(self, field: str, sent: str | bytes | None) -> SentPicture | None:
        """Of a data URL or a file. Raises InvalidImage."""
        if sent is None:
            return None
        return await self._judged(field, sent, MIN_SIDE_PX)

    async def guides(
        self, fields: ImageFields, order: ImageOrder
    ) -> tuple[ImageOrder, list[SentPicture]]:
        """The order with ControlNets and IP-Adapters, and the pictures that came for them.

        One without a picture has the initial one. Raises InvalidRequest.
        """
        pictures: list[SentPicture] = []

        async def key(field: str, index: int, image: str | None) -> str:
            if image is None:
                return order.init_image_key or ""
            pictures.append(await self._guide(f"{field}.{index}.image", image))
            return pictures[-1].key

        controls = [
            entry.ordered(await key("controlnet", i, entry.image))
            for i, entry in enumerate(fields.controlnet or ())
        ]
        prompts = [
            entry.ordered(await key("ip_adapter", i, entry.image))
            for i, entry in enumerate(fields.ip_adapter or ())
        ]
        return order.guided(controls, prompts), pictures

    async def _guide(self, field: str, image: str) -> SentPicture:
        sent: str | bytes = image
        if image[:8].lower().startswith(("http://", "https://")):
            policy = UrlPolicy(self._settings.training.allowed_private_hosts)
            try:
                sent = await fetch(
                    image, max_bytes=self._settings.http.max_body_bytes, policy=policy
                )
            except (UrlRefused, FetchFailed) as error:
                raise InvalidRequest(field, f"{field} cannot be fetched: {error}") from None
        return await self._judged(field, sent, MIN_GUIDE_SIDE_PX)

    async def _judged(self, field: str, sent: str | bytes, min_side_px: int) -> SentPicture:
        return await self._decode(lambda: self._read(field, sent, min_side_px))

    def _read(self, field: str, sent: str | bytes, min_side_px: int) -> SentPicture:
        """Judged whole, in a thread; kept as the client sent it. Raises InvalidImage."""
        limits = self._settings.limits
        if isinstance(sent, str):
            most = self._settings.http.max_body_bytes
            sent = decode_data_url(sent, field=field, max_bytes=most)
        image = decode_image(
            sent, field=field, max_pixels=limits.max_input_pixels, min_side_px=min_side_px
        )
        # By content: the same picture sent again is stored once, and a repeated put renews it.
        key = INPUT_PREFIX + hashlib.sha256(sent).hexdigest()
        return SentPicture(key, sent, BINARY, image.size)
