"""How many requests the engine takes: it counts those that have not ended, and refuses more than there is room for."""

import threading
from collections.abc import Callable

from runtime.errors import ListenerError, QueueFullError
from runtime.request import Event, OnEvent
from runtime.scheduling.engine_thread import EngineThread
from runtime.text.reasoning_splitter import Piece


class Admission:
    """Admits up to `limit` requests to the engine's thread. Any thread may use it."""

    def __init__(self, worker: EngineThread, limit: int) -> None:
        self.limit = limit
        self._thread = worker
        self._lock = threading.Lock()
        self._open = 0

    @property
    def open(self) -> int:
        """Requests that run or wait."""
        return self._open

    def enter(self, submit: Callable[[], None], fail: Callable[[BaseException], None]) -> None:
        """Let the engine's thread call `submit`, or `fail` if it stops before. Whoever enters has to `leave`.

        Raises QueueFullError, and what stopped the engine.
        """
        with self._lock:
            if self._open >= self.limit:
                raise QueueFullError(f"{self._open:,} requests are under way or wait already: ask again later.")
            self._open += 1
        self._thread.post(submit, fail)

    def leave(self) -> None:
        """A request has ended."""
        with self._lock:
            self._open -= 1

    def counted(self, on_event: OnEvent) -> OnEvent:
        """The listener of a request that leaves with its last event.

        If the listener raises, only its own request ends, with that exception.
        """

        def listen(event: Event) -> None:
            if not isinstance(event, Piece):
                self.leave()
                on_event(event.error if isinstance(event, ListenerError) else event)
                return
            try:
                on_event(event)
            except BaseException as error:
                raise ListenerError(error) from error

        return listen
