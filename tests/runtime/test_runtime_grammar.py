"""Constrained decoding: what fits is reached, what does not is unreachable, and no grammar hurts the process."""

import codecs
import ctypes
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from datetime import time as clock
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from gladstone.errors import ConfigError, GladstoneError
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.library import library
from gladstone.llamacpp.model import Model
from runtime.grammars.grammar import Constraint, Grammar, GrammarCompiler
from tests.runtime.random_schemas import RandomModel, random_schema

JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC_GBNF = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
CHESS_GBNF = r"""
root    ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move    ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn    ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle  ::= "O-O" "-O"?
"""
LIST_GBNF = r"""
root ::= item+
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
MUNCH_GBNF = 'root ::= [a-z]+ "end" rest\nrest ::= "." | "(" rest ")" | "\\u00e9" [ぁ-ゟ]{2,3} .'

REGEXES = [
    "abc", "a|bc|def", "[a-f]{3}", "[0-9]{4}-[0-9]{2}-[0-9]{2}", "(yes|no)( maybe)?", "a*b+c?", "x{2,5}", r"\w+@\w+\.(com|org)",
    "[^a-z]{4}", "[^\\n]{0,9}\\n", r"\s\S\s", "(ab|cd)*ef", ".{5}", "(?i)hello", "(?s).{3}", "é+ü?", "[À-ÿ]{2}", "日本(語)?",
    r"\.\*\+\?\(\)\[\]\{\}\\\|\^\$", "[.*+?{}()|^$]", r"[\]\-\\]{2}", "a/b", '"[^"]*"', "(a(b(c(d)?)?)?)?", "",
    r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?", "(?:ab){3}", "[a-z]{1,9}x", "a.{0,9}z", "^start.?end$", "(?P<year>[12][0-9]{3})", "🙂{1,2}",
    r"\u0041\x42", r"(?x: a b  c)", "[[:digit:]]+", "[0-9]+(,[0-9]{3})*", "a{0}b", "(|a)b", "[a-c&&[^b]]+",
]  # fmt: skip
RUST_ONLY = {"[[:digit:]]+": "[0-9]+", "[a-c&&[^b]]+": "[ac]+", r"(?x: a b  c)": "abc"}


def references(count: int, inner: dict[str, Any]) -> str:
    """Definitions that refer to the next one, through `inner` with its `$ref` at the place of NEXT."""
    text = json.dumps(inner)
    definitions = {f"d{i}": json.loads(text.replace("NEXT", f"#/$defs/d{i + 1}")) for i in range(count)}
    return json.dumps({"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "null"}}})


def many(count: int, **schema: Any) -> str:
    return json.dumps({"type": "object", "properties": {f"p{i}": schema for i in range(count)}})


MONSTERS: dict[str, tuple[str, str]] = {
    "60,000 nested groups": ("regex", "(" * 60_000 + "a" + ")" * 60_000),
    "20,000 nested groups": ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "300 nested groups": ("regex", "(" * 300 + "a" + ")" * 300),
    "60,000 optional letters": ("regex", "a?" * 60_000),  # 12 GB and an abort, unchecked
    "30,000 stars": ("regex", "[^a]*" * 10_000),  # minutes, unchecked
    "60,000 stars on one letter": ("regex", "a" + "*" * 60_000),
    "a million of a million": ("regex", "((a{1000}){1000}){1000}"),
    "a count of twenty digits": ("regex", "a{99999999999999999999}"),
    "a count backwards": ("regex", "a{5,2}"),
    "look-ahead": ("regex", "a(?=b)b"),
    "look-behind": ("regex", "(?<!a)b"),
    "back-reference": ("regex", r"(a)\1"),
    "word boundary": ("regex", r"\bword\b"),
    "a lone backslash": ("regex", "abc\\"),
    "an unclosed group": ("regex", "(abc"),
    "an unclosed class": ("regex", "[abc"),
    "a class of nothing": ("regex", r"[^\s\S]"),
    "half a surrogate pair": ("regex", "a\ud800"),
    "a regex of a megabyte": ("regex", "a" * 1_000_000),
    "no JSON": ("json_schema", '{"type": '),
    "NaN": ("json_schema", '{"const": NaN}'),
    "an empty schema text": ("json_schema", "  "),
    "a number as schema": ("json_schema", "17"),
    "the schema false": ("json_schema", "false"),
    "an escaped half surrogate": ("json_schema", '{"const": "\\ud800"}'),
    "60,000 nested arrays": ("json_schema", "[" * 60_000),
    "100 nested items": ("json_schema", '{"type":"array","items":' * 100 + "{}" + "}" * 100),
    "a reference to itself": ("json_schema", '{"$ref": "#"}'),
    "references in a ring": ("json_schema", '{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}'),
    "no base case": ("json_schema", '{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}'),
    "no base case, optional": ("json_schema", json.dumps({"type": "object", "properties": {"x": {"$ref": "#/$defs/e"}}, "$defs": {"e": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/e"}}}})),
    "3,000 references in a chain": ("json_schema", references(3_000, {"$ref": "NEXT"})),  # SIGSEGV, unchecked
    "900 deep references": ("json_schema", references(900, {"type": "array", "items": {"anyOf": [{"$ref": "NEXT"}]}})),
    "a reference to nowhere": ("json_schema", '{"$ref": "#/$defs/nope"}'),
    "a reference to the network": ("json_schema", '{"$ref": "https://example.com/schema.json"}'),
    "a reference to a file": ("json_schema", '{"$ref": "file:///etc/passwd"}'),
    "allOf of anyOf": ("json_schema", json.dumps({"allOf": [{"anyOf": [{"type": "object", "properties": {f"a{i}_{j}": {"type": "integer"}}} for j in range(10)]} for i in range(20)]})),
    "an enum of 100,000": ("json_schema", json.dumps({"enum": [f"value {i}" for i in range(100_000)]})),
    "5,000 properties": ("json_schema", many(5_000, type="null")),
    "1,500 properties": ("json_schema", many(1_500, type="null")),
    "1,000 branches": ("json_schema", json.dumps({"anyOf": [{"const": i} for i in range(1_000)]})),
    "100 patternProperties": ("json_schema", json.dumps({"type": "object", "patternProperties": {f"^k{i}": {} for i in range(100)}})),
    "patternProperties that overlap": ("json_schema", json.dumps({"type": "object", "patternProperties": {"^a": {"type": "null"}, "b$": {"type": "string"}}})),
    "minimum above maximum": ("json_schema", '{"type":"integer","minimum":5,"maximum":3}'),
    "a shortest above the longest": ("json_schema", '{"type":"string","minLength":5,"maxLength":3}'),
    "a required false": ("json_schema", '{"type":"object","properties":{"a":false},"required":["a"]}'),
    "keys that could repeat": ("json_schema", '{"type":"object","minProperties":3}'),
    "an unknown format": ("json_schema", '{"type":"string","format":"iban"}'),
    "an unknown type": ("json_schema", '{"type":"strng"}'),
    "a misspelt keyword": ("json_schema", '{"type":"string","minLenght":3}'),
    "uniqueItems": ("json_schema", '{"type":"array","uniqueItems":true}'),
    "not": ("json_schema", '{"not":{"type":"string"}}'),
    "if": ("json_schema", '{"if":{"type":"string"},"then":{"minLength":3}}'),
    "oneOf that overlaps": ("json_schema", '{"oneOf":[{"type":"string"},{"type":"string","maxLength":3}]}'),
    "options of the library": ("json_schema", '{"x-guidance":{"lenient":true},"not":{}}'),
    "a bad pattern": ("json_schema", '{"type":"string","pattern":"("}'),
    "a pattern with look-ahead": ("json_schema", '{"type":"string","pattern":"^(?!x)"}'),
    "a huge multipleOf": ("json_schema", '{"type":"integer","multipleOf":1234567891}'),
    "a negative length": ("json_schema", '{"type":"string","minLength":-1}'),
    "text for json_object": ("json_object", "{}"),
    "60,000 GBNF groups": ("gbnf", "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000),
    "30,000 GBNF groups": ("gbnf", "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "60,000 GBNF stars": ("gbnf", 'root ::= "a"' + "*" * 60_000),
    "5,000 GBNF stars in a row": ("gbnf", "root ::= " + "[a-z]* " * 5_000),
    "a chain of 3,000 rules": ("gbnf", "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(3_000)) + 'r3000 ::= "a"'),
    "no root": ("gbnf", 'a ::= "x"'),
    "an undefined rule": ("gbnf", "root ::= a"),
    "a rule defined twice": ("gbnf", 'root ::= "a"\nroot ::= "b"'),
    "a rule that is itself": ("gbnf", "root ::= root"),
    "an endless rule": ("gbnf", 'root ::= "a" b\nb ::= "b" root'),
    "an unclosed literal": ("gbnf", 'root ::= "abc'),
    "an unclosed GBNF group": ("gbnf", 'root ::= ("a"'),
    "an unknown escape": ("gbnf", 'root ::= "\\q"'),
    "an escape beyond Unicode": ("gbnf", 'root ::= "\\U00110000"'),
    "a million repetitions": ("gbnf", 'root ::= "a"{1000000}'),
    "a token by name": ("gbnf", "root ::= <|im_end|>"),
    "a class of no character": ("gbnf", "root ::= [^\\x00-\\U0010FFFF]"),
    "an unknown kind": ("xml", "<a/>"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(embedded_gguf: Path) -> Iterator[Model]:
    with Model(embedded_gguf) as model:
        yield model


@pytest.fixture(scope="module")
def compiler(model: Model) -> GrammarCompiler:
    return GrammarCompiler(model)


@pytest.fixture(scope="module")
def pieces(model: Model) -> list[bytes]:
    return [model.piece(token) for token in range(model.vocab_size)]


@pytest.fixture(scope="module")
def schema_checks() -> FormatChecker:
    """jsonschema's own, and the formats for which it would want further packages."""
    checker = FormatChecker()
    checker.checks("date-time", ValueError)(lambda text: bool(datetime.fromisoformat(text.upper())))
    checker.checks("time", ValueError)(lambda text: bool(clock.fromisoformat(text.upper())) or True)
    checker.checks("hostname")(lambda text: len(text) < 254 and all(0 < len(part) < 64 for part in text.split(".")))
    checker.checks("uri", ValueError)(lambda text: bool(urlsplit(text).scheme))
    checker.checks("duration")(lambda text: bool(re.fullmatch(r"P(?=.)(\d+[YMWD])*(T(\d+[HMS])+)?", text)))
    return checker


