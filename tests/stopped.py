"""A command in a child process that is stopped by Ctrl-C in the middle of its work."""

import signal
import subprocess
from collections.abc import Callable, Sequence

from tests import waiting
from tests.waiting import PATIENCE_S


def interrupt(command: Sequence[str], begun: Callable[[], bool]) -> str:
    """Start a command, send it Ctrl-C once `begun` is true, and return what it told on stderr.

    It must exit with 130, with nothing on stdout and no traceback.
    """
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(begun, child)
        child.send_signal(signal.SIGINT)
        printed, errors = child.communicate(timeout=PATIENCE_S)
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert printed == ""
    assert "Traceback" not in errors
    return errors


def wait_until(begun: Callable[[], bool], child: "subprocess.Popen[str]") -> None:
    """Until `begun` is true; fails if the child ends first."""

    def check() -> None:
        assert child.poll() is None, child.communicate()

    waiting.wait_until(begun, "the work begins", check)
