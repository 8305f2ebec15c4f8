"""An answer that is on its way."""

import queue
from collections.abc import Callable, Iterator

from runtime.request import Completion, Event
from runtime.text.reasoning_splitter import Piece


class Answer:
    """An answer that is being written: iterate over its pieces, or wait for the whole. Any thread may use it."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel: Callable[[], None] | None = cancel
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._end: Completion | BaseException | None = None

    def put(self, event: Event) -> None:
        """Called by the engine."""
        self._events.put(event)

    def __iter__(self) -> Iterator[Piece]:
        """The pieces as they come. Raises what ended the answer, if that was an error."""
        while (piece := self.next()) is not None:
            yield piece

    def next(self, timeout_s: float | None = None) -> Piece | None:
        """The next piece; None at the end. Raises queue.Empty if none came in time, and what ended the answer."""
        if self._end is None:
            event = self._events.get(timeout=timeout_s)
            if isinstance(event, Piece):
                return event
            self._end = event
        if isinstance(self._end, BaseException):
            raise self._end
        return None

    def result(self) -> Completion:
        """Wait for the end."""
        for _ in self:
            pass
        assert isinstance(self._end, Completion)  # noqa: S101 - `next` raised otherwise
        return self._end

    def cancel(self) -> None:
        """End it, also in the middle of a long prompt: the completion comes with what is there."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()
