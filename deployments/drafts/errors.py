"""What the store of drafts can refuse."""

from __future__ import annotations

from pipelines.errors import DaguerreError


class DraftNotFound(DaguerreError):
    """No such draft, or it is someone else's."""

    def __init__(self, kind: str, draft_id: str) -> None:
        super().__init__(f"There is no {kind} {draft_id[:80]}.")
        self.draft_id = draft_id


class ImageNotFound(DraftNotFound):
    """No such drawn picture, or it is someone else's."""

    def __init__(self, image_id: str) -> None:
        super().__init__("image", image_id)


class TooManyDrafts(DaguerreError):
    """The owner has as many drafts of this kind as one may have."""

    def __init__(self, kind: str, limit: int) -> None:
        super().__init__(f"You have {limit} of the kind {kind}, as many as you may: delete one.")
        self.limit = limit


class Locked(DaguerreError):
    """It is being trained, so it can be neither changed nor deleted."""
