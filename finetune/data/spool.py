"""Rows on disk while they are prepared: memory holds ten bytes per row."""

import json
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from gladstone.chat.messages import Conversation, fields_of_message, message_from_fields
from gladstone.errors import ArtifactError
from gladstone.rows import Row


class Spool:
    """Conversations in insertion order, for sequential and random access; the file is deleted on close.

    `origin` is the number of the source that a row came from.
    """

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError if the file cannot be created."""
        self._path = path
        self._offsets, self._origins = array("Q"), array("H")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w+b")
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be written: {error.strerror}.") from error

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Delete the file."""
        with suppress(OSError):  # flushing may fail on a full disk, but the rest is not needed
            self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, conversation: Conversation, origin: int, read: Row | None = None) -> None:
        """Append a row; `read` is the row before it was changed. Raises ArtifactError if the disk is full."""
        turns = [fields_of_message(message) for message in conversation.messages]
        try:
            self._offsets.append(self._file.tell())
            line = json.dumps((conversation.source, turns, conversation.tools, read), allow_nan=False)
            self._file.write(line.encode() + b"\n")
        except OSError as error:
            raise ArtifactError(f"{self._path}: cannot be written: {error.strerror}.") from error
        self._origins.append(origin)

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Conversation]:
        for number in range(len(self)):
            if number == 0 or self._file.tell() != self._offsets[number]:  # the caller read another row meanwhile
                self._file.seek(self._offsets[number], os.SEEK_SET)
            yield _conversation(self._file.readline())

    def __getitem__(self, number: int) -> Conversation:
        self._file.seek(self._offsets[number], os.SEEK_SET)
        return _conversation(self._file.readline())

    def read(self, number: int) -> Row | None:
        """Return a row as it was before it was changed; None if it was not changed."""
        self._file.seek(self._offsets[number], os.SEEK_SET)
        read: Row | None = json.loads(self._file.readline())[3]
        return read

    def origin(self, number: int) -> int:
        """Return the number of the source that a row came from."""
        return self._origins[number]


def _conversation(line: bytes) -> Conversation:
    source, turns, tools, _ = json.loads(line)
    return Conversation(tuple(map(message_from_fields, turns)), source, tuple(tools))
