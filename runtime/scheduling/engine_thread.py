"""The thread that computes: only it uses the context. Other threads post work, which it does between two steps."""

import queue
import threading
from collections.abc import Callable

from gladstone.errors import UnsupportedError
from runtime.scheduling.jobs import Runner
from runtime.scheduling.sequences import Task

Work = Callable[[], None]
Fail = Callable[[BaseException], None]


class EngineThread:
    """Steps a runner until it is closed. Any thread may use it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._inbox: queue.SimpleQueue[tuple[Work, Fail]] = queue.SimpleQueue()
        self._cancelled: list[Task] = []
        self._broken: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="gladstone engine", daemon=True)
        self._thread.start()

    @property
    def closing(self) -> bool:
        """True once no more work is accepted."""
        return self._closing

    def post(self, work: Work, fail: Fail) -> None:
        """Let the thread call `work` between two steps, or `fail` if it stops before.

        Raises the error that broke the thread, or UnsupportedError if the thread was closed.
        """
        if self._broken is not None:
            raise self._broken
        if self._closing:
            raise UnsupportedError("the engine is closed.")
        self._inbox.put((work, fail))

    def post_alone(self, work: Work, fail: Fail) -> None:
        """Let the thread call `work` when no request runs or waits. Raises as `post` does."""

        def alone() -> None:
            if self._runner.idle:
                work()
            else:
                self._inbox.put((alone, fail))

        self.post(alone, fail)

    def cancel(self, task: Task) -> None:
        """End a task at once, even during the prefill of a long prompt. Harmless if it has ended."""
        self._cancelled.append(task)
        self._inbox.put((lambda: self._cancel_now(task), lambda _error: None))
        self._runner.interrupt(self._cancelled)

    def close(self, abort: Work) -> None:
        """End all requests and wait for the thread. `abort` must abort the evaluation under way."""
        self._closing = True
        abort()
        self._inbox.put((lambda: None, lambda _error: None))
        self._thread.join()
        self._fail_all(UnsupportedError("the engine was closed."))  # work that was posted meanwhile

    def _cancel_now(self, task: Task) -> None:
        self._cancelled.remove(task)
        self._runner.cancel(task)

    def _serve(self) -> None:
        try:
            while not self._closing:
                self._accept()
                self._runner.step()
            self._fail_all(UnsupportedError("the engine was closed."))
        except BaseException as error:  # noqa: BLE001 - every request that waits raises it
            self._broken = error
            self._fail_all(error)

    def _accept(self) -> None:
        """Do the posted work; wait for some while the runner is idle."""
        while not self._closing and (self._runner.idle or not self._inbox.empty()):
            work, _fail = self._inbox.get()
            work()

    def _fail_all(self, error: BaseException) -> None:
        self._runner.fail_all(error)
        while not self._inbox.empty():
            _work, fail = self._inbox.get()
            fail(error)
