"""What the registry can refuse."""

from __future__ import annotations

from pipelines.errors import DaguerreError


class LoraNotFound(DaguerreError):
    """No such LoRA, or it is someone else's own."""

    def __init__(self, lora_id: str) -> None:
        super().__init__(f"There is no LoRA {lora_id[:80]}.")
        self.lora_id = lora_id


class NameTaken(DaguerreError):
    """The owner has another LoRA of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"You have another LoRA named {name!r}.")
        self.name = name


class TooManyLoras(DaguerreError):
    """The owner has as many LoRAs as one may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"You have {limit} LoRAs, as many as you may: delete one.")
        self.limit = limit


class CallConflict(DaguerreError):
    """The call's id was used before, with another file."""

    def __init__(self) -> None:
        super().__init__("The idempotency key was used with another file.")


class NoCurve(DaguerreError):
    """Nothing was trained here, or it was not kept."""


class ClaimLost(DaguerreError):
    """Another attempt has the training now, or it was canceled: nothing was registered."""

    def __init__(self) -> None:
        super().__init__("The training is another attempt's now.")


class UploadExpired(DaguerreError):
    """The file was announced so long ago that it may be gone; worth another try from the start."""

    def __init__(self) -> None:
        super().__init__("The upload took too long, try again.")