def compiled(compiler: GrammarCompiler, kind: Any, source: str) -> Constraint:
    return compiler.compile(Grammar(kind, source))


def fits(model: Model, constraint: Constraint, text: str) -> bool:
    """Whether the whole text, as the model's tokenizer writes it, passes and may end there."""
    constraint = constraint.copy()
    for token in model.tokenize(text):
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return constraint.may_end


def check_schemas(model_of: tuple[GrammarCompiler, list[bytes]], checker: FormatChecker, seeds: range) -> list[int]:
    """Seeds whose text was cut at the most tokens; all other texts are valid."""
    compiler, pieces = model_of
    cut = []
    for seed in seeds:
        schema = random_schema(seed)
        Draft202012Validator.check_schema(schema)
        text, finished = RandomModel(compiler, pieces, seed).write(
            compiled(compiler, "json_schema", json.dumps(schema))
        )
        if finished:
            value = json.loads(text.decode("utf-8"))
            errors = list(Draft202012Validator(schema, format_checker=checker).iter_errors(value))
            assert not errors, (seed, schema, text, errors[0].message)
        else:
            cut.append(seed)
    return cut


def test_every_output_of_200_random_schemas_validates(
    compiler: GrammarCompiler, pieces: list[bytes], schema_checks: FormatChecker
) -> None:
    assert check_schemas((compiler, pieces), schema_checks, range(200)) == []


