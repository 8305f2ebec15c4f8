"""Whether answers have a required form, given as a regular expression or a JSON schema.

Named fields are also compared with the reference: the named groups of a pattern, and the properties of a schema that
allow few values (enum, const, boolean).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.metrics.bootstrap import mean, mean_table
from bench.metrics.metrics import Metric, MetricScores
from bench.results import MetricInfo
from gladstone.errors import ConfigError

FORM = "form"
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """A form of answers; `read` returns the named fields of a text that has the form, else None."""

    described: str
    names: tuple[str, ...]
    read: Callable[[str], Fields | None]

    def metrics(self) -> dict[str, Metric]:
        """The proportion of answers in the form, and for each field the proportion that equals the reference."""
        found = {FORM: self._metric(MetricInfo(FORM, "in the form", higher_is_better=True), self._in_form)}
        for name in self.names:
            info = MetricInfo(f"{FORM}.{name}", f"{name} as the reference", higher_is_better=True)
            found[info.name] = self._metric(info, self._same(name))
        return found

    def outside(self, texts: Sequence[str]) -> list[int]:
        """The indices of the texts that do not have the form."""
        return [number for number, text in enumerate(texts) if self.read(text) is None]

    def _metric(self, info: MetricInfo, right: Callable[[str, str], bool]) -> Metric:
        def score(answers: Sequence[str], references: Sequence[str]) -> MetricScores:
            scores = tuple(float(right(*pair)) for pair in zip(answers, references, strict=True))
            return MetricScores(scores, mean_table(scores), mean, is_proportion=True)

        return Metric(info, score, whole_answers=True)

    def _in_form(self, answer: str, _reference: str) -> bool:
        return self.read(answer) is not None

    def _same(self, name: str) -> Callable[[str, str], bool]:
        def same(answer: str, reference: str) -> bool:
            ours, theirs = self.read(answer), self.read(reference)
            if ours is None or theirs is None or name not in theirs or name not in ours:
                return False
            # JSON's true and 1 are equal in Python
            return bool(ours[name] == theirs[name]) and type(ours[name]) is type(theirs[name])

        return same


def read_form(regex: str | None, json_schema: Path | None) -> Form | None:
    """The form that the options require, or None. Raises ConfigError for both options, a bad pattern or schema."""
    if regex is not None and json_schema is not None:
        raise ConfigError("--regex and --json-schema exclude each other. Give one of them.")
    if regex is not None:
        return _of_regex(regex)
    return _of_schema(json_schema) if json_schema is not None else None


def _of_regex(pattern: str) -> Form:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        at = f" at character {error.pos + 1}" if error.pos is not None else ""
        raise ConfigError(f"--regex {pattern!r}: not a valid regular expression: {error.msg}{at}.") from None

    def read(text: str) -> Fields | None:
        match = compiled.fullmatch(text)
        return match.groupdict() if match else None

    return Form(f"regex {pattern}", tuple(compiled.groupindex), read)


def _of_schema(path: Path) -> Form:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    from runtime.grammars.wrappers import unwrapped

    schema = unwrapped(
        _read_json(path)
    )  # a validator ignores unknown keywords, so anything would match a wrapped schema
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "the top level"
        raise ConfigError(f"--json-schema {path}: not a valid JSON schema: at {place}: {error.message}.") from None
    validator = kind(schema)
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    names = tuple(name for name, each in properties.items() if _has_few_values(each))

    def read(text: str) -> Fields | None:
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return None
        if not validator.is_valid(value):
            return None
        return value if isinstance(value, dict) else {}

    return Form(f"JSON schema {path.name}", names, read)


def _has_few_values(schema: object) -> bool:
    return isinstance(schema, dict) and ("enum" in schema or "const" in schema or schema.get("type") == "boolean")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"--json-schema {path}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--json-schema {path}: not valid JSON: {error}.") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
