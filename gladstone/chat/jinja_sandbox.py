"""Jinja's sandbox for chat templates, with the functions that transformers gives to them.

A template arrives inside a model file, so it is hostile until proven otherwise. What it may take of time and memory is
bounded only in `guarded_template`, whose child process renders with this module.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gladstone.errors import DataError
from gladstone.report.terminal import one_line

# what a template can raise by its syntax and by its operations; an OSError for a codec that cannot be imported
_FAILURES = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_MAX_REPEATED, _MAX_PRODUCT_BITS = 1_000_000, 100_000
_MAX_REASON_CHARACTERS = 1000


@dataclass(frozen=True)
class Rendering:
    """What a template renders: turns and tools as it sees them, and the time that it may write (None: the real one).

    `arguments` are further names that it may read, as `enable_thinking`.
    """

    turns: list[dict[str, Any]]
    add_generation_prompt: bool = False
    tools: list[dict[str, Any]] = field(default_factory=list)
    now: datetime | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values, of which `of_json` makes it again."""
        return vars(self) | {"now": self.now and self.now.isoformat()}

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "Rendering":
        """What `as_json` took apart."""
        return cls(**{**fields, "now": fields["now"] and datetime.fromisoformat(fields["now"])})


def compiled(source: str) -> Template:
    """The template in the sandbox. Raises DataError with the line if it does not compile, MemoryError if it is huge."""
    try:
        return environment().from_string(source)
    except TemplateSyntaxError as error:
        reason = _reason(error, error.message)
        raise DataError(f"the chat template does not compile: {reason} (line {error.lineno}).") from None
    except (*_FAILURES, SyntaxError) as error:  # nested too deeply for Jinja or for Python
        raise DataError(f"the chat template does not compile: {_reason(error)}.") from None


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates get it."""
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals.update(raise_exception=_raise_exception)
    return sandbox


def rendered(template: Template, special_tokens: Mapping[str, str], asked: Rendering) -> str:
    """The text that a compiled template makes of turns. Raises DataError if it cannot, MemoryError if it is huge."""
    try:
        return template.render(
            # transformers gives documents and tools to every template, and some ask `is not none`
            {"documents": None, **special_tokens, **asked.arguments},
            messages=asked.turns,
            tools=asked.tools or None,
            add_generation_prompt=asked.add_generation_prompt,
            strftime_now=clock(asked.now),
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


def clock(now: datetime | None) -> Callable[[str], str]:
    """The function by which a template writes the time, the only one that it has: a fixed time, or the real one."""

    def strftime_now(pattern: str) -> str:
        return (now or datetime.now()).strftime(pattern)

    return strftime_now


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which a prompt must keep; the arguments are those of transformers
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
