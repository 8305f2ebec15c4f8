"""The markers that models put around their reasoning: one table of families, for training, proofs and serving.

If a model is trained with other markers than it is served with, its reasoning appears as part of the answer.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Markers:
    """The texts `opening` and `closing` around a thought, and `bridge` between its end and the answer.

    `direct` precedes an answer without a thought, `again` separates a thought from a further one, and `ending` may
    follow the answer. A chat template of the family contains one of the `signs`, or if there are none, the opening or
    closing text.
    """

    opening: str
    closing: str
    bridge: str = ""
    direct: str = ""
    again: str = ""
    ending: str = ""
    signs: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All markers that a model of the family may generate."""
        every = (self.opening, self.closing, self.bridge, self.direct, self.again, self.ending)
        return tuple(text for text in every if text)

    def mark_up(self, reasoning: str, answer: str) -> str:
        """Format a thought and the answer after it; returns only the answer if there is no reasoning."""
        if not reasoning:
            return answer
        return f"{self.opening}\n{self.close_reasoning(reasoning)}{self.bridge}{answer}{self.ending}"

    def close_reasoning(self, reasoning: str) -> str:
        """The thought after its opening marker, with the closing marker."""
        return f"{reasoning}\n{self.closing}\n\n"


UNMARKED = Markers("", "")  # for raw text, where reasoning and answer are not separated
THINK = Markers("<think>", "</think>")  # also for models whose template contains no marker
# a template may contain the markers of several families; the first match counts, so tokens come before plain words
FAMILIES = (
    Markers(  # gpt-oss
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|end|>",
        signs=("<|channel|>",),
    ),
    Markers("<|channel>thought", "<channel|>", signs=("<|channel>", "<channel|>")),  # Gemma 4
    Markers("<unused94>thought", "<unused95>", signs=("<unused94>", "<unused95>")),  # MedGemma
    Markers(  # Cohere's North
        "<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", "<|START_TEXT|>", signs=("<|START_TEXT|>",)
    ),
    Markers("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|START_RESPONSE|>"),  # Command R, A
    Markers("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Markers(  # Kimi K3
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        "<|open|>response<|sep|>",
        "<|open|>response<|sep|>",
        ending="<|close|>response<|sep|><|close|>message<|sep|>",
        signs=("<|open|>",),
    ),
    Markers(  # Solar
        "<|think|>",
        "<|end|>",
        "<|begin|>assistant<|content|>",
        "<|content|>",
        ending="<|end|>",
        signs=("<|begin|>assistant<|think|>",),
    ),
    Markers(  # Glimmer
        "to=self<|message|>",
        "<|eom|>",
        "<|start|>assistant to=user<|message|>",
        "to=user<|message|>",
        signs=("to=self<|message|>",),
    ),
    Markers("<|begin_of_thought|>", "<|end_of_thought|>"),
    Markers("[THINK]", "[/THINK]"),  # Magistral, Ministral
    Markers("<seed:think>", "</seed:think>"),  # Seed-OSS
    Markers("<mm:think>", "</mm:think>", direct="</mm:think>"),  # MiniMax M3
    Markers("◁think▷", "◁/think▷"),  # Kimi-VL
    Markers(  # Granite 3.3
        "<think>",
        "</think>",
        "<response>",
        "<response>",
        ending="</response>",
        signs=("<response></response>",),
    ),
    THINK,
    Markers("<thought>", "</thought>"),
    Markers("<reasoning>", "</reasoning>"),
    Markers("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    Markers("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", ending="[END FINAL RESPONSE]"),  # Apriel
)


def find_markers(template: str) -> Markers:
    """Find the family whose markers a chat template contains; `<think>` if it contains none."""
    for family in FAMILIES:
        if any(sign in template for sign in family.signs or (family.opening, family.closing)):
            return family
    return THINK
