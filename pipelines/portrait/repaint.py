"""The one door to the diffusion model."""

from __future__ import annotations

from pipelines.errors import DaguerreError
from pipelines.portrait.array import Mask, Picture
from pipelines.portrait.errors import Fault, PortraitError
from pipelines.portrait.job import Person, PortraitJob, RepaintOrder, RepaintStage

_FAULTS: dict[RepaintStage, Fault] = {
    "first": Fault.FIRST_REPAINT,
    "second": Fault.SECOND_REPAINT,
    "ring": Fault.BACKGROUND_REPAINT,
    "background": Fault.BACKGROUND_REPAINT,
}


def repainted(
    job: PortraitJob,
    stage: RepaintStage,
    mask: Mask,
    strength: float,
    steps: int,
    person: Person | None = None,
) -> Picture:
    """The person's crop, or of nobody the whole picture, as `job.tools.repaint` draws it; without
    one, as it is.

    Errors of ours pass (a canceled request is no fault of the picture); any other, and a picture of
    another size, is a PortraitError of this stage.
    """
    picture = job.picture if person is None else person.picture
    if job.tools.repaint is None:
        return picture
    subject, mesh = (None, None) if person is None else (person.subject, person.mesh)
    order = RepaintOrder(stage, picture, mask, strength, steps, subject, mesh, job.parameters)
    try:
        drawn = job.tools.repaint(order)
    except DaguerreError:
        raise
    except Exception as error:
        raise PortraitError(
            _FAULTS[stage], f"the {stage} repaint failed: {type(error).__name__}: {error}"
        ) from error
    if drawn.shape != picture.shape:
        raise PortraitError(
            _FAULTS[stage],
            f"the {stage} repaint must keep the size {picture.shape}, it gave {drawn.shape}",
        )
    return drawn
