"""Opens a data file, plain, gzip or zstd by its first bytes, with a guard against decompression bombs."""

import io
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

from gladstone.errors import DataError
from gladstone.machine.packages import require_packages
from gladstone.rows.problems import FileDamage
from gladstone.signatures import FileKind, recognise

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
PACKINGS = {FileKind.GZIP: "gzip", FileKind.ZSTD: "zstd"}
# text compresses to between a third and a tenth; a file that unpacks to 200 times its size is a bomb
MAX_RATIO, MIN_SUSPECT_BYTES = 200, 64 << 20
CHUNK_BYTES = 1 << 16
PIECE_BYTES = 1 << 13  # decompressed at once; at most this much is lost before the damage in a file
DAMAGE = (EOFError, zlib.error, OSError)


def first_bytes(path: Path, count: int = 16) -> bytes:
    """Return the first bytes as stored. Raises DataError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except FileNotFoundError:
        raise DataError(f"{path}: no such data file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None


def detect_compression(start: bytes) -> str:
    """Return `gzip`, `zstd`, or '' for a file that is not compressed."""
    kind = recognise(start)
    return PACKINGS.get(kind, "") if kind else ""


def decompress(path: Path, compression: str) -> Iterator[bytes]:
    """Yield the file's bytes in chunks, decompressed. Raises DataError at damage or a bomb, after the bytes before."""
    limit = max(MIN_SUSPECT_BYTES, MAX_RATIO * path.stat().st_size)
    made = 0
    try:
        for chunk in _chunks(path, compression):
            made += len(chunk)
            if compression and made > limit:
                raise FileDamage(f"{path}: unpacks to more than {MAX_RATIO} times its size; reading stopped.")
            yield chunk
    except DAMAGE as error:
        reason = f"is a damaged or truncated {compression} file" if compression else "cannot be read"
        raise FileDamage(f"{path}: {reason}: {error}.") from None


def _chunks(path: Path, compression: str) -> Iterator[bytes]:
    if compression == "zstd":
        require_packages("Reading zstd", "finetune", ["pyarrow"])
        import pyarrow

        with closing(pyarrow.input_stream(str(path), compression="zstd")) as stream:
            while data := stream.read(PIECE_BYTES):
                yield data
        return
    with path.open("rb") as file:
        if compression == "gzip":
            yield from _gunzip(file)
            return
        while data := file.read(CHUNK_BYTES):
            yield data


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Yield what the members of a gzip file hold.

    Python's own reader discards decompressed data if the file is truncated.
    """
    decoder = None
    while data := file.read(CHUNK_BYTES):
        while data:
            decoder = decoder or zlib.decompressobj(wbits=31)
            if made := decoder.decompress(data, PIECE_BYTES):
                yield made
            data = decoder.unconsumed_tail
            if decoder.eof:
                data, decoder = decoder.unused_data.lstrip(b"\0"), None
    if decoder is None:
        return
    if made := decoder.flush():
        yield made
    if not decoder.eof:
        raise EOFError("it ends before its end mark")


def split_head(chunks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Return at least the first `size` bytes, and the rest; damage before them is raised when the rest is read."""
    head: list[bytes] = []
    count = 0
    try:
        while count < size:
            head.append(next(chunks))
            count += len(head[-1])
    except StopIteration:
        return b"".join(head), iter(())
    except DataError as error:
        return b"".join(head), _raising(error)
    return b"".join(head), chunks


def _raising(error: DataError) -> Iterator[bytes]:
    raise error
    yield b""  # makes this a generator, so that the error is raised when it is read


def as_file(chunks: Iterator[bytes]) -> BinaryIO:
    """Return the chunks as a readable file."""
    return cast(BinaryIO, io.BufferedReader(_Chunks(chunks), CHUNK_BYTES))


class _Chunks(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._waiting = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._waiting = memoryview(chunk)
        count = min(len(buffer), len(self._waiting))
        buffer[:count] = self._waiting[:count]
        self._waiting = self._waiting[count:]
        return count
