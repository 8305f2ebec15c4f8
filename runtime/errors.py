"""Errors of the engine that a caller can tell apart."""

from gladstone.errors import DataError, GladstoneError, UnsupportedError


class ContextFullError(DataError):
    """The prompt leaves no room in the context for an answer."""


class QueueFullError(UnsupportedError):
    """More requests wait than the queue holds."""


class ListenerError(GladstoneError):
    """The listener of a request raised `error`, which ends that request."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error
