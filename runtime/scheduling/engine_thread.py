"""The thread that computes: it alone touches the context, and takes in what others ask between two steps."""

import queue
import threading
from collections.abc import Callable

from gladstone.errors import UnsupportedError
from runtime.scheduling.jobs import Runner
from runtime.scheduling.sequences import Task

Work = Callable[[], None]
Fail = Callable[[BaseException], None]


class Worker:
    """Runs a runner until it is closed. Any thread may use it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._inbox: queue.SimpleQueue[tuple[Work, Fail]] = queue.SimpleQueue()  # and whom to tell if it cannot be
        self._cancelled: list[Task] = []
        self._broken: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="gladstone engine", daemon=True)
        self._thread.start()

    @property
    def closing(self) -> bool:
        """True once nothing more is taken in."""
        return self._closing

    def post(self, work: Work, fail: Fail) -> None:
        """Let the thread do it between two steps. Raises what broke the thread, or that it was closed."""
        if self._broken is not None:
            raise self._broken
        if self._closing:
            raise UnsupportedError("the engine is closed.")
        self._inbox.put((work, fail))

    def post_alone(self, work: Work, fail: Fail) -> None:
        """Let the thread do it when nothing else is under way."""

        def alone() -> None:
            if self._runner.idle:
                work()
            else:
                self._inbox.put((alone, fail))

        self.post(alone, fail)

    def cancel(self, task: Task) -> None:
        """End a task at once, in the middle of a long prompt too. Harmless if it has ended."""
        self._cancelled.append(task)
        self._inbox.put((lambda: self._cancel_now(task), lambda _error: None))
        self._runner.interrupt(self._cancelled)

    def close(self, abort: Work) -> None:
        """End everything and wait for the thread; `abort` breaks off what it evaluates."""
        self._closing = True
        abort()
        self._inbox.put((lambda: None, lambda _error: None))
        self._thread.join()
        self._give_up(UnsupportedError("the engine was closed."))  # what came in the meantime

    def _cancel_now(self, task: Task) -> None:
        self._cancelled.remove(task)
        self._runner.cancel(task)

    def _serve(self) -> None:
        try:
            while not self._closing:
                self._take_in()
                self._runner.step()
            self._give_up(UnsupportedError("the engine was closed."))
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            self._broken = error
            self._give_up(error)

    def _take_in(self) -> None:
        while not self._closing and (self._runner.idle or not self._inbox.empty()):
            work, _fail = self._inbox.get()
            work()

    def _give_up(self, error: BaseException) -> None:
        self._runner.fail_all(error)
        while not self._inbox.empty():
            _work, fail = self._inbox.get()
            fail(error)
