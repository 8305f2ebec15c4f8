"""JSON schemas for constrained decoding: refuses what llguidance cannot follow, and makes formats stricter.

llguidance ignores unknown keywords, recurses from reference to reference on the native stack, and accepts 30 February
and duplicate keys. A schema that passes here is bounded and finite, and its answers pass a validator.
"""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from gladstone.errors import ConfigError
from runtime.grammars.finite_schema import Schema, finite_schemas, listed, mapping
from runtime.grammars.regex import MAX_QUANTIFIERS, check_nesting, check_regex
from runtime.grammars.wrappers import unwrapped

MAX_DEPTH = 64
MAX_REFERENCE_DEPTH = 1_000  # parts of the pointers of all references; 8 MiB of stack suffice for 2,000, not 4,000
MAX_PROPERTIES = 1_000  # of one object: compiling takes quadratic time, 59 ms at 1,000
MAX_ALL_PROPERTIES = 3_000
MAX_PATTERN_PROPERTIES = 50  # of one object: llguidance compares all pairs, 300 ms at 200
MAX_BRANCHES = 500  # of one anyOf, oneOf or allOf

MAPS = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalItems", "additionalProperties")
CONSTRAINTS = (
    *("$ref", "const", "enum", "type", "minItems", "maxItems", "required", "minProperties", "maxProperties"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
ANNOTATIONS = (
    *("$anchor", "$schema", "$id", "id", "$comment", "title", "description", "default", "deprecated", "examples"),
    *("example", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator"),
)
KNOWN = frozenset((*CONSTRAINTS, *ANNOTATIONS, *MAPS, *LISTS, *SINGLE))

_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# llguidance's own patterns ignore leap years, and accept second 60 at any time and names of any length
STRICTER: dict[str, Schema] = {
    "date": {"pattern": f"^{_DAY}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DAY}[tT]{_TIME}$"},
    "hostname": {"maxLength": 253},
}
# one space, or a line end with indentation: with more, a small model can generate white space forever
WHITESPACE = " |\\n {0,40}|\\n\\t{1,10}"


def prepare_schema(text: str) -> str:
    """Unwrap and check a schema; returns its text for llguidance.

    Raises ConfigError, with a JSON pointer, for what cannot be used.
    """
    check_nesting(_without_strings(text), MAX_DEPTH, "the JSON schema")
    schema = unwrapped(_parse(text))
    if isinstance(schema, bool):
        if not schema:
            raise ConfigError("the JSON schema is `false`: no value matches it.")
        schema = {}
    if not isinstance(schema, dict):
        raise ConfigError(f"the JSON schema must be an object or a boolean, not {type(schema).__name__}.")
    nodes = dict(_walk(schema, "#"))
    for pointer, node in nodes.items():
        _check_node(node, pointer)
    _check_totals(nodes)
    _check_references(schema, nodes)
    for node in nodes.values():
        _make_stricter(node)
    schema["x-guidance"] = {"whitespace_pattern": WHITESPACE}
    return json.dumps(schema, allow_nan=False)


def _without_strings(text: str) -> str:
    """The text without its strings."""
    kept, inside, escaped = [], False, False
    for letter in text:
        if escaped:
            escaped = False
        elif inside and letter == "\\":
            escaped = True
        elif letter == '"':
            inside = not inside
        elif not inside:
            kept.append(letter)
    return "".join(kept)


def _parse(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        schema = json.loads(text, parse_constant=refuse)
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError("the JSON schema contains a lone surrogate, which no text can contain.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema is not valid JSON: {error}.") from error
    return schema


def _walk(schema: Schema, pointer: str) -> Iterator[tuple[str, Schema]]:
    """Yield every schema that is an object, with its JSON pointer; `enum`, `const` and annotations hold only values."""
    yield pointer, schema
    for keyword, value in schema.items():
        below = f"{pointer}/{keyword}"
        if keyword in MAPS and isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, dict):
                    yield from _walk(inner, f"{below}/{_escaped(name)}")
        elif (keyword in LISTS or keyword == "items") and isinstance(value, list):
            for number, inner in enumerate(value):
                if isinstance(inner, dict):
                    yield from _walk(inner, f"{below}/{number}")
        elif keyword in SINGLE and isinstance(value, dict):
            yield from _walk(value, below)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _check_node(node: Schema, pointer: str) -> None:
    for keyword, value in node.items():
        if keyword not in KNOWN and not (keyword.startswith("x-") and keyword != "x-guidance"):
            raise ConfigError(f"the JSON schema uses `{keyword}` at {pointer}, which is not supported: remove it.")
        if keyword in LISTS and isinstance(value, list) and len(value) > MAX_BRANCHES and keyword != "prefixItems":
            raise ConfigError(f"the JSON schema has more than {MAX_BRANCHES} branches at {pointer}/{keyword}.")
    if pointer != "#" and isinstance(node.get("$id"), str):
        raise ConfigError(f"the JSON schema has an `$id` at {pointer}: only the whole schema may have one.")
    if node.get("format") == "unknown":
        raise ConfigError(f"the JSON schema has the unknown format `unknown` at {pointer}.")
    for pattern in (node.get("pattern"), *mapping(node, "patternProperties")):
        if isinstance(pattern, str):
            check_regex(pattern, f"the JSON schema's pattern at {pointer}")
    if len(mapping(node, "patternProperties")) > MAX_PATTERN_PROPERTIES:
        raise ConfigError(f"the JSON schema has more than {MAX_PATTERN_PROPERTIES} patternProperties at {pointer}.")
    if len(_names(node)) > MAX_PROPERTIES:
        raise ConfigError(f"the JSON schema has an object of more than {MAX_PROPERTIES:,} properties at {pointer}.")
    _check_least_properties(node, pointer)


def _check_least_properties(node: Schema, pointer: str) -> None:
    """Raises ConfigError if `minProperties` relies on unnamed keys, which an answer may repeat."""
    least, required = node.get("minProperties"), node.get("required")
    named = len(set(map(str, required))) if isinstance(required, list) else 0
    if isinstance(least, int) and least > named + 1:
        raise ConfigError(
            f"the JSON schema has minProperties {least} at {pointer} and names {named} in `required`: an answer could "
            "repeat one key for the others. Name them in `required`."
        )


def _names(node: Schema) -> set[str]:
    required = node.get("required")
    return {*mapping(node, "properties"), *(map(str, required) if isinstance(required, list) else ())}


def _check_totals(nodes: dict[str, Schema]) -> None:
    if sum(len(_names(node)) for node in nodes.values()) > MAX_ALL_PROPERTIES:
        raise ConfigError(f"the JSON schema names more than {MAX_ALL_PROPERTIES:,} properties.")
    patterns = [
        pattern
        for node in nodes.values()
        for pattern in (node.get("pattern"), *mapping(node, "patternProperties"))
        if isinstance(pattern, str)
    ]
    quantifiers = sum(check_regex(pattern, "a pattern of the JSON schema") for pattern in patterns)
    if quantifiers > 4 * MAX_QUANTIFIERS:
        raise ConfigError(f"the patterns of the JSON schema have more than {4 * MAX_QUANTIFIERS} quantifiers.")


def _check_references(schema: Schema, nodes: dict[str, Schema]) -> None:
    """Raises ConfigError for a reference without a target or a finite value, and for references that nest too deep."""
    pointers = {id(node): pointer for pointer, node in nodes.items()}
    heights = _heights(nodes)
    depth = heights["#"]
    leads: dict[int, Schema] = {}  # from the schema that refers
    targets = {id(schema): "#"}
    for pointer, node in nodes.items():
        target = _target(schema, node["$ref"], pointer) if "$ref" in node else None
        if not isinstance(target, dict):
            continue
        if id(target) not in pointers:
            raise ConfigError(f"the JSON schema's reference `{node['$ref']}` points to a value, not to a schema.")
        leads[id(node)] = target
        if id(target) not in targets:
            targets[id(target)] = node["$ref"]
            depth += heights[pointers[id(target)]]
    if depth > MAX_REFERENCE_DEPTH:
        raise ConfigError(f"the JSON schema nests {depth:,} levels by its references, at most {MAX_REFERENCE_DEPTH:,}.")
    finite = finite_schemas(nodes, leads)
    for target_id, reference in targets.items():
        if target_id not in finite:
            raise ConfigError(
                f"the JSON schema at `{reference}` has no finite value: it requires itself, or no value matches."
            )


def _heights(nodes: dict[str, Schema]) -> dict[str, int]:
    """For each pointer: one more than the parts of the longest path from it to a schema inside it."""
    heights: dict[str, int] = {}
    for pointer in nodes:
        below, ancestor = 1, pointer
        while ancestor:
            heights[ancestor] = max(heights.get(ancestor, 0), below)
            below, ancestor = below + 1, ancestor.rpartition("/")[0]
    return heights


def _target(schema: Schema, reference: Any, pointer: str) -> Any:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise ConfigError(
            f"the JSON schema's `$ref` at {pointer} is {reference!r}: only pointers into the same schema (`#/…`) work."
        )
    target: Any = schema
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        elif isinstance(target, dict) and name in target:
            target = target[name]
        else:
            raise ConfigError(f"the JSON schema's `$ref` {reference!r} at {pointer} points to nothing.")
    return target


def _make_stricter(node: Schema) -> None:
    if isinstance(node.get("format"), str) and node["format"] in STRICTER:
        node["allOf"] = [*listed(node, "allOf"), STRICTER[node["format"]]]