@pytest.mark.long
def test_every_output_of_3000_more_random_schemas_validates(
    compiler: GrammarCompiler, pieces: list[bytes], schema_checks: FormatChecker
) -> None:
    cut = check_schemas((compiler, pieces), schema_checks, range(1_000, 4_000))
    assert len(cut) <= 3, cut  # a text of 2,000 tokens without an end, by chance


@pytest.mark.parametrize(
    "name", ["date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration"]
)
def test_every_format_gives_texts_that_its_checker_takes(
    compiler: GrammarCompiler, pieces: list[bytes], schema_checks: FormatChecker, name: str
) -> None:
    schema = {"type": "string", "format": name}
    constraint = compiled(compiler, "json_schema", json.dumps(schema))
    model = RandomModel(compiler, pieces, 5, liking=6)
    for _ in range(40):
        text, finished = model.write(constraint.copy())
        assert finished
        schema_checks.check(json.loads(text), name)


def test_leap_days_exist_in_leap_years_only(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "json_schema", '{"type":"string","format":"date"}')
    for year in range(1, 2_500, 7):
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        assert fits(model, constraint, f'"{year:04}-02-29"') == leap
        assert fits(model, constraint, f'"{year:04}-02-28"')
    assert not fits(model, constraint, '"0000-01-01"')


