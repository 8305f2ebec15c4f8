"""Bytes of tokens to text: UTF-8 decoding, stop strings, reasoning. Pure: no model in here.

Each step returns the same text however its input is cut into pieces, and holds back only what later input can change.
"""

import codecs
from collections.abc import Sequence

from gladstone.chat.reasoning_markers import THINK, Markers
from runtime.text.reasoning_splitter import Piece, ReasoningSplitter


class Utf8Decoder:
    """Incremental UTF-8. An invalid byte becomes U+FFFD at once; an incomplete character waits for its next bytes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = False

    @property
    def is_empty(self) -> bool:
        """True unless an incomplete character is held back."""
        return not self._pending

    def feed(self, data: bytes) -> str:
        """Add bytes; returns the characters that are complete."""
        text = self._decoder.decode(data)
        pending = self._decoder.getstate()[0]
        self._pending = bool(pending)
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":  # a surrogate; Python would wait for its third byte
            self._decoder.reset()
            self._pending = False
            text += "\ufffd\ufffd"
        return text

    def flush(self) -> str:
        """End the text; returns U+FFFD for an incomplete character, else ""."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Ends a text before its first stop string, wherever the pieces are cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Add text; returns what is certainly before any stop string, and "" once `stopped` is true."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        match, pending = self._first_match(), self._first_beginning()
        if match is not None and (pending is None or match <= pending):
            return self._stop_at(match)
        sure = len(self._held) if pending is None else pending
        ready, self._held = self._held[:sure], self._held[sure:]
        return ready

    def flush(self) -> str:
        """End the text; returns what was held back, up to a stop string."""
        match = self._first_match()
        if match is not None:
            return self._stop_at(match)
        ready, self._held = self._held, ""
        return ready

    def _stop_at(self, position: int) -> str:
        ready, self._held, self.stopped = self._held[:position], "", True
        return ready

    def _first_match(self) -> int | None:
        indices = [self._held.find(stop) for stop in self._stops]
        return min((index for index in indices if index >= 0), default=None)

    def _first_beginning(self) -> int | None:
        """The index from which the end of the text may be the beginning of a stop string."""
        longest = max(len(stop) for stop in self._stops)
        for index in range(max(0, len(self._held) - longest + 1), len(self._held)):
            tail = self._held[index:]
            if any(len(stop) > len(tail) and stop.startswith(tail) for stop in self._stops):
                return index
        return None


class Detokenizer:
    """Turns token bytes into pieces of reasoning and answer, and keeps the whole text of both."""

    def __init__(self, stops: Sequence[str] = (), *, reasoning_opened: bool = False, markers: Markers = THINK) -> None:
        self._decoder = Utf8Decoder()
        self._matcher = StopMatcher(stops)
        self._stops_nowhere = not stops
        self._splitter = ReasoningSplitter(opened=reasoning_opened, markers=markers)
        self._text: list[str] = []
        self._reasoning: list[str] = []

    @property
    def stopped(self) -> bool:
        """True after a stop string: later bytes are not part of the text."""
        return self._matcher.stopped

    @property
    def splitter(self) -> ReasoningSplitter:
        """The splitter, with its state between reasoning and answer."""
        return self._splitter

    @property
    def in_reasoning(self) -> bool:
        """True inside reasoning."""
        return self._splitter.reasoning

    @property
    def text(self) -> str:
        """The answer so far, without text that is held back."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str | None:
        """The reasoning so far; None if there is none."""
        return "".join(self._reasoning) or None

    def feed(self, data: bytes) -> list[Piece]:
        """Add the bytes of a token; returns the pieces that are certain."""
        if self._stops_nowhere and data.isascii() and self._splitter.plain and self._decoder.is_empty:
            # a shortcut with the same result, for nearly every token
            text = data.decode("ascii")
            self._text.append(text)
            return [Piece(text, False)] if text else []
        return self._keep(self._splitter.feed(self._matcher.feed(self._decoder.feed(data))))

    def flush(self) -> list[Piece]:
        """End the text; returns the last pieces."""
        rest = self._matcher.feed(self._decoder.flush()) + self._matcher.flush()
        return self._keep(self._splitter.feed(rest) + self._splitter.flush())

    def _keep(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            (self._reasoning if piece.reasoning else self._text).append(piece.text)
        return pieces
