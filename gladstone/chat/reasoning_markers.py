"""How models mark their reasoning: one table of families, for training, proof and serving.

A family that is trained with other markers than it is served with shows its thoughts as part of the answer.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Markers:
    """The texts around a thought; `bridge` is what follows the end of it before the answer begins.

    `direct` is what stands before an answer that nothing was thought before, `again` what stands after a thought before
    a further one, `ending` what may stand behind the answer. A chat template of the family holds one of the `signs`;
    without any, the opening or the closing text.
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
        """All that a model writes to mark something."""
        every = (self.opening, self.closing, self.bridge, self.direct, self.again, self.ending)
        return tuple(text for text in every if text)

    def mark_up(self, reasoning: str, answer: str) -> str:
        """A thought and the answer behind it, as the family writes them; the answer alone where nothing was thought."""
        if not reasoning:
            return answer
        return f"{self.opening}\n{self.close_reasoning(reasoning)}{self.bridge}{answer}{self.ending}"

    def close_reasoning(self, reasoning: str) -> str:
        """A thought behind its opening, to its end."""
        return f"{reasoning}\n{self.closing}\n\n"


UNMARKED = Markers("", "")  # of raw text, in which nothing is told apart
THINK = Markers("<think>", "</think>")  # also for models whose template names no marker
# a template may name the markers of several families: it is of the first one, so plain words come after tokens
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
    """The family whose markers a chat template names; that of `<think>` if it names none."""
    for family in FAMILIES:
        if any(sign in template for sign in family.signs or (family.opening, family.closing)):
            return family
    return THINK
