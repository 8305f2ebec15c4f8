"""Chat templates: one renderer for training, proofs, chat and benchmarks, without transformers.

A template arrives inside a model file, so it is hostile until proven otherwise: it runs in Jinja's immutable sandbox
with the few functions that transformers gives to templates.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gladstone.chat import Message
from gladstone.errors import DataError

THINK_OPEN, THINK_CLOSE = "<think>\n", "\n</think>\n\n"


# what a template can raise, by its syntax, by its operations, or by its size
_FAILURES = (
    TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, NameError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


def template_sha256(source: str) -> str:
    """The hash under which a template travels from the training manifest to the report."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text. Segments are tokenized one by one: a prompt's tokens never depend on its answer."""

    text: str
    scored: bool


class ChatTemplate:
    """A compiled chat template with the special tokens it may name.

    A template that has its own field for reasoning (`reasoning_content`) gets it there; for any other the reasoning is
    written before the answer as `<think>…</think>`, the markers that reasoning models agree on.
    """

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None) -> None:
        """Raises DataError with the line if the template does not compile."""
        self.source = source
        self.sha256 = template_sha256(source)
        self.special_tokens = dict(special_tokens or {})
        self.has_reasoning_field = "reasoning_content" in source
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template does not compile: {error.message} (line {error.lineno}).") from None
        except (*_FAILURES, SyntaxError) as error:  # nested too deeply for Jinja or for Python
            raise DataError(f"the chat template does not compile: {error}.") from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of the turns; with `add_generation_prompt` it ends where the assistant's answer begins."""
        turns = [self._turn(message) for message in messages]
        try:
            return self._template.render(
                messages=turns,
                tools=None,  # transformers gives these two to every template, and some ask `is not none`
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except SecurityError as error:
            raise DataError(f"the chat template does something forbidden: {error}.") from None
        except _FAILURES as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"the chat template cannot render these turns: {reason}.") from None

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The rendered turns cut where each assistant's answer begins and ends; only answers are scored.

        An answer is what the template adds to the generation prompt of its turn, markers of its end included. Templates
        that rewrite earlier turns (DeepSeek drops their reasoning) have only the last answer scored, as it is rendered.

        Raises DataError if the last turn is not the assistant's or the template does not continue its own prompt.
        """
        if not messages or messages[-1].role != "assistant":
            raise DataError("the last turn must be the assistant's: nothing would be scored.")
        full = self.render(messages)
        segments: list[Segment] = []
        position = 0
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self.render(messages[:index], add_generation_prompt=True)
            until = self.render(messages[: index + 1])
            stable = until.startswith(prompt) and full.startswith(until) and len(prompt) > position
            if stable:
                segments.append(Segment(full[position : len(prompt)], scored=False))
                segments.append(Segment(full[len(prompt) : len(until)], scored=True))
                position = len(until)
            elif index == len(messages) - 1:
                raise DataError("the chat template's full text does not continue its own generation prompt.")
        return segments

    def _turn(self, message: Message) -> dict[str, Any]:
        turn = {"role": message.role, "content": message.content}
        if not message.reasoning:
            return turn
        if self.has_reasoning_field:
            return turn | {"reasoning_content": message.reasoning}
        return turn | {"content": f"{THINK_OPEN}{message.reasoning}{THINK_CLOSE}{message.content}"}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without powers: 9**9**9 would keep a core busy for ever, while compiling already."""

    intercepted_binops = frozenset({"**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        raise SecurityError(f"the operator {operator} is not allowed")


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`, by which a template marks answers for transformers: only its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which a prompt must keep; the arguments are those of transformers
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
