"""How a route of this dialect reads its request: HTTP Basic or the API key, and larger objects."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any

from fastapi import Depends, Request, Response

from deployments.api.auth import KeyAuth, given_keys
from deployments.api.errors import Unauthorized
from deployments.api.route import KeyedRoute, OwnerDep, ServicesDep, StrictRequest, parse_json
from deployments.api.sdapi.error import Refused
from deployments.api.sdapi.job import Jobs

MAX_OPTIONS = 1000
"""Keys of one object: clients send all options back, and those are some hundreds."""


class OptionsRequest(StrictRequest):
    async def json(self) -> Any:
        body = await self.body()
        found = parse_json(body, max_keys=MAX_OPTIONS)
        if b"\\ud" in body.lower():
            try:
                json.dumps(found, ensure_ascii=False).encode()
            except UnicodeEncodeError:  # could not be told back to anybody
                raise json.JSONDecodeError("half a surrogate pair", "", 0) from None
        return found


class SdapiRoute(KeyedRoute):
    """A route behind an API key, which may be the password of HTTP Basic or `user:password`."""

    request_class = OptionsRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def timed(request: Request) -> Response:
            started = time.perf_counter()
            response = await handler(request)
            response.headers["X-Process-Time"] = f"{time.perf_counter() - started:.4f}"
            return response

        return timed

    def owner(self, request: Request, auth: KeyAuth) -> str:
        """Raises Refused."""
        given = [*_keys(request, auth.header)]
        try:
            return auth.first_owner(given)
        except Unauthorized:
            detail = "Incorrect username or password" if given else "Not authenticated"
            raise Refused(401, detail, headers={"WWW-Authenticate": "Basic"}) from None


def _keys(request: Request, header: str) -> Iterator[str]:
    yield from given_keys(request.headers, header)
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return
    try:
        pair = base64.b64decode(given, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return
    user, _, password = pair.partition(":")
    yield from (each for each in (pair, password, user) if each)


def jobs_of(services: ServicesDep, owner: OwnerDep) -> Jobs:
    return Jobs(services, owner)


JobsDep = Annotated[Jobs, Depends(jobs_of)]
