"""Opening a data file: plain, gzip or zstd, with a guard against files that unpack without end."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from gladstone.command import require_packages
from gladstone.errors import DataError

COMPRESSED = (".gz", ".zst")
# text shrinks to a third or a tenth; a file that unpacks to 200 times its size was made to do so
MAX_RATIO, MIN_SUSPECT_BYTES = 200, 64 << 20


@contextmanager
def open_data(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked. Raises DataError if it cannot be read, or while reading if it is a bomb."""
    try:
        size_bytes = path.stat().st_size
        file = _open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such data file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None
    with file:
        if path.suffix in COMPRESSED:
            yield cast(BinaryIO, io.BufferedReader(_Measured(file, path, size_bytes), 1 << 16))
        else:
            yield file


def _open(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        require_packages("Reading .zst", "finetune", ["pyarrow"])
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    return path.open("rb")


class _Measured(io.RawIOBase):
    """Passes on what a compressed file unpacks to, and refuses when that is out of all proportion."""

    def __init__(self, file: Any, path: Path, size_bytes: int) -> None:
        self._file, self._path, self._unpacked = file, path, 0
        self._limit = max(MIN_SUSPECT_BYTES, MAX_RATIO * size_bytes)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._unpacked += len(data)
        if self._unpacked > self._limit:
            raise DataError(f"{self._path}: unpacks to more than {MAX_RATIO} times its size; not read any further.")
        return len(data)
