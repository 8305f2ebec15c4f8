"""One process at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gladstone.artifacts import check_no_file_in_place
from gladstone.errors import ArtifactError


@contextmanager
def held(log: Path, doing: str) -> Iterator[None]:
    """Keep other processes out of the folder of `log`, which is the lock's file, while the block runs.

    `doing` says what this process does there. The system releases the lock however the process ends. If the block
    raises, a log without text and a folder without files are removed. Raises ArtifactError if another process holds the
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
            _leave_nothing(log)
            with suppress(OSError):
                log.parent.rmdir()  # if there is nothing else in it
            raise
        _leave_nothing(log)


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold the lock of this file while the block runs, once the process that holds it has ended."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


@contextmanager
def _lock(log: Path, doing: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    # since 4 filelock neither truncates the file nor removes it; a marker in its place would outlive a killed process
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


def _leave_nothing(log: Path) -> None:
    """Remove an empty log."""
    with suppress(OSError):
        if log.stat().st_size == 0:
            log.unlink()
