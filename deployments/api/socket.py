"""How a WebSocket of ours is opened and closed: key first, then what is told, then the end."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from fastapi import WebSocket, WebSocketDisconnect

from deployments.api.auth import KeyAuth, given_keys
from deployments.api.errors import RULES, TooManyStreams, refuse
from deployments.api.services import Services
from deployments.api.watch import StreamCut

SUBPROTOCOL = "daguerre"
KEY_SUBPROTOCOL = "daguerre.key."
"""A browser cannot set headers, and an address is written into logs: its page offers the
subprotocols `daguerre` and this with the key in base64url, without padding."""

ENDED, RESTART, COME_BACK = 1000, 1012, 1013
"""Codes of RFC 6455 and its registry."""

Open = Callable[[Services, str], Awaitable[AsyncIterator[str]]]


async def tell(websocket: WebSocket, opened: Open, key_header: str | None = None) -> None:
    """Send all that `opened(services, owner)` yields; what it raises before answers the handshake.

    Ends with the last text, when the client leaves, and when this replica stops. What the client
    sends is not read for its meaning.
    """
    services: Services = websocket.app.state.services
    try:
        owner = _owner(websocket, key_header)
        if services.full:
            raise TooManyStreams
        texts = await opened(services, owner)
    except tuple(RULES) as error:
        await refuse(error, websocket.scope, websocket.receive, websocket.send)
        return
    offered = websocket.scope["subprotocols"]
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    with contextlib.suppress(WebSocketDisconnect):
        await websocket.close(await _end(websocket, texts, services.stopping))


async def _end(websocket: WebSocket, texts: AsyncIterator[str], stopping: asyncio.Event) -> int:
    """The code to close with. Raises WebSocketDisconnect where the client left."""
    sending = asyncio.create_task(_send(websocket, texts))
    leaving = asyncio.create_task(_left(websocket))
    tasks = (sending, leaving, asyncio.create_task(stopping.wait()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not leaving.cancelled():
        leaving.result()
    return RESTART if sending.cancelled() else sending.result()


async def _send(websocket: WebSocket, texts: AsyncIterator[str]) -> int:
    try:
        async for text in texts:
            await websocket.send_text(text)
    except StreamCut:
        return COME_BACK
    return ENDED


async def _left(websocket: WebSocket) -> None:
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        pass
    raise WebSocketDisconnect(message.get("code", 1005))


def _owner(websocket: WebSocket, key_header: str | None) -> str:
    auth: KeyAuth = websocket.app.state.auth
    names = (auth.header, key_header) if key_header else (auth.header,)
    given = [*given_keys(websocket.headers, *names), *_offered_keys(websocket)]
    return auth.first_owner(given)


def _offered_keys(websocket: WebSocket) -> Iterator[str]:
    for word in websocket.scope["subprotocols"]:
        if word.startswith(KEY_SUBPROTOCOL):
            text = word.removeprefix(KEY_SUBPROTOCOL)
            with contextlib.suppress(ValueError, binascii.Error):
                key = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
                yield key.decode("latin-1")
