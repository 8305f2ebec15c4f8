"""Separates reasoning from the answer in generated text. Pure: no model in here."""

import re
from typing import NamedTuple

from gladstone.chat.reasoning_markers import THINK, Markers

WHOLE_TAG = re.compile(r"<[^<>\s]+>")  # a tag that only a marker spells; a lone "<" may belong to an answer


class Piece(NamedTuple):
    """A piece of text of the reasoning or of the answer, ready to show."""

    text: str
    reasoning: bool


class ReasoningSplitter:
    """Splits a stream of text into reasoning, at its beginning, and the answer.

    Newlines next to a marker belong to the marker. Markers inside the answer are plain text. Text is returned as soon
    as no later text can change its role.
    """

    def __init__(self, *, opened: bool = False, markers: Markers = THINK) -> None:
        """`opened`: the prompt ends with the opening marker, so the text starts with reasoning."""
        self._markers = markers
        self._state = "reasoning" if opened else "start" if markers.opening else "answer"
        self._after_marker = opened
        self._between = ""  # the text between two blocks of reasoning
        self._held = ""

    @property
    def reasoning(self) -> bool:
        """True inside reasoning."""
        return self._state == "reasoning"

    @property
    def plain(self) -> bool:
        """True once all further text is part of the answer."""
        return self._state == "answer" and not self._after_marker and not self._held and not self._markers.ending

    @property
    def closing(self) -> bool:
        """True while the last text may be the beginning of the closing marker."""
        return self.reasoning and _overlap(self._held, self._markers.closing) > 0

    @property
    def awaited(self) -> tuple[str, ...]:
        """The markers that may follow before the answer begins, while none of them has begun."""
        if self._held.strip():
            return ()
        markers = self._markers
        texts = {"start": (markers.opening, markers.direct), "bridge": (markers.bridge, markers.again)}
        return tuple(text for text in texts.get(self._state, ()) if text)

    def feed(self, text: str) -> list[Piece]:
        """Add text; returns the non-empty pieces whose role is certain."""
        self._held += text
        pieces = []
        before = ""
        while before != self._state:
            before = self._state
            if before == "start":
                self._look_for_opening()
            elif before == "reasoning":
                pieces.append(Piece(self._take_reasoning(), reasoning=True))
            elif before == "bridge":
                self._look_for_bridge()
            else:
                pieces.append(Piece(self._take_answer(), reasoning=False))
        return [piece for piece in pieces if piece.text]

    def flush(self) -> list[Piece]:
        """End the text; returns what was held back, without an incomplete marker."""
        text, self._held = self._held, ""
        in_reasoning = self._state == "reasoning"
        if in_reasoning:
            text = text.rstrip("\n")
            text = self._between + text if text else ""
        elif self._is_marker(text.strip()):
            text = ""
        return [Piece(text, reasoning=in_reasoning)] if text else []

    def _is_marker(self, text: str) -> bool:
        """Whether the rest is the end marker of an answer, or an incomplete marker."""
        return (text != "" and text == self._markers.ending) or bool(WHOLE_TAG.match(text) and self._awaits(text))

    def _awaits(self, text: str) -> bool:
        """Whether a text is the beginning of a marker that may follow in this state."""
        markers = self._markers
        awaited = {"start": (markers.opening, markers.direct), "bridge": (markers.bridge, markers.again)}
        return any(marker.startswith(text) for marker in awaited.get(self._state, (markers.ending,)))

    def _look_for_opening(self) -> None:
        begin = self._held.lstrip()
        if begin.startswith(self._markers.opening):
            self._pass(begin, self._markers.opening, "reasoning")
        elif self._markers.direct and begin.startswith(self._markers.direct):
            self._pass(begin, self._markers.direct, "answer")
        elif not self._awaits(begin):
            self._state = "answer"

    def _pass(self, begin: str, marker: str, state: str) -> None:
        """Skip a marker at the beginning of the held text."""
        self._held, self._state, self._after_marker = begin[len(marker) :], state, True

    def _take_reasoning(self) -> str:
        self._skip_newlines()
        closing = self._markers.closing
        end = self._held.find(closing)
        if end >= 0:
            ready = self._held[:end].rstrip("\n")
            self._pass(self._held[end:], closing, "bridge" if self._markers.bridge else "answer")
        else:
            ready = self._held[: len(self._held) - _overlap(self._held, closing)].rstrip("\n")
            self._held = self._held[len(ready) :]
        if ready:
            ready, self._between = self._between + ready, ""
        return ready

    def _look_for_bridge(self) -> None:
        begin, bridge, again = self._held.lstrip(), self._markers.bridge, self._markers.again
        if begin.startswith(bridge):
            self._pass(begin, bridge, "answer")
        elif again and begin.startswith(again):
            self._pass(begin, again, "reasoning")
            self._between = "\n\n"
        elif not self._awaits(begin):
            self._state = "answer"

    def _take_answer(self) -> str:
        self._skip_newlines()
        sure = len(self._held)
        if self._markers.ending:
            sure = len(self._held[: self._ending_at()].rstrip("\n"))
        ready, self._held = self._held[:sure], self._held[sure:]
        return ready

    def _ending_at(self) -> int:
        """The index from which the held text is, or may become, the end marker of the answer."""
        ending, text = self._markers.ending, self._held
        index = text.rfind(ending)
        if index >= 0 and not text[index + len(ending) :].strip():
            return index
        return len(text) - _overlap(text, ending)

    def _skip_newlines(self) -> None:
        if self._after_marker:
            self._held = self._held.lstrip("\n")
            self._after_marker = not self._held


def _overlap(text: str, marker: str) -> int:
    """Number of characters at the end of a text that may be the beginning of a marker."""
    return next((count for count in range(len(marker) - 1, 0, -1) if text.endswith(marker[:count])), 0)
