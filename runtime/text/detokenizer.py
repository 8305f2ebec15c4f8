"""From the bytes of tokens to text that can be shown: UTF-8 and stop strings. Pure: no model in here.

Each step gives the same text for every way of cutting its input into pieces, and holds back only what a later piece
could still change.
"""

import codecs
from collections.abc import Sequence

from gladstone.chat.reasoning_markers import THINK, Markers
from runtime.text.reasoning_splitter import Piece, ReasoningSplitter


class Utf8Decoder:
    """Bytes to characters. A byte that cannot continue is U+FFFD at once; a character that still can is waited for."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = False

    @property
    def is_empty(self) -> bool:
        """True unless the beginning of a character waits for its end."""
        return not self._pending

    def feed(self, data: bytes) -> str:
        """The characters that are whole by now."""
        text = self._decoder.decode(data)
        pending = self._decoder.getstate()[0]
        self._pending = bool(pending)
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":  # a surrogate; Python would wait for its third byte
            self._decoder.reset()
            self._pending = False
            text += "\ufffd\ufffd"
        return text

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished, or nothing."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Ends a text before the first place where a stop string begins, wherever the pieces are cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that is surely before any stop string; nothing once `stopped` is true."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        found, pending = self._first_match(), self._first_beginning()
        if found is not None and (pending is None or found <= pending):
            return self._stop_at(found)
        sure = len(self._held) if pending is None else pending
        ready, self._held = self._held[:sure], self._held[sure:]
        return ready

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        found = self._first_match()
        if found is not None:
            return self._stop_at(found)
        ready, self._held = self._held, ""
        return ready

    def _stop_at(self, position: int) -> str:
        ready, self._held, self.stopped = self._held[:position], "", True
        return ready

    def _first_match(self) -> int | None:
        places = [self._held.find(stop) for stop in self._stops]
        return min((place for place in places if place >= 0), default=None)

    def _first_beginning(self) -> int | None:
        """Where the text's end may turn out to be the beginning of a stop string."""
        longest = max(len(stop) for stop in self._stops)
        for place in range(max(0, len(self._held) - longest + 1), len(self._held)):
            tail = self._held[place:]
            if any(len(stop) > len(tail) and stop.startswith(tail) for stop in self._stops):
                return place
        return None


class Detokenizer:
    """Token bytes in, pieces of reasoning and answer out; keeps the whole of both."""

    def __init__(self, stops: Sequence[str] = (), *, reasoning_opened: bool = False, markers: Markers = THINK) -> None:
        self._decoder = Utf8Decoder()
        self._matcher = StopMatcher(stops)
        self._stops_nowhere = not stops
        self._splitter = ReasoningSplitter(opened=reasoning_opened, markers=markers)
        self._text: list[str] = []
        self._reasoning: list[str] = []

    @property
    def stopped(self) -> bool:
        """True once a stop string was met: whatever follows is no part of the text."""
        return self._matcher.stopped

    @property
    def splitter(self) -> ReasoningSplitter:
        """Where the text is between reasoning and answer."""
        return self._splitter

    @property
    def in_reasoning(self) -> bool:
        """True while a thought is open."""
        return self._splitter.reasoning

    @property
    def text(self) -> str:
        """The answer so far, without what is held back."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str | None:
        """The reasoning so far; None if there is none."""
        return "".join(self._reasoning) or None

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that these bytes make sure."""
        if self._stops_nowhere and data.isascii() and self._splitter.plain and self._decoder.is_empty:
            # the way of nearly every token: the same, in less time
            text = data.decode("ascii")
            self._text.append(text)
            return [Piece(text, False)] if text else []
        return self._keep(self._splitter.feed(self._matcher.feed(self._decoder.feed(data))))

    def flush(self) -> list[Piece]:
        """The last pieces, now that nothing follows."""
        rest = self._matcher.feed(self._decoder.flush()) + self._matcher.flush()
        return self._keep(self._splitter.feed(rest) + self._splitter.flush())

    def _keep(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            (self._reasoning if piece.reasoning else self._text).append(piece.text)
        return pieces
