"""Builds the messages of a request: the user's turns with the system prompt, and reasoning on or off."""

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

AS_USER = "--system-as user sends it at the start of the first question"


class PromptBuilder:
    """Builds the messages of a conversation for one model; `remarks` are warnings about its chat template."""

    def __init__(self, engine: Engine, settings: PromptSettings) -> None:
        """Raises DataError for a system prompt that the template refuses, ConfigError for contradictory settings."""
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
        """The turns with the system prompt, as a turn of its own or at the start of the first question."""
        system = "\n\n".join(filter(None, [self.system, self._word]))
        if not system:
            return list(turns)
        if self._settings.system_as == "user":
            return [replace(turns[0], content=f"{system}\n\n{turns[0].content}"), *turns[1:]]
        return [Message("system", system), *turns]

    def set_system(self, text: str | None) -> None:
        """Replace or remove the system prompt. Raises DataError if the model would not see it."""
        if text and (warning := self._system_warning()):
            raise DataError(warning)
        self.system = text

    def think(self, *, on: bool) -> str | None:
        """Turn reasoning on or off; returns a warning if the template has no switch for it."""
        switch = self._switch
        self._template.set_arguments({**self._arguments, **(switch.on if on else switch.off)})
        self._word = "" if on else switch.word
        self.reasoning_tokens = self._settings.reasoning_tokens
        if on:
            return None
        self.reasoning_tokens = self.reasoning_tokens or 0
        if switch:
            return None
        return "The chat template has no switch for reasoning: it is closed at once, as with --reasoning-tokens 0."

    def thinking_by(self) -> str:
        """How reasoning is turned off, for a message to the user."""
        values = ", ".join(f"{name}={value}" for name, value in self._switch.off.items())
        return values.lower() or self._switch.word or "closing it at once"

    def _check_arguments(self) -> None:
        wrong = [name for name, off in self._switch.off.items() if self._arguments.get(name, off) != off]
        if wrong:
            raise ConfigError(f"--no-think and --template-arg {wrong[0]} contradict each other: give only one.")

    def _system_warning(self) -> str | None:
        """A warning if the model does not see a system prompt. Raises DataError if the template refuses one."""
        if self._settings.system_as == "user":
            return None
        support = self._template.system_support()
        if support.shown:
            return None
        if support.reason:
            raise DataError(f"the chat template does not accept a system prompt ({support.reason}). {AS_USER}.")
        return f"the chat template omits the system prompt, so the model does not see it. {AS_USER}."


def template_remarks(engine: Engine) -> list[str]:
    """Warnings about a chat template, for example that it is not the file's own, or marks no end of an answer."""
    remarks, behind = [], text_behind_answer(engine.template)
    if engine.options.chat_template is not None:
        remarks += _override_remarks(engine)
    if not engine.template.shows_question():
        remarks.append("The chat template omits the question, so the model does not see it. Give --chat-template.")
    if engine.answer_stop:
        remarks.append(
            f"The chat template has no token for the end of an answer: it stops before {engine.answer_stop.strip()!r}."
        )
    elif behind is not None and not behind.strip() and not engine.model.has_encoder:
        remarks.append("The chat template does not mark the end of an answer: set --stop, or limit --max-tokens.")
    if engine.template.depends_on_time:
        date = engine.provenance.template_date
        trained = f"; the model was trained with {date[:10]}" if date else ""
        remarks.append(f"The chat template adds today's date to every prompt{trained}.")
    return remarks


def _override_remarks(engine: Engine) -> list[str]:
    remarks, name = [], engine.template.name
    own = summarize_model(engine.model.headers).template
    if own and template_sha256(own) != engine.template.sha256:
        trained = ", which the manifest says the model was trained with" if engine.provenance.is_verified else ""
        remarks.append(f"The chat template {name} replaces the file's own{trained}.")
    behind = text_behind_answer(engine.template) or ""
    texts = sorted(set(CONTROL_TEXT.findall(behind)))
    lacking = [text for text in texts if len(engine.model.tokenize(text, parse_special=True)) != 1]
    if lacking:
        remarks.append(
            f"The vocabulary has no tokens for {', '.join(lacking)}, so the model reads them as plain text. The chat "
            f"template {name} was probably made for another model."
        )
    return remarks
