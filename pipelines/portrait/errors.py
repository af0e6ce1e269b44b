"""What can go wrong with the pictures of a portrait, as a caller tells the cases apart."""

from __future__ import annotations

from enum import Enum

from pipelines.errors import DaguerreError


class Fault(Enum):
    """Which step could not go on. Dialects map it to their own codes and words."""

    TEMPLATE_WITHOUT_FACE = "template_without_face"
    FACE_COUNT = "face_count"
    REFERENCE_WITHOUT_FACE = "reference_without_face"
    FIRST_FUSION = "first_fusion"
    FIRST_REPAINT = "first_repaint"
    SECOND_FUSION = "second_fusion"
    SECOND_REPAINT = "second_repaint"
    BACKGROUND_REPAINT = "background_repaint"
    TEMPLATE_PROCESSING = "template_processing"


class PortraitError(DaguerreError):
    """A portrait that cannot be made of these pictures; says why."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault
