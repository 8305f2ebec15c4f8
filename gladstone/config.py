"""Parse and validate YAML configurations: one message lists all problems of a file and suggests names for typos."""

import copy
import difflib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gladstone.errors import ConfigError, listed
from gladstone.renamed import announce
from gladstone.strict_json import number


class Config(BaseModel):
    """A section of a configuration: unknown fields are errors, values are not coerced from other types."""

    # the earlier names of fields, and their current ones (see gladstone.renamed)
    renamed: ClassVar[Mapping[str, str]] = {}
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


C = TypeVar("C", bound=Config)
UNION_TAG = "tag:"  # prefix that pydantic adds to a location to name the member of a tagged union


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and, like YAML 1.2, reads 1e-4 as a number and `on` as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"line {node.start_mark.line + 1}: {key!r} is given twice.")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_FLOAT = re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$")
_INTEGER = re.compile(r"^[-+]?\d+$")
for _start in "-+0123456789.":
    _Loader.yaml_implicit_resolvers[_start] = [
        ("tag:yaml.org,2002:int", _INTEGER),
        ("tag:yaml.org,2002:float", _FLOAT),
        *_Loader.yaml_implicit_resolvers.get(_start, []),
    ]


_BOOLEAN = "tag:yaml.org,2002:bool"
_TRUE_OR_FALSE = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
for _start in "yYnNoOtTfF":
    _others = [resolver for resolver in _Loader.yaml_implicit_resolvers.get(_start, []) if resolver[0] != _BOOLEAN]
    _Loader.yaml_implicit_resolvers[_start] = [
        (_BOOLEAN, _TRUE_OR_FALSE),
        *_others,
    ]


def _read_integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    # in YAML 1.1, 010 is octal and 09 an error; in YAML 1.2 both are decimal
    return int(node.value) if _INTEGER.match(node.value) else loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _read_integer)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file's mapping. Raises ConfigError if it cannot be read, is not YAML or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}.") from None
    try:
        data = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'field: value' lines, found {type(data).__name__}.")
    return data


def parse_yaml(text: str) -> Any:
    """Parse a YAML value. Raises ConfigError with line and column if it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{position}not YAML: {error.problem}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date such as 2026-13-45
        raise ConfigError(f"not YAML: {error}.") from None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `data` with each `section.field=value` set; the value is parsed as YAML.

    Raises ConfigError for an override of another form or through a field that is not a section.
    """
    result = copy.deepcopy(data)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {override!r}: expected FIELD=VALUE, for example training.learning_rate=1e-4.")
        *sections, field = name.strip().split(".")
        target = result
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override!r}: {section!r} is a value, not a section.")
        try:
            target[field] = parse_yaml(text)
        except ConfigError as error:
            raise ConfigError(f"--set {override!r}: {error}") from None
    return result


def build_config(model: type[C], data: dict[str, Any], where: str) -> C:
    """Validate `data` against `model`. Raises ConfigError with all problems in one message."""
    try:
        current, replaced = current_names(model, data)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for earlier, name in replaced:
        announce(earlier, name)
    try:
        text = json.dumps(current, default=str)  # for pydantic alone, which reads Infinity
    except TypeError:
        raise ConfigError(f"{where}: the name of every field must be text.") from None
    try:
        # strict JSON mode: a list may become a tuple, but no text or boolean becomes a number
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_problem(model, dict(detail)) for detail in _relevant_errors(error)]
        raise ConfigError(listed(where, problems)) from None


def current_names(
    section: type[BaseModel], values: Mapping[str, Any], place: str = ""
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """`values` with every field under its current name, and each (earlier, current) pair of names that it replaces.

    `place` stands before the names, as "training.". Raises ConfigError if a field is given under both names.
    """
    result: dict[str, Any] = {}
    replaced: list[tuple[str, str]] = []
    renamed = section.renamed if issubclass(section, Config) else {}
    for given, value in values.items():
        name = renamed.get(given, given)
        if name != given:
            if name in values:
                raise ConfigError(f"{place}{given} is the earlier name of {place}{name}. Give one of them.")
            replaced.append((f"{place}{given}", f"{place}{name}"))
        field = section.model_fields.get(name)
        inner = _section(field.annotation) if field else None
        result[name], found = _current_inside(inner, value, f"{place}{name}.")
        if field and _is_number(field.annotation):
            result[name] = number(value)  # a file of Gladstone's may hold infinity as a text
        replaced += found
    return result, replaced


def _is_number(annotation: Any) -> bool:
    """True for float, and for types that allow it, such as `float | None`."""
    return annotation is float or any(map(_is_number, get_args(annotation)))


def _current_inside(section: type[BaseModel] | None, value: Any, place: str) -> tuple[Any, list[tuple[str, str]]]:
    """The same for a field's value: a section, a list of sections, or anything else, which stays as it is."""
    if section is not None and isinstance(value, dict):
        return current_names(section, value, place)
    if section is None or not isinstance(value, list):
        return value, []
    items = [_current_inside(section, item, f"{place}{number}.") for number, item in enumerate(value)]
    return [item for item, _ in items], [pair for _, found in items for pair in found]


def _relevant_errors(error: ValidationError) -> list[ErrorDetails]:
    """The errors without "too short" for a list that is only short because pydantic dropped its invalid items."""
    details = error.errors()
    wrong_inside = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in wrong_inside]


def _problem(model: type[BaseModel], detail: dict[str, Any]) -> str:
    location = detail["loc"]
    name = ".".join(str(part) for part in location if not str(part).startswith(UNION_TAG))
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown field{_suggestion(model, location)}."
    if detail["type"] == "missing":
        return f"{name}: missing."
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = "" if isinstance(detail["input"], dict) else f", found {detail['input']!r}"
    if detail["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}: expected {message}{found}."


def _suggestion(model: type[BaseModel], location: tuple[str | int, ...]) -> str:
    section = model
    for part in location[:-1]:
        if part in section.model_fields:  # else an index into a list, whose section is known already
            section = _section(section.model_fields[str(part)].annotation) or section
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(section.model_fields)})"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class within a field's type: `Source` for `tuple[Source, ...]` or `Source | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)
