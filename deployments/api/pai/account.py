"""Who calls: an account by its signature, and how many calls it has left."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request

from configs.pai import PaiAccount, PaiSettings
from deployments.api.errors import CallerGone, route_path
from deployments.api.pai.error import Refused, Row, StillRunning
from deployments.api.pai.signature import is_signed, sign
from deployments.tasks.account import AccountStore
from deployments.tasks.errors import StoreUnavailable

AGE_HEADER = "X-Request-Time"


@dataclass(frozen=True)
class Account:
    app_id: str
    owner: str
    """Of its tasks and LoRAs; the same whatever its token is."""
    calls: int | None


class Accounts:
    """The settings' own."""

    def __init__(self, settings: PaiSettings) -> None:
        self._accounts = {account.app_id: account for account in settings.accounts}
        self._max_age_s = settings.max_request_age_s

    def named(self, request: Request) -> PaiAccount:
        """Whom a request says to be of, before its body is read. Raises Refused."""
        app_id, _, _ = request.headers.get("authorization", "").partition(":")
        if app_id not in self._accounts:
            raise Refused(Row.UNKNOWN_APP)
        return self._accounts[app_id]

    def signed(self, request: Request, body: bytes) -> Account:
        """Who it is of. Raises Refused."""
        account = self.named(request)
        _, _, given = request.headers.get("authorization", "").partition(":")
        expected = sign(
            account.token.get_secret_value(),
            request.method,
            route_path(request.scope),
            body,
            request.scope["query_string"].decode("latin-1"),
        )
        if not is_signed(given, expected):
            raise Refused(Row.WRONG_SIGN)
        self._check_age(request.headers.get(AGE_HEADER))
        return Account(account.app_id, owner_of(account.app_id), account.calls)

    def _check_age(self, given: str | None) -> None:
        """Header and signature know nothing of each other: against mishaps, not against attacks."""
        if not given or self._max_age_s is None:
            return
        try:
            off_s = abs(time.time() - float(given))
        except ValueError:
            raise Refused(Row.WRONG_SIGN, f"{AGE_HEADER} must be seconds since 1970") from None
        if not off_s <= self._max_age_s:
            raise Refused(
                Row.WRONG_SIGN,
                f"{AGE_HEADER} may be at most {self._max_age_s:g} s off, given {off_s:.0f}",
            )


@contextlib.asynccontextmanager
async def counted(store: AccountStore, account: Account) -> AsyncIterator[None]:
    """One of the account's calls; given back where nothing comes of it. Raises Refused."""
    if account.calls is None:
        yield
        return
    if not await store.use(account.owner, account.calls):
        raise Refused(Row.NO_CALLS_LEFT)
    try:
        yield
    except (StillRunning, CallerGone):
        raise
    except Exception:
        with contextlib.suppress(StoreUnavailable):  # what went wrong first is what is told
            await store.give_back(account.owner)
        raise


def owner_of(app_id: str) -> str:
    """A stable id that is no API key's."""
    return hashlib.sha256(b"daguerre pai account\0" + app_id.encode()).hexdigest()[:32]
