"""Locks that keep a folder to one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gladstone.artifacts import check_no_file_in_place
from gladstone.errors import ArtifactError


@contextmanager
def lock_folder(log: Path, doing: str) -> Iterator[None]:
    """Lock the folder of `log`, which is the lock file, while the block runs.

    `doing` names this process's work in the message to others. The system releases the lock however the process ends.
    If the block raises, an empty log and an empty folder are removed. Raises ArtifactError if another process holds the
    lock or the log cannot be written.
    """
    try:
        check_no_file_in_place(log.parent)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.open("ab").close()
    except OSError as error:
        raise ArtifactError(
            f"{log.parent}: cannot be written to: {error.strerror}. Choose another folder with --out."
        ) from None
    with _lock(log, doing):
        try:
            yield
        except BaseException:
            _remove_if_empty(log)
            with suppress(OSError):
                log.parent.rmdir()  # fails if it holds other files
            raise
        _remove_if_empty(log)


@contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Lock this file while the block runs; wait until other processes have released it."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


@contextmanager
def _lock(log: Path, doing: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    # filelock 4 neither truncates nor removes the file; without soft locks, none outlives a killed process
    lock = FileLock(log, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise ArtifactError(
            f"{log.parent}: another process is {doing} in this folder. Wait for it, stop it, or choose another folder "
            "with --out."
        ) from None
    except OSError as error:
        note = f"this folder cannot be locked against a second process: {error.strerror}\n"
        with log.open("ab") as file:
            file.write(note.encode())
    try:
        yield
    finally:
        lock.release()


def _remove_if_empty(log: Path) -> None:
    """Remove an empty log."""
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()
