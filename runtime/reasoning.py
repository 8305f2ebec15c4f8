"""How models mark their reasoning, and the splitter that tells it from the answer. Pure: no model in here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Some characters of the reasoning or of the answer, ready to be shown."""

    text: str
    reasoning: bool


@dataclass(frozen=True)
class Markers:
    """The texts around a thought; `bridge` is what follows the end of it before the answer begins.

    `direct` is what stands before an answer that nothing was thought before. A chat template of the family holds one of
    the `signs`; without any, the opening or the closing text.
    """

    opening: str
    closing: str
    bridge: str = ""
    direct: str = ""
    signs: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All that a model writes to mark something."""
        return tuple(text for text in (self.opening, self.closing, self.bridge, self.direct) if text)


THINK = Markers("<think>", "</think>")  # also for models whose template names no marker
FAMILIES = (
    THINK,
    Markers("[THINK]", "[/THINK]"),
    Markers("<thought>", "</thought>"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("<|begin_of_thought|>", "<|end_of_thought|>"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|START_RESPONSE|>"),
    Markers("<|inner_prefix|>", "<|inner_suffix|>"),
    Markers(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        signs=("<|channel|>",),
    ),
    Markers("<|channel>thought\n", "<channel|>", signs=("<|channel>", "<channel|>")),
    Markers("<unused94>thought\n", "<unused95>", signs=("<unused94>", "<unused95>")),
    Markers("◁think▷", "◁/think▷"),
    Markers("<reasoning>", "</reasoning>"),
    Markers("Here is my thought process:", "Here is my response:"),
)


def markers_of(template: str) -> Markers:
    """The family whose markers a chat template names; that of `<think>` if it names none."""
    for family in FAMILIES:
        if any(sign in template for sign in family.signs or (family.opening, family.closing)):
            return family
    return THINK


class ReasoningSplitter:
    """Tells the reasoning at the beginning of an answer from the answer itself.

    The newlines next to a marker belong to it. Markers further on in an answer are text that somebody writes about.
    Each text is given out as soon as nothing that follows could change it.
    """

    def __init__(self, *, opened: bool = False, markers: Markers = THINK) -> None:
        """`opened`: the prompt ends with the opening marker, so the first text is reasoning already."""
        self._markers = markers
        self._state = "reasoning" if opened else "start"
        self._after_marker = opened
        self._held = ""

    @property
    def reasoning(self) -> bool:
        """True while a thought is open."""
        return self._state == "reasoning"

    @property
    def started(self) -> bool:
        """True once it is known whether the answer begins with a thought."""
        return self._state != "start"

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are sure by now; none of them is empty."""
        self._held += text
        pieces = []
        if self._state == "start":
            self._look_for_opening()
        if self._state == "reasoning":
            pieces.append(Piece(self._take_reasoning(), reasoning=True))
        if self._state == "bridge":
            self._look_for_bridge()
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
        opening, direct = self._markers.opening, self._markers.direct
        if begin.startswith(opening):
            self._held = begin[len(opening) :]
            self._state, self._after_marker = "reasoning", True
        elif direct and begin.startswith(direct):
            self._held = begin[len(direct) :]
            self._state, self._after_marker = "answer", True
        elif not opening.startswith(begin) and not direct.startswith(begin):
            self._state = "answer"

    def _take_reasoning(self) -> str:
        self._skip_newlines()
        closing = self._markers.closing
        end = self._held.find(closing)
        if end >= 0:
            ready, self._held = self._held[:end], self._held[end + len(closing) :]
            self._state, self._after_marker = "bridge" if self._markers.bridge else "answer", True
            return ready.rstrip("\n")
        unsure = next((n for n in range(len(closing) - 1, 0, -1) if self._held.endswith(closing[:n])), 0)
        ready = self._held[: len(self._held) - unsure].rstrip("\n")
        self._held = self._held[len(ready) :]
        return ready

    def _look_for_bridge(self) -> None:
        begin, bridge = self._held.lstrip(), self._markers.bridge
        if begin.startswith(bridge):
            self._held = begin[len(bridge) :]
            self._state = "answer"
        elif not bridge.startswith(begin):
            self._state = "answer"

    def _take_answer(self) -> str:
        self._skip_newlines()
        ready, self._held = self._held, ""
        return ready

    def _skip_newlines(self) -> None:
        if self._after_marker:
            self._held = self._held.lstrip("\n")
            self._after_marker = not self._held
