"""Errors of the computing layer. Each carries a message a user may read."""


class DaguerreError(Exception):
    """Root of every error that Daguerre raises on purpose."""


class InvalidRequest(DaguerreError):
    """The request cannot be served as it is.

    `field` names the request field, e.g. ``"num_inference_steps"``; the message gives the limit and
    the given value.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, message)  # both, or it could not be pickled
        self.field = field

    def __str__(self) -> str:
        return str(self.args[1])


class InvalidImage(InvalidRequest):
    """Bytes that are not a picture we accept: format, size, pixels or damage."""


class ModelError(DaguerreError):
    """A checkpoint that cannot be loaded or does not fit: says which file or keys and why."""


class RequestCanceled(DaguerreError):
    """The request was canceled before its picture was done."""


class NonFiniteOutput(DaguerreError):
    """The model produced NaN or infinity for this request; its neighbours are unaffected."""


class EngineStopped(DaguerreError):
    """The engine is stopping or stopped and took no, or did not finish this, request."""


class ComputationFailed(DaguerreError):
    """The model crashed on this request or on its batch, out of memory for one; may be retried."""


def explained(what: str, error: Exception) -> DaguerreError:
    """The error itself if it is one of ours, else a ComputationFailed that says what failed."""
    if isinstance(error, DaguerreError):
        return error
    failure = ComputationFailed(f"{what} failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
