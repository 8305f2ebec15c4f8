"""Jinja's sandbox for chat templates, with the functions that transformers provides to them.

A template is part of a model file, so it is untrusted. This module does not bound its time and memory:
`guarded_template` does, whose child process renders with this module.
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

# errors that a template's syntax and operations can raise; an OSError is a codec that cannot be imported
_FAILURES = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
_MAX_REPEATED, _MAX_PRODUCT_BITS = 1_000_000, 100_000
_MAX_REASON_CHARACTERS = 1000


@dataclass(frozen=True)
class Rendering:
    """The input of one rendering: turns and tools as the template sees them, and the time (None: the current time).

    `arguments` are further variables, such as `enable_thinking`.
    """

    turns: list[dict[str, Any]]
    add_generation_prompt: bool = False
    tools: list[dict[str, Any]] = field(default_factory=list)
    now: datetime | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values, from which `of_json` rebuilds the rendering."""
        return vars(self) | {"now": self.now and self.now.isoformat()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Rendering":
        """Rebuild a rendering from the result of `as_json`."""
        return cls(**{**fields, "now": fields["now"] and datetime.fromisoformat(fields["now"])})


def compile_template(source: str) -> Template:
    """Compile a template in the sandbox. Raises DataError with the line if that fails, MemoryError if it is huge."""
    try:
        return make_environment().from_string(source)
    except TemplateSyntaxError as error:
        reason = _reason(error, error.message)
        raise DataError(f"the chat template does not compile: {reason} (line {error.lineno}).") from None
    except (*_FAILURES, SyntaxError) as error:  # nested too deeply for Jinja or for Python
        raise DataError(f"the chat template does not compile: {_reason(error)}.") from None


def make_environment() -> ImmutableSandboxedEnvironment:
    """The Jinja environment for chat templates: sandboxed, with the filters and tags that transformers has."""
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals.update(raise_exception=_raise_exception)
    return sandbox


def render_template(template: Template, special_tokens: Mapping[str, str], rendering: Rendering) -> str:
    """Render a compiled template. Raises DataError if it fails, MemoryError if the result is huge."""
    try:
        return template.render(
            # transformers passes documents and tools to every template, and some test `is not none`
            {"documents": None, **special_tokens, **rendering.arguments},
            messages=rendering.turns,
            tools=rendering.tools or None,
            add_generation_prompt=rendering.add_generation_prompt,
            strftime_now=make_strftime_now(rendering.now),
        )
    except SecurityError as error:
        raise DataError(f"the chat template does something forbidden: {_reason(error)}.") from None
    except _FAILURES as error:
        raise DataError(f"the chat template cannot render these turns: {_reason(error)}.") from None


def _reason(error: Exception, message: str | None = None) -> str:
    # a template chooses the text of its errors: that text must neither control a terminal nor fill it
    reason = message or str(error) or type(error).__name__
    return one_line(reason, _MAX_REASON_CHARACTERS)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without powers and huge products: Jinja would compute constant ones while compiling."""

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
    """`{% generation %}…{% endgeneration %}`, which marks answers for transformers: renders its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def make_strftime_now(now: datetime | None) -> Callable[[str], str]:
    """The template function `strftime_now`, its only access to the time: a fixed time, or the current one."""

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
    # Jinja's own filter escapes HTML characters, which a prompt must keep; transformers has the same arguments
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
