"""Chat templates: one renderer for training, proofs, chat and benchmarks, without transformers.

A template arrives inside a model file, so it is hostile until proven otherwise: it runs in Jinja's immutable sandbox
with the few functions that transformers gives to templates. What it may take of time and memory is bounded only in
`guarded_template`, which renders with this module in a process of its own.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gladstone.chat import Message
from gladstone.errors import DataError
from gladstone.terminal import one_line

# how reasoning is marked, by the tag that a template names; the first is for templates that name none
THOUGHT_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_PROBE = "GLADSTONE-PROBE"  # an answer that no template changes

# what a template can raise by its syntax and by its operations; an OSError for a codec that cannot be imported
_FAILURES = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_MAX_REPEATED, _MAX_PRODUCT_BITS = 1_000_000, 100_000
_MAX_REASON_CHARACTERS = 1000


def template_sha256(source: str) -> str:
    """The hash under which a template travels from the training manifest to the report."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text; `encode_parts` tokenizes it, so that no prompt depends on its answer."""

    text: str
    scored: bool


def encode_parts(texts: Sequence[str], encode: Callable[[str], list[int]]) -> list[list[int]]:
    """Token ids of consecutive texts, each as it is tokenized behind the text before it.

    A sentencepiece tokenizer puts a space before whatever it is given: a part must not get one in the middle of a line.
    Where a part would change the tokens before it, it is tokenized alone: what was said never depends on what follows.
    """
    parts: list[list[int]] = []
    for index, text in enumerate(texts):
        if index == 0:
            parts.append(encode(text))
            continue
        before = encode(texts[index - 1])
        both = encode(texts[index - 1] + text)
        parts.append(both[len(before) :] if both[: len(before)] == before else encode(text))
    return parts


class ChatTemplate:
    """A compiled chat template with the special tokens it may name.

    A template that has its own field for reasoning (`reasoning_content`) gets it there; for any other the reasoning is
    written before the answer between the tags that the template names, `<think>…</think>` where it names none.
    """

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None) -> None:
        """Raises DataError with the line if the template does not compile."""
        self.source = source
        self.sha256 = template_sha256(source)
        self.special_tokens = dict(special_tokens or {})
        self.has_reasoning_field = "reasoning_content" in source
        self.thought_tags = next(
            (tags for tags in THOUGHT_TAGS if tags[0] in source or tags[1] in source), THOUGHT_TAGS[0]
        )
        self._compile()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of the turns; with `add_generation_prompt` it ends where the assistant's answer begins."""
        return self._rendered([self._turn(message) for message in messages], add_generation_prompt)

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The rendered turns cut where each assistant's answer begins and ends; only answers are scored.

        An answer is what the template adds to the generation prompt of its turn, markers of its end included. Of a
        template that rewrites earlier turns only the last answer is scored. Where it renders even that without its
        reasoning (DeepSeek-R1's does), the answer is what the model has to write: reasoning, content, end of turn.

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
            is_last = index == len(messages) - 1
            stable = until.startswith(prompt) and full.startswith(until) and len(prompt) > position
            if is_last and not (stable and self._thought_in(until[len(prompt) :], message)):
                if prompt[:position] != full[:position]:
                    raise DataError("the chat template's full text does not continue its own generation prompt.")
                segments.append(Segment(prompt[position:], scored=False))
                segments.append(Segment(self._written_answer(messages, prompt), scored=True))
            elif stable:
                segments.append(Segment(full[position : len(prompt)], scored=False))
                segments.append(Segment(full[len(prompt) : len(until)], scored=True))
                position = len(until)
        return segments

    def thinking_aloud(self, message: Message) -> str:
        """The answer with its reasoning, if it has any, written before it between the template's tags."""
        if not message.reasoning:
            return message.content
        opening, closing = self.thought_tags
        return f"{opening}\n{message.reasoning}\n{closing}\n\n{message.content}"

    def _compile(self) -> None:
        try:
            self._compiled = compiled(self.source)
        except MemoryError:
            raise DataError("the chat template does not compile: it takes all the memory.") from None

    def _rendered(self, turns: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return rendered(self._compiled, self.special_tokens, turns, add_generation_prompt)
        except MemoryError:
            raise DataError("the chat template cannot render these turns: they take all the memory.") from None

    def _thought_in(self, answer: str, message: Message) -> bool:
        return not message.reasoning or message.reasoning.strip() in answer

    def _written_answer(self, messages: Sequence[Message], prompt: str) -> str:
        """What the model has to write after the generation prompt, reasoning included.

        A generation prompt may open the thought (`<think>`). The end of the turn is what follows a plain answer.
        """
        answer = messages[-1]
        plain = self.render([*messages[:-1], Message("assistant", _PROBE)])
        before, found, end = plain.rpartition(_PROBE)
        opening, closing = self.thought_tags
        opened = prompt[len(before) :] if found and prompt.startswith(before) else None
        if opened is not None and opened.strip() == opening:
            return f"{answer.reasoning or ''}\n{closing}\n\n{answer.content}{end}"
        if opened == "" and answer.reasoning:
            return self.thinking_aloud(answer) + end
        raise DataError("the chat template's full text does not continue its own generation prompt.")

    def _turn(self, message: Message) -> dict[str, Any]:
        turn = {"role": message.role, "content": message.content}
        if not message.reasoning:
            return turn
        if self.has_reasoning_field:
            return turn | {"reasoning_content": message.reasoning}
        return turn | {"content": self.thinking_aloud(message)}


def compiled(source: str) -> Template:
    """The template in the sandbox. Raises DataError with the line if it does not compile, MemoryError if it is huge."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        reason = _reason(error, error.message)
        raise DataError(f"the chat template does not compile: {reason} (line {error.lineno}).") from None
    except (*_FAILURES, SyntaxError) as error:  # nested too deeply for Jinja or for Python
        raise DataError(f"the chat template does not compile: {_reason(error)}.") from None


def rendered(
    template: Template, special_tokens: dict[str, str], turns: list[dict[str, Any]], add_generation_prompt: bool
) -> str:
    """The text that a compiled template makes of turns. Raises DataError if it cannot, MemoryError if it is huge."""
    try:
        return template.render(
            messages=turns,
            tools=None,  # transformers gives these two to every template, and some ask `is not none`
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    except SecurityError as error:
        raise DataError(f"the chat template does something forbidden: {_reason(error)}.") from None
    except _FAILURES as error:
        raise DataError(f"the chat template cannot render these turns: {_reason(error)}.") from None


def _reason(error: Exception, message: str | None = None) -> str:
    # a template writes its own errors: what it says must neither steer a terminal nor fill it
    reason = message or str(error) or type(error).__name__
    return one_line(reason, _MAX_REASON_CHARACTERS)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without powers and giant products, which it would compute while compiling already."""

    intercepted_binops = frozenset({"**", "*"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError(f"the operator {operator} is not allowed")
        if _repeated(left, right) > _MAX_REPEATED or _repeated(right, left) > _MAX_REPEATED:
            raise SecurityError(f"a text or list is repeated to more than {_MAX_REPEATED:,} elements")
        integers = isinstance(left, int) and isinstance(right, int)
        if integers and left.bit_length() + right.bit_length() > _MAX_PRODUCT_BITS:
            raise SecurityError(f"a product has more than {_MAX_PRODUCT_BITS:,} bits")
        return super().call_binop(context, operator, left, right)


def _repeated(sequence: Any, times: Any) -> int:
    if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
        return len(sequence) * times
    return 0


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
