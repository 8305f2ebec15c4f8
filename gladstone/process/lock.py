"""One process at a time in a folder."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gladstone.artifacts import check_no_file
from gladstone.errors import ArtifactError

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


@contextmanager
def held(log: Path, doing: str) -> Iterator[None]:
    """Hold the log of what is done in its folder while the block runs; the system lets go however the process ends.

    Raises ArtifactError if another process holds it or it cannot be written.
    """
    try:
        check_no_file(log.parent)
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab", buffering=0)
    except OSError as error:
        raise ArtifactError(
            f"{log.parent}: cannot be written to: {error.strerror}. Choose another folder with --out."
        ) from None
    with file:
        try:
            _lock(file.fileno())
        except OSError as error:
            if error.errno in _TAKEN:
                raise ArtifactError(
                    f"{log.parent}: another process is {doing} in this folder. Wait for it, stop it, or choose "
                    "another folder with --out."
                ) from None
            file.write(f"this folder cannot be locked against a second process: {error.strerror}\n".encode())
        try:
            yield
        except BaseException:
            _leave_nothing(log)
            with suppress(OSError):
                log.parent.rmdir()  # if there is nothing else in it
            raise
        _leave_nothing(log)


def _leave_nothing(log: Path) -> None:
    """Remove an empty log."""
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind the text: what is locked there cannot be read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
