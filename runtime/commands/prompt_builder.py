"""What goes with every question: the system prompt, as far as the template takes one, and whether the model thinks."""

from collections.abc import Sequence
from dataclasses import replace

from gladstone.chat.messages import Message
from gladstone.chat.named_templates import CONTROL_TEXT
from gladstone.chat.template import template_sha256
from gladstone.chat.thinking import find_thinking_switch
from gladstone.errors import ConfigError, DataError
from gladstone.gguf.header import summarize_model
from runtime.commands.prompt_options import PromptSettings
from runtime.engine import Engine
from runtime.text.turn_end import text_behind_answer

AS_USER = "--system-as user puts it before the first question"


class PromptBuilder:
    """Turns of a conversation made ready for a model; `remarks` is what the user should know of its template."""

    def __init__(self, engine: Engine, settings: PromptSettings) -> None:
        """Raises DataError for a system prompt that the template refuses, ConfigError for settings that contradict."""
        self._template, self._settings = engine.template, settings
        self._arguments = dict(engine.template.arguments)
        self._switch = find_thinking_switch(engine.template)
        self._word = ""
        self.system: str | None = None
        self.reasoning_tokens = settings.reasoning_tokens
        self.remarks = template_remarks(engine)
        if settings.no_think:
            self._check_arguments()
            self.remarks += filter(None, [self.think(on=False)])
        if settings.system:
            self.system = settings.system
            self.remarks += filter(None, [self._system_warning()])

    def messages(self, turns: Sequence[Message]) -> list[Message]:
        """The turns with the system prompt, as a turn of its own or before the first question."""
        system = "\n\n".join(filter(None, [self.system, self._word]))
        if not system:
            return list(turns)
        if self._settings.system_as == "user":
            return [replace(turns[0], content=f"{system}\n\n{turns[0].content}"), *turns[1:]]
        return [Message("system", system), *turns]

    def set_system(self, text: str | None) -> None:
        """Take another system prompt, or none. Raises DataError for one that the model would not see."""
        if text and (warning := self._system_warning()):
            raise DataError(warning)
        self.system = text

    def think(self, *, on: bool) -> str | None:
        """Turn thinking on or off; returns what the user should know of how."""
        switch = self._switch
        self._template.set_arguments({**self._arguments, **(switch.on if on else switch.off)})
        self._word = "" if on else switch.word
        self.reasoning_tokens = self._settings.reasoning_tokens
        if on:
            return None
        self.reasoning_tokens = self.reasoning_tokens or 0
        if switch:
            return None
        return "The chat template has no switch for thinking: a thought is closed at once, as by --reasoning-tokens 0."

    def thinking_by(self) -> str:
        """What turns thinking off, in words."""
        values = ", ".join(f"{name}={value}" for name, value in self._switch.off.items())
        return values.lower() or self._switch.word or "closing a thought at once"

    def _check_arguments(self) -> None:
        wrong = [name for name, off in self._switch.off.items() if self._arguments.get(name, off) != off]
        if wrong:
            raise ConfigError(f"--no-think and --template-arg {wrong[0]} contradict each other: take one of them.")

    def _system_warning(self) -> str | None:
        """Why the model does not see a system prompt. Raises DataError if the template refuses one."""
        if self._settings.system_as == "user":
            return None
        support = self._template.system_support()
        if support.shown:
            return None
        if support.reason:
            raise DataError(f"the chat template takes no system prompt ({support.reason}). {AS_USER}.")
        return f"the chat template leaves the system prompt out: the model does not see it. {AS_USER}."


def template_remarks(engine: Engine) -> list[str]:
    """What is unusual about a chat template: it is not the file's, or not this vocabulary's, or marks no end."""
    remarks, behind = [], text_behind_answer(engine.template)
    if engine.options.chat_template is not None:
        remarks += _override_remarks(engine)
    if not engine.template.shows_question():
        remarks.append("The chat template leaves the question out: the model does not see it. Give --chat-template.")
    if engine.answer_stop:
        remarks.append(f"The chat template marks no end of an answer: it ends before {engine.answer_stop.strip()!r}.")
    elif behind is not None and not behind.strip() and not engine.model.has_encoder:
        remarks.append("The chat template writes nothing behind an answer: it may go on until --max-tokens or --stop.")
    if engine.template.depends_on_time:
        date = engine.provenance.template_date
        trained = f"; in training it wrote {date[:10]}" if date else ""
        remarks.append(f"The chat template writes today's date into every prompt{trained}.")
    return remarks


def _override_remarks(engine: Engine) -> list[str]:
    remarks, name = [], engine.template.name
    own = summarize_model(engine.model.headers).template
    if own and template_sha256(own) != engine.template.sha256:
        vouched = ", with which its manifest says it was trained" if engine.provenance.is_verified else ""
        remarks.append(f"The chat template {name} is used in place of the file's own{vouched}.")
    behind = text_behind_answer(engine.template) or ""
    texts = sorted(set(CONTROL_TEXT.findall(behind)))
    lacking = [text for text in texts if len(engine.model.tokenize(text, parse_special=True)) != 1]
    if lacking:
        remarks.append(
            f"The vocabulary has no tokens for {', '.join(lacking)}: the model reads them letter by letter. The chat "
            f"template {name} is likely made for another model."
        )
    return remarks
