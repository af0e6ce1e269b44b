"""How a route of this dialect reads its request: the account first, then the signed bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from deployments.api.errors import BodyTooLarge, CallerGone
from deployments.api.pai.account import Account
from deployments.api.pai.dialect import dialect_of
from deployments.api.pai.schema import Body
from deployments.api.route import services_of

MAX_BODY_BYTES = 2**20
"""Pictures come by address, so a body is small."""
_MARGIN_S = 5.0
"""So long after `answer_within_s`, which portraits look at themselves, every call is cut off."""


class SignedRoute(APIRoute):
    """A route behind a signature. Content types say nothing: two SDKs send one with no body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def signed(request: Request) -> Response:
            accounts = dialect_of(request).accounts
            accounts.named(request)
            within_s = services_of(request).settings.pai.answer_within_s
            async with asyncio.timeout(within_s + _MARGIN_S) as request.state.deadline:
                request.state.started = time.monotonic()
                request.state.body = await _body(request)
                request.state.account = accounts.signed(request, request.state.body)
                return await handler(request)

        return signed


async def _body(request: Request) -> bytes:
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY_BYTES:
                raise BodyTooLarge(MAX_BODY_BYTES)
    except ClientDisconnect:
        raise CallerGone from None
    return bytes(data)


def account_of(request: Request) -> Account:
    account: Account = request.state.account
    return account


def body_of(request: Request) -> Body:
    return Body.of(request.state.body)


AccountDep = Annotated[Account, Depends(account_of)]
BodyDep = Annotated[Body, Depends(body_of)]
