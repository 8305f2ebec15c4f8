from typing import Any

import pytest

from gladstone.chat.messages import Message
from gladstone.chat.template import ChatTemplate
from gladstone.chat.thinking import NO_THINK, ThinkingSwitch, find_thinking_switch
from tests.gladstone.chat_templates import CHATML, DEEPSEEK_R1, GEMMA, LLAMA_3, MISTRAL

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
EMPTY = "<think></think>"
BY_DEFAULT = f"{TURNS}{{% if enable_thinking is defined and enable_thinking is false %}}{EMPTY}{{% endif %}}"
ON_DEMAND = f"{{% set thinking = thinking | default(false) %}}{TURNS}{{% if thinking %}}Think first.{{% endif %}}"
NEGATED = f"{TURNS}{{% if disable_reasoning %}}{EMPTY}{{% endif %}}"
BUDGET = (
    "{% if thinking_budget is defined and thinking_budget == 0 %}Answer at once.{% elif thinking_budget is defined %}"
    f"Think for {{{{ thinking_budget }}}} tokens.{{% endif %}}{TURNS}"
)
LEVEL = f"{TURNS}{{% if reasoning_effort == 'none' %}}{EMPTY}{{% else %}}[{{{{ reasoning_effort }}}}]{{% endif %}}"
WORD = (
    "{% set thinks = true %}{% for m in messages %}{% if m.role == 'system' and '/no_think' in m.content %}"
    "{% set ns = 1 %}{% endif %}{% endfor %}"
    "{% if messages[0].role == 'system' and '/no_think' in messages[0].content %}"
    f"{EMPTY}{{% endif %}}{{% for m in messages %}}{{{{ m.content | replace('/no_think', '') }}}}{{% endfor %}}"
)
# the value is only written out, or is about earlier turns: neither turns thinking off
WRITTEN = f"Reasoning: {{{{ reasoning_effort | default('medium') }}}}{TURNS}"
EARLIER = (
    "{% for m in messages %}{% if m.role == 'assistant' and not keep_thinking %}x{% endif %}{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "off", "on"),
    [
        (BY_DEFAULT, {"enable_thinking": False}, {"enable_thinking": True}),
        (ON_DEMAND, {"thinking": False}, {"thinking": True}),
        (NEGATED, {"disable_reasoning": True}, {"disable_reasoning": False}),
        (BUDGET, {"thinking_budget": 0}, {"thinking_budget": 1024}),
        (LEVEL, {"reasoning_effort": "none"}, {"reasoning_effort": "high"}),
    ],
)
def test_a_switch_is_found_by_what_it_changes(source: str, off: dict[str, Any], on: dict[str, Any]) -> None:
    template = ChatTemplate(source)
    assert find_thinking_switch(template) == ThinkingSwitch(off, on)
    question = [Message("user", "Why?")]
    assert template.render_prompt(question, off) != template.render_prompt(question, on)


def test_a_word_in_the_system_prompt_is_a_switch_where_the_template_heeds_it() -> None:
    assert find_thinking_switch(ChatTemplate(WORD)) == ThinkingSwitch(word=NO_THINK)
    assert not find_thinking_switch(ChatTemplate(TURNS + "{# never reads /no_think #}"))


@pytest.mark.parametrize("source", [CHATML, GEMMA, MISTRAL, LLAMA_3, DEEPSEEK_R1, WRITTEN, EARLIER])
def test_a_template_without_a_switch_has_none(source: str) -> None:
    assert not find_thinking_switch(ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}))


@pytest.mark.parametrize(
    ("source", "shown", "reason"),
    [
        (CHATML, True, ""),
        (GEMMA, True, ""),
        ("{{ messages[-1].content }}", False, ""),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('No!') }}{% endif %}", False, "No!"),
        ("{{ raise_exception('Never!') }}", True, ""),
        ("{{ messages[0].content | upper }}", True, ""),
    ],
)
def test_what_becomes_of_a_system_prompt_is_found_by_rendering(source: str, shown: bool, reason: str) -> None:
    support = ChatTemplate(source, {"bos_token": "<s>"}).system_support()
    assert support.shown is shown
    assert reason in support.reason


PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}"
)
EITHER = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}parts{% endif %}{% endfor %}"


def test_a_template_that_takes_texts_in_parts_gets_them_so() -> None:
    turns = [Message("system", "S."), Message("user", "Why?"), Message("assistant", "So.")]
    assert ChatTemplate(PARTS).render(turns) == "<|system|>S.<|user|>Why?<|assistant|>So."
    assert ChatTemplate(EITHER).render(turns) == "S.Why?So."
    assert ChatTemplate(PARTS).shows_question()
    assert not ChatTemplate("{{ messages | length }}").shows_question()
