"""From the bytes of tokens to text that can be shown: UTF-8, stop strings, reasoning. Pure: no model in here.

Each step gives the same text for every way of cutting its input into pieces, and holds back only what a later piece
could still change.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Piece:
    """Some characters of the reasoning or of the answer, ready to be shown."""

    text: str
    reasoning: bool


class Utf8Decoder:
    """Bytes to characters. A byte that cannot continue is U+FFFD at once; a character that still can is waited for."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The characters that are whole by now."""
        text = self._decoder.decode(data)
        pending = self._decoder.getstate()[0]
        if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":  # a surrogate; Python would wait for its third byte
            self._decoder.reset()
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


class ReasoningSplitter:
    """Tells `<think>…</think>` at the beginning of an answer from the answer itself.

    The newlines next to a marker belong to it. Markers further on in an answer are text that somebody writes about.
    """

    def __init__(self, *, opened: bool = False) -> None:
        """`opened`: the prompt ends with the opening marker, so the first text is reasoning already."""
        self._state = "reasoning" if opened else "start"
        self._after_marker = opened
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are sure by now; none of them is empty."""
        self._held += text
        pieces = []
        if self._state == "start":
            self._look_for_opening()
        if self._state == "reasoning":
            pieces.append(Piece(self._take_reasoning(), reasoning=True))
        if self._state == "answer":
            pieces.append(Piece(self._take_answer(), reasoning=False))
        return [piece for piece in pieces if piece.text]

    def flush(self) -> list[Piece]:
        """What was held back, now that nothing follows."""
        in_reasoning = self._state == "reasoning"
        text = self._held.rstrip("\n") if in_reasoning else self._held
        self._held = ""
        return [Piece(text, reasoning=in_reasoning)] if text else []

    def _look_for_opening(self) -> None:
        begin = self._held.lstrip()
        if begin.startswith(THINK_OPEN):
            self._held = begin[len(THINK_OPEN) :]
            self._state, self._after_marker = "reasoning", True
        elif not THINK_OPEN.startswith(begin):
            self._state = "answer"

    def _take_reasoning(self) -> str:
        self._skip_newlines()
        end = self._held.find(THINK_CLOSE)
        if end >= 0:
            ready, self._held = self._held[:end], self._held[end + len(THINK_CLOSE) :]
            self._state, self._after_marker = "answer", True
            return ready.rstrip("\n")
        unsure = next((n for n in range(len(THINK_CLOSE) - 1, 0, -1) if self._held.endswith(THINK_CLOSE[:n])), 0)
        ready = self._held[: len(self._held) - unsure].rstrip("\n")
        self._held = self._held[len(ready) :]
        return ready

    def _take_answer(self) -> str:
        self._skip_newlines()
        ready, self._held = self._held, ""
        return ready

    def _skip_newlines(self) -> None:
        if self._after_marker:
            self._held = self._held.lstrip("\n")
            self._after_marker = not self._held


class TextStream:
    """Token bytes in, pieces of reasoning and answer out; keeps the whole of both."""

    def __init__(self, stops: Sequence[str] = (), *, reasoning_opened: bool = False) -> None:
        self._decoder = Utf8Decoder()
        self._matcher = StopMatcher(stops)
        self._splitter = ReasoningSplitter(opened=reasoning_opened)
        self._text: list[str] = []
        self._reasoning: list[str] = []

    @property
    def stopped(self) -> bool:
        """True once a stop string was met: whatever follows is no part of the text."""
        return self._matcher.stopped

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
        return self._keep(self._splitter.feed(self._matcher.feed(self._decoder.feed(data))))

    def flush(self) -> list[Piece]:
        """The last pieces, now that nothing follows."""
        rest = self._matcher.feed(self._decoder.flush()) + self._matcher.flush()
        return self._keep(self._splitter.feed(rest) + self._splitter.flush())

    def _keep(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            (self._reasoning if piece.reasoning else self._text).append(piece.text)
        return pieces
