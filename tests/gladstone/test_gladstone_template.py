from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gladstone.chat.messages import Message
from gladstone.chat.template import ChatTemplate, Segment, template_sha256
from gladstone.errors import DataError
from gladstone.gguf.header import read_header
from tests.gladstone.chat_templates import (
    CHATML,
    DEEPSEEK_R1,
    DROPS_EARLIER_REASONING,
    END_OF_ALL,
    REASONING_FIELD,
    TEMPLATES,
)

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SYSTEM = Message("system", "Be brief.")
ONE = (Message("user", 'Is "5 < 6" & ünïcode 😀 fine?\n'), Message("assistant", "Yes: <b>5</b> < 6."))
TWO = (*ONE, Message("user", "Sure?"), Message("assistant", "Quite sure."))


@pytest.fixture(scope="module")
def embedded_template(embedded_gguf: Path) -> str:
    source = read_header(embedded_gguf).metadata["tokenizer.chat_template"]
    assert isinstance(source, str)
    return source


@pytest.fixture(scope="module")
def peer() -> Any:
    """A tokenizer of transformers, for its chat templates."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)


def as_dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("messages", [ONE, (SYSTEM, *ONE), TWO, (SYSTEM, *TWO), ONE[:1]])
@pytest.mark.parametrize("name", [*TEMPLATES, "embedded"])
def test_rendering_equals_that_of_transformers(
    name: str, messages: tuple[Message, ...], prompt: bool, peer: Any, embedded_template: str
) -> None:
    source = TEMPLATES.get(name, embedded_template)
    expected = peer.apply_chat_template(
        as_dicts(messages), chat_template=source, tokenize=False, add_generation_prompt=prompt
    )
    assert ChatTemplate(source, SPECIAL).render(messages, add_generation_prompt=prompt) == expected
    assert expected


def test_a_reasoning_field_reaches_the_template_as_in_transformers(peer: Any) -> None:
    reasoned = (*TWO[:-1], Message("assistant", "Quite.", "Think: 5 < 6."))
    turns = as_dicts(reasoned)
    turns[-1]["reasoning_content"] = "Think: 5 < 6."
    expected = peer.apply_chat_template(turns, chat_template=REASONING_FIELD, tokenize=False)
    assert ChatTemplate(REASONING_FIELD, SPECIAL).render(reasoned) == expected
    assert "<think>\nThink: 5 < 6.\n</think>\n\nQuite." in expected


def test_reasoning_stands_before_the_answer_where_the_template_has_no_field_for_it() -> None:
    text = ChatTemplate(CHATML).render((ONE[0], Message("assistant", "Yes.", "Because.")))
    assert text.endswith("<|im_start|>assistant\n<think>\nBecause.\n</think>\n\nYes.<|im_end|>\n")


PAYLOADS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ self.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__func__ }}",
    "{{ messages.append(1) }}",
    "{{ messages.pop() }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update(content='x') }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{% set x = [] %}{{ x.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'base' %}",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_template_that_reaches_out_of_its_sandbox_is_refused(payload: str) -> None:
    with pytest.raises(DataError, match="the chat template"):
        ChatTemplate(payload).render(ONE)


@pytest.mark.parametrize(
    "payload",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages|map(attribute='__class__')|list }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ (messages|map('upper')).gi_frame }}",
    ],
)
def test_a_template_that_names_what_is_hidden_gets_nothing(payload: str) -> None:
    assert ChatTemplate(payload).render(ONE) in ("", "[Undefined, Undefined]")


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(10000000) }}",
        "{{ 9**9**9 }}",
        "{{ 'x' * 1000000000000000 }}",
        "{{ 'x'.ljust(1000000000000000) }}",
        "{{ '%1000000000000000d' % 1 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
        "{% for a in messages %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "9" * 5000 + " }}",
        "{% for number in [1e999] %}{{ number }}{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ 5|dictsort }}",
        "{{ messages[0].content.nothing.there }}",
        "{{ messages|sort }}",
        "{{ cycler() }}",
        "{{ strftime_now('\\ud800') }}",
        "{{ unknown_function() }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_cannot_be_rendered_is_a_message_and_no_crash(source: str) -> None:
    with pytest.raises(DataError, match="the chat template"):
        ChatTemplate(source).render(ONE)


def test_powers_are_not_computed_while_compiling() -> None:
    assert ChatTemplate("{% if messages is string %}{{ 9**9**9 }}{% endif %}").render(ONE) == ""


def test_rendering_leaves_the_turns_as_they_are() -> None:
    messages = list(ONE)
    ChatTemplate("{% set x = dict.clear(messages[0]) %}{{ messages|length }}").render(messages)
    assert tuple(messages) == ONE


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if x %}\nb", r"Unexpected end of template.* \(line 3\)\.$"),
        ("a\nb\n{{ 1 + }}", r"\(line 3\)\.$"),
        ("{{ x|no_such_filter }}", r"No filter named 'no_such_filter'\. \(line 1\)\.$"),
        ("\n\n{% generation %}", r"\(line 3\)\.$"),
    ],
)
def test_a_template_that_does_not_compile_is_refused_with_the_line(source: str, message: str) -> None:
    with pytest.raises(DataError, match="the chat template does not compile: .*" + message):
        ChatTemplate(source)


def test_what_a_template_raises_reaches_the_user() -> None:
    with pytest.raises(DataError, match=r"cannot render these turns: Conversation roles must alternate"):
        ChatTemplate(TEMPLATES["gemma"], SPECIAL).render(ONE[1:])


SCORED = {
    "embedded": "{}<|im_end|>\n",
    "chatml": "{}<|im_end|>\n",
    "llama-3": "{}<|eot_id|>",
    "mistral": " {}</s>",
    "zephyr": "{}</s>\n",
    "drops-earlier-reasoning": "{}<｜end▁of▁sentence｜>",
    "gemma": "{}<end_of_turn>\n",
    "reasoning-field": "{}<|im_end|>\n",
    "generation": "{}<|done|><|im_end|>\n",
}


@pytest.mark.parametrize("messages", [ONE, (SYSTEM, *ONE), TWO, (SYSTEM, *TWO)])
@pytest.mark.parametrize("name", SCORED)
def test_exactly_the_answers_with_their_end_are_scored(
    name: str, messages: tuple[Message, ...], embedded_template: str
) -> None:
    template = ChatTemplate(TEMPLATES.get(name, embedded_template), SPECIAL)
    segments = template.segments(messages)
    assert "".join(segment.text for segment in segments) == template.render(messages)
    answers = [message.content for message in messages if message.role == "assistant"]
    assert [segment.text for segment in segments if segment.scored] == [SCORED[name].format(text) for text in answers]


@pytest.mark.parametrize("source", [DROPS_EARLIER_REASONING, REASONING_FIELD])
def test_where_earlier_reasoning_is_dropped_only_the_last_answer_is_scored_with_its_own(source: str) -> None:
    messages = (ONE[0], Message("assistant", "Yes.", "First."), ONE[0], Message("assistant", "Again.", "Second."))
    template = ChatTemplate(source, SPECIAL)
    prompt, answer = template.segments(messages)
    end = "<｜end▁of▁sentence｜>" if source == DROPS_EARLIER_REASONING else "<|im_end|>\n"
    assert answer == Segment(f"<think>\nSecond.\n</think>\n\nAgain.{end}", scored=True)
    assert not prompt.scored
    assert "First." not in prompt.text
    assert prompt.text + answer.text == template.render(messages)


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"every-function"}))
@pytest.mark.parametrize("thoughts", [("First.", "Second."), (None, "Second."), ("First.", None), (None, None)])
def test_each_answer_is_scored_once_behind_the_prompt_of_its_turn(
    name: str, thoughts: tuple[str | None, str | None]
) -> None:
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    messages = (ONE[0], Message("assistant", "Yes.", thoughts[0]), ONE[0], Message("assistant", "Again.", thoughts[1]))
    found = []
    for example in template.examples(messages):
        text = ""
        for segment in example:
            found += [(text, segment.text)] if segment.scored else []
            text += segment.text
    assert [prompt for prompt, _ in found] == [
        template.render(messages[:place], add_generation_prompt=True) for place in (1, 3)
    ]
    for (_, answer), content, thought in zip(found, ("Yes.", "Again."), thoughts, strict=True):
        assert content in answer
        assert (thought or "") in answer
        assert not answer.rstrip().endswith(content)


def test_turns_that_are_not_wanted_are_read_and_not_scored() -> None:
    (example,) = ChatTemplate(CHATML).examples(TWO, scored={3})
    assert [segment.scored for segment in example] == [False, True]
    assert ONE[1].content in example[0].text
    (first,) = ChatTemplate(CHATML).examples(TWO, scored={1})
    assert "Sure?" not in "".join(segment.text for segment in first)
    assert ChatTemplate(CHATML).examples(TWO, scored=()) == []


def test_an_end_of_all_text_behind_the_last_answer_alone_does_not_part_the_others() -> None:
    (example,) = ChatTemplate(END_OF_ALL, SPECIAL).examples(TWO)
    answers = [segment.text for segment in example if segment.scored]
    assert answers == [f"{ONE[1].content}<|end|>", f"{TWO[3].content}<|end|></s>"]


def test_an_earlier_answer_that_is_kept_whole_is_scored_beside_the_last() -> None:
    messages = (*ONE, ONE[0], Message("assistant", "Again.", "Second."))
    segments = ChatTemplate(DROPS_EARLIER_REASONING, SPECIAL).segments(messages)
    assert [segment.scored for segment in segments] == [False, True, False, True]


@pytest.mark.parametrize(
    ("reasoning", "written"),
    [(None, "\n</think>\n\nYes."), ("Because.", "Because.\n</think>\n\nYes.")],
)
def test_where_the_prompt_opens_the_thought_the_answer_is_what_the_model_has_to_write(
    reasoning: str | None, written: str
) -> None:
    earlier = (ONE[0], Message("assistant", "First.", "Earlier."))
    template = ChatTemplate(DEEPSEEK_R1, SPECIAL)
    messages = (*earlier, ONE[0], Message("assistant", "Yes.", reasoning))
    prompt, answer = template.segments(messages)
    assert prompt == Segment(template.render(messages[:-1], add_generation_prompt=True), scored=False)
    assert answer == Segment(f"{written}<｜end▁of▁sentence｜>", scored=True)
    assert "Earlier." not in prompt.text


def test_reasoning_that_a_template_loses_is_scored_all_the_same() -> None:
    source = CHATML.replace("message['content']", "message['content'].split('</think>')[-1].strip()")
    answer = ChatTemplate(source).segments((ONE[0], Message("assistant", "Yes.", "Because.")))[-1]
    assert answer.text == "<think>\nBecause.\n</think>\n\nYes.<|im_end|>\n"


@pytest.mark.parametrize("reasoning", [None, "Because."])
@pytest.mark.parametrize("opening", ["Sure: ", "<think>\nI was told to think. "])
def test_a_template_whose_prompt_its_own_text_does_not_continue_is_refused(reasoning: str | None, opening: str) -> None:
    source = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n" + opening + "' }}")
    assert source != CHATML
    with pytest.raises(DataError, match="does not continue its own generation prompt"):
        ChatTemplate(source).segments((ONE[0], Message("assistant", "Yes.", reasoning)))


@pytest.mark.parametrize("messages", [(), ONE[:1], TWO[:3]])
def test_turns_that_end_without_an_answer_have_nothing_to_score(messages: tuple[Message, ...]) -> None:
    with pytest.raises(DataError, match="the last turn must be the assistant's"):
        ChatTemplate(CHATML).segments(messages)


texts = st.text(min_size=1) | st.sampled_from(["<|im_start|>assistant\n", "<|im_end|>\n", "</think>", "<think>\n"])
pairs = st.lists(
    st.tuples(
        st.builds(Message, st.just("user"), texts), st.builds(Message, st.just("assistant"), texts, st.none() | texts)
    ),
    min_size=1,
    max_size=3,
)


@given(pairs=pairs, system=st.none() | texts)
def test_segments_join_to_the_rendered_text_and_score_the_answers_for_any_text(
    pairs: list[tuple[Message, Message]], system: str | None
) -> None:
    opening = (Message("system", system),) if system else ()
    messages = (*opening, *(turn for pair in pairs for turn in pair))
    template = ChatTemplate(CHATML)
    segments = template.segments(messages)
    assert "".join(segment.text for segment in segments) == template.render(messages)
    written = [
        (f"<think>\n{answer.reasoning}\n</think>\n\n" if answer.reasoning else "") + answer.content + "<|im_end|>\n"
        for _, answer in pairs
    ]
    assert [segment.text for segment in segments if segment.scored] == written


def test_the_hash_names_the_template_and_bears_bytes_that_are_no_utf8() -> None:
    assert ChatTemplate(CHATML).sha256 == template_sha256(CHATML)
    assert template_sha256(CHATML) != template_sha256(CHATML + " ")
    assert template_sha256(b"\xff".decode("utf-8", "surrogateescape")) != template_sha256("?")
