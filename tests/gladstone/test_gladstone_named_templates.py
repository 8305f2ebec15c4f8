import json
from pathlib import Path

import pytest

from gladstone.chat.guarded_template import GuardedTemplate
from gladstone.chat.messages import Message
from gladstone.chat.named_templates import MAX_TEMPLATE_BYTES, read_template, template_names
from gladstone.chat.template import ChatTemplate
from gladstone.chat.template_variables import find_variables
from gladstone.errors import ConfigError, DataError
from tests.gladstone.chat_templates import GEMMA, LLAMA_3

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TURNS = [Message("system", "S."), Message("user", "Q?"), Message("assistant", "A!"), Message("user", "R?")]


@pytest.mark.parametrize("name", sorted(set(template_names()) - {"flan-t5-medical"}))
def test_a_named_template_writes_every_turn_and_ends_where_the_answer_begins(name: str) -> None:
    template = ChatTemplate(read_template(name).source, SPECIAL)
    prompt = template.render(TURNS, add_generation_prompt=True)
    assert [prompt.index(turn.content) for turn in TURNS] == sorted(prompt.index(turn.content) for turn in TURNS)
    answer = template.segments([*TURNS, Message("assistant", "B!")])[-1]
    assert answer.scored
    assert answer.text.strip().startswith("B!")
    assert answer.text.strip() != "B!"  # and an end of the turn
    assert "S." not in template.render(TURNS[1:], add_generation_prompt=True)


def test_a_template_is_named_or_lies_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = "{{ messages[0].content }}"
    (tmp_path / "own.jinja").write_text(own)
    (tmp_path / "marked.jinja").write_bytes(b"\xef\xbb\xbf" + own.encode())
    (tmp_path / "wide.jinja").write_text(own, encoding="utf-16")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": own}))
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": own}]
    (tmp_path / "several.json").write_text(json.dumps({"chat_template": several}))
    for name in ("own.jinja", "marked.jinja", "wide.jinja", "tokenizer_config.json", "several.json"):
        assert read_template(name).source == own
    assert read_template("chatml").source == read_template("template:chatml").source
    (tmp_path / "chatml").write_text(own)
    assert read_template("chatml").source == own
    assert read_template("template:chatml").source != own


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("llama-3", "alpaca, chatml"),
        ("template:bogus", "'template:bogus'; there are: alpaca"),
        ("missing.jinja", r"missing\.jinja cannot be read: no such file"),
        ("some/where", "some/where cannot be read"),
        (".", "is not a file"),
        ("empty.jinja", "is empty"),
        ("binary.jinja", "byte 1 is not UTF-8"),
        ("huge.jinja", "too many for a chat template"),
        ("list.json", 'no template under "chat_template"'),
        ("broken.json", "is not JSON"),
    ],
)
def test_a_template_that_is_not_there_is_refused_with_what_there_is(
    chosen: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jinja").write_text("\n")
    (tmp_path / "binary.jinja").write_bytes(b"\xff\x00")
    (tmp_path / "huge.jinja").write_bytes(b" " * (MAX_TEMPLATE_BYTES + 1))
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=said):
        read_template(chosen)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{% set thinking = thinking if thinking is defined else true %}{{ thinking }}", ["thinking"]),
        ("{% if not date is defined %}{% set date = 1 %}{% endif %}{{ date }}", ["date"]),
        ("{% if a %}{% set b = 1 %}{% else %}{% set b = 2 %}{% endif %}{{ b }}", ["a"]),
        ("{% if a %}{% set b = 1 %}{% elif c %}{% set b = 2 %}{% endif %}{{ b }}", ["a", "b", "c"]),
        ("{% for m in messages if m.role == wanted %}{{ m }}{{ loop.index }}{% endfor %}{{ m }}", ["m", "wanted"]),
        ("{% macro f(x, y=z) %}{{ x }}{{ y }}{{ u }}{{ caller() }}{% endmacro %}{{ f(1) }}", ["u", "z"]),
        ("{% call(v) f(w) %}{{ v }}{% endcall %}", ["f", "w"]),
        ("{% set ns = namespace(on=false) %}{% set ns.on = thinking %}{{ ns.on }}", ["thinking"]),
        ("{% set x %}{{ inner }}{% endset %}{{ x }}", ["inner"]),
        ("{% with a=b %}{{ a }}{% endwith %}{{ a }}", ["a", "b"]),
        ("{{ range(2) }}{{ raise_exception('x') }}{{ strftime_now('%d') }}{{ tools }}{{ add_generation_prompt }}", []),
        (LLAMA_3, ["bos_token", "date_string"]),
        (GEMMA, ["bos_token"]),
        ("{{ broken ", []),
    ],
)
def test_the_names_that_a_template_reads_from_outside_are_known(source: str, names: list[str]) -> None:
    assert find_variables(source) == names


def test_an_argument_reaches_the_template_and_one_that_it_never_reads_is_refused() -> None:
    source = "{{ bos_token }}{{ enable_thinking is defined and enable_thinking is false }}{{ budget | default(7) }}"
    with GuardedTemplate(source, SPECIAL) as guarded:
        for template in (ChatTemplate(source, SPECIAL), guarded):
            assert template.render(TURNS) == "<s>False7"
            template.set_arguments({"enable_thinking": False, "budget": 3})
            assert template.render(TURNS) == "<s>True3"
            for name in ("enable_thinkin", "messages", "bos_token", "tools"):
                with pytest.raises(ConfigError, match=rf"never reads '{name}'.* reads: budget, enable_thinking\."):
                    template.set_arguments({name: 1})
            template.set_arguments({})
            assert template.render(TURNS) == "<s>False7"


def test_a_hostile_template_cannot_use_an_argument_to_get_out() -> None:
    with GuardedTemplate("{{ value.__class__.__mro__ }}") as template:
        template.set_arguments({"value": [1]})
        with pytest.raises(DataError, match="forbidden"):
            template.render(TURNS)