@pytest.mark.parametrize("pattern", REGEXES)
def test_every_text_of_a_regex_matches_it_whole(compiler: GrammarCompiler, pieces: list[bytes], pattern: str) -> None:
    constraint = compiled(compiler, "regex", pattern)
    python = re.compile(RUST_ONLY.get(pattern, pattern))
    model = RandomModel(compiler, pieces, 1, liking=7)
    for _ in range(8):
        text, finished = model.write(constraint.copy(), 400)
        assert finished, text[:100]
        assert python.fullmatch(text.decode("utf-8")), text


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab01-.", max_size=8))
def test_a_regex_allows_exactly_what_python_matches(model: Model, compiler: GrammarCompiler, text: str) -> None:
    pattern = r"(a|b0)*-?[01]{1,3}(\.[ab]+)?"
    assert fits(model, compiled(compiler, "regex", pattern), text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize("monster", MONSTERS)
def test_a_monstrous_grammar_is_one_line_of_error_at_once(compiler: GrammarCompiler, monster: str) -> None:
    kind, source = MONSTERS[monster]
    start = time.process_time()  # not the wall: other work on the machine is not the grammar's
    with pytest.raises(ConfigError) as caught:
        compiled(compiler, kind, source)
    assert time.process_time() - start < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


LARGE = {
    "exponential": ("regex", "(a|b)*a(a|b){60}"),
    "word counts": ("regex", r"(\w{1,500} ){1,500}"),
    "nested counts": ("regex", "(((((a{1,100}){1,100}){1,100}){1,100}){1,100})"),
    "stars in stars": ("regex", "((a*)*)*b"),
    "500 optional words": ("regex", r"\w*" * 500),
    "billion laughs": ("json_schema", json.dumps({"$ref": "#/$defs/d29", "$defs": {"d0": {"type": "string"}, **{f"d{i}": {"type": "object", "properties": {f"p{j}": {"$ref": f"#/$defs/d{i - 1}"} for j in range(10)}} for i in range(1, 30)}}})),
    "1,000 optional properties": ("json_schema", many(1_000, type="string", maxLength=100)),
    "10^18 items": ("json_schema", '{"type":"array","items":{"type":"integer"},"minItems":1000000000000000000}'),
    "a long string": ("json_schema", '{"type":"string","minLength":100000,"maxLength":1000000000}'),
    "anything": ("json_schema", "{}"),
    "an ambiguous grammar": ("gbnf", 'root ::= s\ns ::= s s s | s s | "a" |'),
    "thousands of thousands": ("gbnf", 'root ::= ((("a"{1000}){1000}){1000}){1000}'),
    "many stars": ("gbnf", "root ::= " + "[a-z]* " * 400),
    "990 rules in a chain": ("gbnf", "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} | [b] r{i + 1}\n" for i in range(990)) + 'r990 ::= "a" root?'),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_a_large_grammar_costs_bounded_time_for_each_token_or_is_an_error(
    compiler: GrammarCompiler, pieces: list[bytes], name: str
) -> None:
    model = RandomModel(compiler, pieces, 2, liking=-30)  # as long as it can
    slowest = 0.0
    try:
        start = time.process_time()
        constraint = compiled(compiler, *LARGE[name])
        slowest = time.process_time() - start
        for _ in range(60):
            start = time.process_time()
            if constraint.finished:
                break
            logits = model.logits()
            constraint.mask(logits)
            constraint.forced()
            constraint.accept(int(logits.argmax()))
            slowest = max(slowest, time.process_time() - start)
    except GladstoneError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ends are right; what must not be is a crash or a hang
    assert slowest < 5


@pytest.mark.parametrize("grammar", [JSON_GBNF, ARITHMETIC_GBNF, CHESS_GBNF, LIST_GBNF, MUNCH_GBNF])
def test_gbnf_allows_the_tokens_that_llama_cpp_allows(
    model: Model, compiler: GrammarCompiler, pieces: list[bytes], grammar: str
) -> None:
    """At each of up to 25 tokens of a random text, the whole vocabulary, but for tokens without text.

    Of tokens that end inside a character, llama.cpp refuses some that could still become an allowed one: the code points
    that they may become are a range there, refused where a negated class excludes a part of it.
    """
    constraint = compiled(compiler, "gbnf", grammar)
    source = np.random.default_rng(3)
    with_text = np.array([piece[:1] not in (b"", b"\0") for piece in pieces])  # llama.cpp refuses both
    reference = LlamaGrammar(model, grammar)
    text = b""
    for _ in range(25):
        allowed, expected = constraint.allowed(), reference.allowed()
        for other in np.flatnonzero((allowed != expected) & with_text):
            assert allowed[other], (text, pieces[other])
            assert is_cut_off(text + pieces[other]), (text, pieces[other])
        assert constraint.may_end == expected[model.eos]
        choices = np.flatnonzero(allowed & with_text)
        if not len(choices):
            break
        token = int(source.choice(choices))
        constraint.accept(token)
        reference.accept(token)
        text += pieces[token]


def is_cut_off(text: bytes) -> bool:
    """Whether the text ends inside a character."""
    return bool(codecs.getincrementaldecoder("utf-8")().decode(text) != text.decode("utf-8", "replace"))


class LlamaGrammar:
    """llama.cpp's own reading of a grammar, as a reference."""

    def __init__(self, model: Model, grammar: str) -> None:
        self._lib = library()
        self._size = model.vocab_size
        vocab = self._lib.llama_model_get_vocab(model.handle)
        self._sampler = self._lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
        assert self._sampler

    def allowed(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(V,) as the sampler leaves logits of 0."""
        data = (self._lib.llama_token_data * self._size)()
        view = np.ctypeslib.as_array(data)
        view["id"] = np.arange(self._size)
        array = self._lib.llama_token_data_array(data, self._size, -1, False)
        self._lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return np.asarray(np.isfinite(view["logit"]))

    def accept(self, token: int) -> None:
        self._lib.llama_sampler_accept(self._sampler, token)

    def __del__(self) -> None:
        self._lib.llama_sampler_free(self._sampler)


def test_texts_of_llama_cpps_json_grammar_are_json(compiler: GrammarCompiler, pieces: list[bytes]) -> None:
    constraint = compiled(compiler, "gbnf", JSON_GBNF)
    model = RandomModel(compiler, pieces, 7)
    for _ in range(20):
        text, finished = model.write(constraint.copy())
        assert finished
        assert isinstance(json.loads(text), dict)


def test_gbnf_may_be_left_recursive(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "gbnf", 'root ::= root "+" term | term\nterm ::= [0-9]+ | "(" root ")"')
    assert fits(model, constraint, "1+(22+3)+4")
    assert not fits(model, constraint, "1+(22+3")


def test_json_object_is_any_object_and_nothing_else(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "json_object", "")
    assert fits(model, constraint, '{"a": [1, {"b": null}], "c": "\\n"}')
    assert not fits(model, constraint, "[1]")
    assert not fits(model, constraint, '{"a": 1} ')


def test_greedy_answers_of_the_embedded_model_fit_their_schema(model: Model, compiler: GrammarCompiler) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "founded": {"type": "integer", "minimum": 1000, "maximum": 2020}},
        "required": ["city", "founded"],
        "additionalProperties": False,
    }  # fmt: skip
    constraint = compiled(compiler, "json_schema", json.dumps(schema))
    text = answer(model, constraint, "The largest city of France, as JSON:", temperature=0)
    Draft202012Validator(schema).validate(json.loads(text))


def test_sampled_answers_of_the_embedded_model_fit_their_regex(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "regex", r"(It|The) [a-z ]{5,40}\.")
    texts = {answer(model, constraint.copy(), "What is the sun?", temperature=1.0, seed=seed) for seed in range(3)}
    assert all(re.fullmatch(r"(It|The) [a-z ]{5,40}\.", text) for text in texts)
    assert len(texts) > 1


def answer(model: Model, constraint: Constraint, prompt: str, *, temperature: float, seed: int = 0) -> str:
    """The text of a plain loop: decode, mask, choose, accept."""
    source = np.random.default_rng(seed)
    text = b""
    with Context(model, 256, threads=1) as context:
        tokens, position = model.tokenize(prompt), 0
        while not constraint.finished:
            context.decode(tokens, position)
            position += len(tokens)
            logits = context.logits()
            constraint.mask(logits)
            noise = source.gumbel(size=len(logits)) * temperature  # the largest sum is a draw from the softmax
            tokens = [int((logits + noise).argmax())]
            constraint.accept(tokens[0])
            text += model.piece(tokens[0])
    return text.decode("utf-8")


def test_control_tokens_are_never_allowed_but_where_the_text_may_end(model: Model, compiler: GrammarCompiler) -> None:
    control = [token for token in range(model.vocab_size) if model.is_control(token) or not model.piece(token)]
    constraint = compiled(compiler, "regex", "(?s).{2,}")
    assert not constraint.allowed()[control].any()
    for token in model.tokenize("free text"):
        constraint.accept(token)
    allowed = constraint.allowed()
    assert {token for token in control if allowed[token]} == set(compiler.end_tokens)


def test_the_text_of_a_control_token_is_text(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "regex", r"<\|im_end\|>")
    assert not constraint.allows(model.eos)
    assert fits(model, constraint, "<|im_end|>")


def test_a_forbidden_token_is_refused_and_changes_nothing(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "regex", "abc+")
    wrong, right = model.tokenize("xyz")[0], model.tokenize("abc")[0]
    for token in (wrong, model.eos, -1, model.vocab_size):
        with pytest.raises(ValueError, match="not allowed"):
            constraint.accept(token)
    assert constraint.allows(right)
    constraint.accept(right)
    assert constraint.may_end
    assert not constraint.finished
    constraint.accept(model.eos)
    assert constraint.finished
    assert set(np.flatnonzero(constraint.allowed())) == set(compiler.end_tokens)


def test_the_mask_touches_forbidden_logits_only(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "regex", "[0-9]{3}")
    logits = np.random.default_rng(0).normal(size=model.vocab_size).astype(np.float32)
    before = logits.copy()
    constraint.mask(logits)
    allowed = constraint.allowed()
    assert allowed.any()
    assert (logits[allowed] == before[allowed]).all()
    assert np.isneginf(logits[~allowed]).all()
    assert all(constraint.allows(token) == allowed[token] for token in range(0, model.vocab_size, 97))
    with pytest.raises(ValueError, match="shape"):
        constraint.mask(logits[:-1])


def test_forced_tokens_are_what_the_tokenizer_would_write(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "regex", "The capital of France is (Paris|Lyon)!")
    forced = constraint.forced()
    assert b"".join(map(model.piece, forced)).startswith(b"The capital of France")
    assert forced == model.tokenize("The capital of France is")[: len(forced)]
    for token in forced:
        constraint.accept(token)


def test_a_text_that_the_vocabulary_cannot_write_is_an_error(compiler: GrammarCompiler) -> None:
    with pytest.raises(ConfigError, match="cannot continue to match the grammar"):
        compiled(compiler, "regex", r"\x04abc")  # no token of the embedded model has this byte


def test_a_copy_goes_its_own_way(model: Model, compiler: GrammarCompiler) -> None:
    first = compiled(compiler, "regex", "a(b|c)")
    first.accept(model.tokenize("a")[0])
    second = first.copy()
    first.accept(model.tokenize("b")[0])
    assert first.finished
    assert not second.finished
    second.accept(model.tokenize("c")[0])
    assert second.finished


def test_an_error_names_its_position_in_the_schema(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(ConfigError, match=r"`uniqueItems` at #/properties/tags"):
        compiled(compiler, "json_schema", json.dumps(schema))
    with pytest.raises(ConfigError, match=r"line 2, before '\) \[b\]'"):
        compiled(compiler, "gbnf", "root ::= a\na ::= ) [b]")


def test_values_that_look_like_schemas_are_left_alone(model: Model, compiler: GrammarCompiler) -> None:
    constraint = compiled(compiler, "json_schema", '{"const": {"format": "date", "nonsense": {"$ref": "nowhere"}}}')
    assert fits(model, constraint, '{"format":"date","nonsense":{"$ref":"nowhere"}}')
