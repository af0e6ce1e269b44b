"""What the routes of this dialect have of the application."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from deployments.api.pai.account import Accounts
from deployments.api.pai.picture import Pictures
from deployments.api.pai.training import PhotoTrainings
from deployments.api.services import Services


@dataclass(frozen=True)
class Dialect:
    accounts: Accounts
    trainings: PhotoTrainings
    pictures: Pictures

    @classmethod
    def of(cls, services: Services) -> Dialect:
        """On the settings' accounts."""
        accounts = Accounts(services.settings.pai)
        return cls(accounts, PhotoTrainings(services), Pictures(services))


def dialect_of(request: Request) -> Dialect:
    dialect: Dialect = request.app.state.pai
    return dialect
