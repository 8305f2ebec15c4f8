"""Grammars in the engine: beside each other, after a thought, and wrong ones."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gladstone.chat.messages import Message
from gladstone.errors import ConfigError
from runtime.engine import Completion, Engine, EngineOptions, Request, Sampling
from runtime.grammars.grammar import Grammar

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip
COLOURS = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 3}


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Iterator[Engine]:
    with Engine(smollm, EngineOptions(context_tokens=512, slots=4, threads=1)) as engine:
        yield engine


def request(engine: Engine, question: str, grammar: Grammar, **options: Any) -> Request:
    sampling = Sampling(temperature=0.8, seed=1, max_tokens=120)
    return Request(engine.prompt_tokens([Message("user", question)]), sampling, grammar, **options)


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def test_answers_with_different_grammars_are_generated_together(engine: Engine) -> None:
    answers = [
        engine.submit(request(engine, "Invent a person.", schema(PERSON))),
        engine.submit(request(engine, "Name colours.", schema(COLOURS))),
        engine.submit(request(engine, "Is iron a metal?", Grammar("regex", r"(Yes|No), because [a-z ]{5,40}\."))),
        engine.submit(request(engine, "Count.", Grammar("gbnf", 'root ::= ("one" | "two") " " [0-9]{3}'))),
    ]
    person, colours, reason, counted = (answer.result() for answer in answers)
    jsonschema.validate(json.loads(person.text), PERSON)
    jsonschema.validate(json.loads(colours.text), COLOURS)
    assert re.fullmatch(r"(Yes|No), because [a-z ]{5,40}\.", reason.text)
    assert re.fullmatch(r"(one|two) \d{3}", counted.text)
    assert {each.stop_reason for each in (person, colours, reason, counted)} == {"end"}


def test_reasoning_is_free_and_the_answer_after_it_is_constrained(engine: Engine) -> None:
    tokens = engine.prompt_tokens([Message("user", "Invent a person.")])
    opened = [*tokens, *engine.model.tokenize("<think>\n")]
    wanted = Request(opened, Sampling(max_tokens=120), schema(PERSON), reasoning_tokens=8)
    completion = engine.submit(wanted).result()
    assert completion.reasoning
    with pytest.raises(json.JSONDecodeError):
        json.loads(completion.reasoning)
    jsonschema.validate(json.loads(completion.text), PERSON)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (("json_schema", "{"), "JSON"),
        (("json_schema", '{"$ref": "#"}'), "has no finite value"),
        (("regex", "(" * 60_000), "nest"),
        (("gbnf", 'root ::= root "a"'), "can never end"),
    ],
)
def test_a_wrong_grammar_is_an_error_at_once_and_the_engine_goes_on(
    engine: Engine, grammar: tuple[Any, str], message: str
) -> None:
    engine.submit(request(engine, "Say hi.", Grammar("regex", "hi"))).result()  # the vocabulary is read once
    begin_s = time.process_time()
    with pytest.raises(ConfigError, match=message):
        engine.submit(request(engine, "Say hi.", Grammar(*grammar)))
    assert time.process_time() - begin_s < 5
    done: Completion = engine.submit(request(engine, "Say hi.", Grammar("regex", "(hi|hello)!"))).result()
    assert done.text in ("hi!", "hello!")
