"""An answer that is being generated."""

import queue
from collections.abc import Callable, Iterator

from runtime.request import Completion, Event
from runtime.text.reasoning_splitter import Piece


class Answer:
    """An answer that is being generated: iterate over its pieces, or wait for the result. Any thread may use it."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel: Callable[[], None] | None = cancel
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._completion: Completion | None = None
        self._error: BaseException | None = None

    def put(self, event: Event) -> None:
        """Add an event. Only the engine calls it."""
        self._events.put(event)

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces as they are generated. Raises the error that ended the answer, if one did."""
        while (piece := self.next()) is not None:
            yield piece

    def next(self, timeout_s: float | None = None) -> Piece | None:
        """The next piece; None at the end. Raises queue.Empty on a timeout, and the error that ended the answer."""
        if self._completion is None and self._error is None:
            match self._events.get(timeout=timeout_s):
                case Piece() as piece:
                    return piece
                case Completion() as completion:
                    self._completion = completion
                case error:
                    self._error = error
        if self._error is not None:
            raise self._error
        return None

    def result(self) -> Completion:
        """Wait for the completion. Raises the error that ended the answer, if one did."""
        while self._completion is None:
            self.next()
        return self._completion

    def cancel(self) -> None:
        """End the answer, even during the prefill of a long prompt; its completion has the text so far."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()
