"""Find out, by rendering, how a chat template switches a model's thinking off and on.

Families differ: the templates of Qwen3 and GLM read `enable_thinking`, those of Granite and DeepSeek-V3.1 `thinking`,
that of Seed-OSS a `thinking_budget`; those of SmolLM3 and Nemotron look for a word in the system prompt. A name in a
template proves nothing: its value must change the prompt.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gladstone.chat.messages import Message
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError

NO_THINK = "/no_think"
_ABOUT_THOUGHTS = re.compile("think|reason", re.IGNORECASE)
_BUDGET = re.compile("budget|tokens|limit", re.IGNORECASE)
_SYSTEM, _QUESTION = Message("system", "qsystemq"), Message("user", "qquestionq")
_NEGATED = re.compile("disable|no_|skip|without|suppress", re.IGNORECASE)
_OFF_WORDS = ("none", "off", "disabled", "no_think")  # values for "off" of a template that reads a level


@dataclass(frozen=True)
class ThinkingSwitch:
    """Template arguments that switch thinking off and on, or a word in the system prompt that switches it off."""

    off: Mapping[str, Any] = field(default_factory=dict)
    on: Mapping[str, Any] = field(default_factory=dict)
    word: str = ""

    def __bool__(self) -> bool:
        return bool(self.off or self.word)


def find_thinking_switch(template: ChatTemplate) -> ThinkingSwitch:
    """Find the switch of a template; the result is false if there is none."""
    names = [name for name in template.variables if _ABOUT_THOUGHTS.search(name)]
    wanted = {name: bool(_NEGATED.search(name)) for name in names if not _BUDGET.search(name)}
    flags = {name: (off, not off) for name, off in wanted.items() if _changes_prompt(template, name, off, not off)}
    if flags:
        return _switch(flags)
    budgets = {name: (0, 1024) for name in names if _BUDGET.search(name) and _changes_prompt(template, name, 0, 1024)}
    levels = {
        name: values for name in names for values in _levels(template) if _changes_prompt(template, name, *values)
    }
    if budgets or levels:
        return _switch(budgets or levels)
    return ThinkingSwitch(word=NO_THINK if _obeys_word(template, NO_THINK) else "")


def _switch(values: Mapping[str, tuple[Any, Any]]) -> ThinkingSwitch:
    off, on = ({name: pair[side] for name, pair in values.items()} for side in (0, 1))
    return ThinkingSwitch(off, on)


def _levels(template: ChatTemplate) -> list[tuple[str, str]]:
    """Pairs of an "off" level that the template itself names and "high"."""
    off = next((word for word in _OFF_WORDS if re.search(f"(['\"]){word}\\1", template.source)), None)
    return [(off, "high")] if off else []


def _changes_prompt(template: ChatTemplate, name: str, off: Any, on: Any) -> bool:
    """Whether two values give two prompts that differ in more than the value itself."""
    try:
        texts = [template.render_prompt([_QUESTION], {name: value}) for value in (off, on)]
    except DataError:
        return False
    return texts[0] != texts[1] and texts[0].replace(str(off), str(on)) != texts[1]


def _obeys_word(template: ChatTemplate, word: str) -> bool:
    """Whether a word in the system prompt changes the prompt beyond its own occurrence."""
    if word not in template.source:
        return False
    try:
        plain, worded = (
            template.render([Message("system", text), _QUESTION], add_generation_prompt=True)
            for text in (_SYSTEM.content, f"{_SYSTEM.content} {word}")
        )
    except DataError:
        return False
    return worded.replace(f" {word}", "") != plain or word not in worded
