"""Seeded random JSON schemas of the kinds that people write, and random texts: a "model" that knows no language at all."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.grammars.grammar import Constraint, GrammarCompiler

Schema = dict[str, Any]

FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "duration", "uri")
PATTERNS = (
    r"^[A-Z]{2}-\d{4}$",
    r"^(foo|bar)+$",
    r"[aeiou]{2}",
    r"^\w+$",
    r"^a.{0,9}z$",
    r"^[^@\s]+@[a-z]+\.org$",
    r"^é{1,3}ß?$",
)
# what a text under a grammar most often needs to come to its end; alone, random tokens hardly ever write it
LIKED = frozenset((b'"', b"}", b"]", b'"}', b'"]', b"@", b":", b"z", b".org", b"."))
WORDS = ("yes", "no", 'quo"te', "back\\slash", "ünï", "日本", "tab\t", "", "🙂", "a/b")


def random_schema(seed: int) -> Schema:
    """An object schema, always the same for a seed; every value that fits is finite and most are short."""
    source = random.Random(seed)
    schema = _object(source, 3)
    if source.random() < 0.3:  # a tree through a reference, sometimes a reference to a neighbour
        node: Schema = {"type": "object", "properties": {"value": _value(source, 0), "next": {"$ref": "#/$defs/node"}}}
        node |= {"required": ["value"], "additionalProperties": False}
        schema["$defs"] = {"node": node, "leaf": _value(source, 1)}
        schema["properties"] |= {"tree": {"$ref": "#/$defs/node"}, "leaf": {"$ref": "#/$defs/leaf"}}
        schema["required"] = [*schema["required"], "tree"]
    return schema


def _value(source: random.Random, depth: int) -> Schema:
    simple: list[Callable[[random.Random], Schema]] = [_integer, _number, _string, _string, _choice, _constant]
    nested: list[Callable[[random.Random, int], Schema]] = [_object, _array, _tuple, _any_of, _tagged, _all_of]
    drawn = source.randrange(len(simple) + (len(nested) if depth > 0 else 0))
    return simple[drawn](source) if drawn < len(simple) else nested[drawn - len(simple)](source, depth - 1)


def _integer(source: random.Random) -> Schema:
    low = source.randint(-1000, 1000)
    bounds = [{"minimum": low}, {"maximum": low}, {"minimum": low, "maximum": low + source.randint(0, 500)}]
    bounds += [{"exclusiveMinimum": low, "exclusiveMaximum": low + 2}, {}, {"multipleOf": source.randint(2, 12)}]
    return {"type": "integer", **source.choice(bounds)}


def _number(source: random.Random) -> Schema:
    low = round(source.uniform(-100, 100), 2)
    bounds = [{"minimum": low}, {"maximum": low}, {"minimum": low, "maximum": round(low + source.uniform(0.1, 50), 2)}]
    return {"type": "number", **source.choice([*bounds, {"exclusiveMinimum": low}, {}])}


def _string(source: random.Random) -> Schema:
    least = source.randint(0, 8)
    limits: list[Schema] = [{}, {"minLength": least}, {"minLength": least, "maxLength": least + source.randint(0, 20)}]
    limits += [{"pattern": source.choice(PATTERNS)}, {"format": source.choice(FORMATS)}, {"maxLength": least}]
    limits += [{"pattern": "^[a-z ]+$", "minLength": 3, "maxLength": 12}]
    return {"type": "string", **source.choice(limits)}


def _choice(source: random.Random) -> Schema:
    values: list[Any] = [*source.sample(WORDS, 3), source.randint(-5, 5), None, True, 1.5, {"a": [1]}, []]
    return {"enum": source.sample(values, source.randint(1, 5))}


def _constant(source: random.Random) -> Schema:
    kinds: list[Schema] = [
        {"const": source.choice(WORDS)},
        {"type": "null"},
        {"type": "boolean"},
        {"const": {"k": [1, "x"]}},
    ]
    return source.choice([*kinds, {"type": ["integer", "null"]}, {"type": ["string", "boolean"]}])


def _object(source: random.Random, depth: int) -> Schema:
    names = source.sample(["id", "name", "Größe", "a b", 'q"', "nested", "list", "x/y", "~t"], source.randint(0, 5))
    schema: Schema = {"type": "object", "properties": {name: _value(source, depth) for name in names}}
    schema["required"] = [name for name in names if source.random() < 0.6]
    others = source.choice(["none", "none", "typed", "any", "pattern"])
    if others == "none":
        schema["additionalProperties"] = False
    elif others == "typed":
        schema["additionalProperties"] = _value(source, 0)
    elif others == "pattern":
        schema |= {"patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False}
    return schema


def _array(source: random.Random, depth: int) -> Schema:
    least = source.randint(0, 3)
    sizes = [
        {},
        {"minItems": least},
        {"minItems": least, "maxItems": least + source.randint(0, 3)},
        {"maxItems": least},
    ]
    return {"type": "array", "items": _value(source, depth), **source.choice(sizes)}


def _tuple(source: random.Random, depth: int) -> Schema:
    items = [_value(source, depth) for _ in range(source.randint(1, 3))]
    rest = source.choice([False, {"type": "null"}])
    return {"type": "array", "prefixItems": items, "items": rest, "minItems": source.randint(0, len(items))}


def _any_of(source: random.Random, depth: int) -> Schema:
    return {"anyOf": [_value(source, depth) for _ in range(source.randint(2, 3))]}


def _tagged(source: random.Random, depth: int) -> Schema:
    """`oneOf` with a tag that tells the branches apart."""
    branches = []
    for tag in ("circle", "square"):
        properties = {"kind": {"const": tag}, "size": _value(source, depth)}
        branches.append(
            {"type": "object", "properties": properties, "required": ["kind"], "additionalProperties": False}
        )
    return {"oneOf": branches}


def _all_of(source: random.Random, depth: int) -> Schema:
    first = {"properties": {"a": _value(source, depth)}, "required": ["a"]}
    return {"type": "object", "allOf": [first, {"properties": {"b": _value(source, 0)}, "required": ["b"]}]}


class RandomModel:
    """Random logits, with a liking for what closes a text; it knows the vocabulary only."""

    def __init__(self, compiler: GrammarCompiler, pieces: list[bytes], seed: int, liking: float = 8.0) -> None:
        self._pieces = pieces
        self._ends = compiler.end_tokens
        self._source = np.random.default_rng(seed)
        size = len(pieces)
        self._noise = self._source.gumbel(size=2 * size).astype(np.float32)  # argmax of it draws from a softmax
        closing = [token in self._ends or piece in LIKED for token, piece in enumerate(pieces)]
        self._bias = np.where(closing, np.float32(liking), np.float32(0))

    def logits(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Other ones each time: a window of the noise."""
        size = len(self._pieces)
        start = self._source.integers(size)
        return self._noise[start : start + size] + self._bias

    def write(self, constraint: Constraint, most_tokens: int = 2_000) -> tuple[bytes, bool]:
        """A text under the constraint, and whether it came to its end."""
        text = b""
        for _ in range(most_tokens):
            if constraint.finished:
                return text, True
            logits = self.logits()
            constraint.mask(logits)
            token = int(logits.argmax())
            constraint.accept(token)
            text += b"" if token in self._ends else self._pieces[token]
        return text, constraint.finished
