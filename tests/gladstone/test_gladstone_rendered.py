"""Texts that a chat template has rendered: which are recognised, parsed into turns, or refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gladstone.chat.messages import Conversation, Message
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError
from gladstone.formats import Layout, Notes, find_layout, iter_conversations
from gladstone.formats.rendered import SPOKEN, detect_template
from gladstone.rows import Problems
from tests.gladstone.chat_templates import CHATML, GEMMA, MISTRAL, ZEPHYR

Turns = Sequence[tuple[str, str]]
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def by_template(source: str) -> Callable[[Turns], str]:
    template = ChatTemplate(source, TOKENS)
    return lambda turns: template.render([Message(role, text) for role, text in turns])


def llama_2(turns: Turns) -> str:
    if turns[0][0] != "system":
        return by_template(MISTRAL)(turns)
    (_, system), (_, asked), *rest = turns
    return by_template(MISTRAL)([("user", f"<<SYS>>\n{system}\n<</SYS>>\n\n{asked}"), *rest])


def alpaca(turns: Turns) -> str:
    asked, answered = (text for role, text in turns[-2:])
    opening = "Below is an instruction that describes a task. "
    opening += "Write a response that appropriately completes the request."
    opening = turns[0][1] if turns[0][0] == "system" else opening
    return f"{opening}\n\n### Instruction:\n{asked}\n\n### Response:\n{answered}</s>"


def hashed(turns: Turns) -> str:
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "".join(f"### {names[role]}: {text}" for role, text in turns)


PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
)
LLAMA_4 = LLAMA_3.replace("start_header_id", "header_start").replace("end_header_id", "header_end").replace("_id", "")
RENDERED: dict[str, Callable[[Turns], str]] = {
    "ChatML": by_template(CHATML),
    "Llama 3": by_template(LLAMA_3),
    "Llama 4": by_template(LLAMA_4),
    "Phi-4": by_template(PHI_4),
    "Gemma": by_template(GEMMA),
    "Llama 2": llama_2,
    "Zephyr or Phi-3": by_template(ZEPHYR),
    "Alpaca": alpaca,
    "### Human:": hashed,
}
WITHOUT_SYSTEM = ("Gemma",)
ONE_TURN = ("Alpaca",)

texts = (
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]) | st.sampled_from("\n #"), min_size=1, max_size=40)
    .map(str.strip)
    .filter(lambda text: bool(text) and not any(mark in text for mark in ("###", "<", "[", "|")))
)
talks = st.tuples(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.none() | texts)


def turns_of(kind: str, talk: tuple[list[tuple[str, str]], str | None]) -> list[tuple[str, str]]:
    pairs, system = talk
    pairs = pairs[:1] if kind in ONE_TURN else pairs
    turns = [turn for asked, answered in pairs for turn in (("user", asked), ("assistant", answered))]
    return [("system", system), *turns] if system and kind not in WITHOUT_SYSTEM else turns


def read(text: str) -> Conversation:
    return Layout("rendered").read({"text": text}, "rows.jsonl:1")


def roles_and_texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize("kind", RENDERED)
@given(talk=talks)
def test_what_a_template_rendered_is_read_back_as_it_was(
    kind: str, talk: tuple[list[tuple[str, str]], str | None]
) -> None:
    turns = turns_of(kind, talk)
    text = RENDERED[kind](turns)
    assert detect_template(text) == kind
    found = roles_and_texts(read(text))
    if kind == "ChatML" and turns[0][0] != "system":  # the template's own system text is in the text, and is read
        assert found.pop(0) == ("system", "You are a helpful assistant.")
    assert found == turns


def test_an_input_of_alpaca_stands_behind_its_instruction() -> None:
    text = "### Instruction:\nTranslate.\n\n### Input:\nMilz\n\n### Response:\nspleen"
    assert roles_and_texts(read(text)) == [("user", "Translate.\n\nMilz"), ("assistant", "spleen")]


def test_headings_of_an_answer_stay_in_it() -> None:
    text = "### Instruction:\nWrite.\n\n### Response:\n### Notes\nBring water."
    assert read(text).answer.content == "### Notes\nBring water."


def test_prompt_and_completion_are_read_as_one_text() -> None:
    row = {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "completion": "Hello.<|im_end|>"}
    found = Layout("rendered").read(row, "rows.jsonl:1")
    assert roles_and_texts(found) == [("user", "Hi"), ("assistant", "Hello.")]


def test_a_last_answer_may_lack_its_end() -> None:
    assert read("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.").answer.content == "Hello."


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "<|im_start|>user\nWhat is <|im_start|>?<|im_end|>\n<|im_start|>assistant\nA mark.<|im_end|>",
            "inside a turn",
        ),
        ("<|im_start|>user\nHi<|im_end|>\nlost\n<|im_start|>assistant\nHello.<|im_end|>", "between two turns"),
        ("<|im_start|>user\nHi", "does not end"),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "turn is empty"),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>tool\n7<|im_end|>", "'tool'"),
        ("<s>[INST] Hi [INST] there [/INST] Hello. </s>", "inside a turn"),
        ("[INST] Hi [/INST] Hello. </s> and more", "between two turns"),
        ("### Instruction:\na\n### Response:\nb\n### Instruction:\nc\n### Response:\nd", "once each"),
        ("<|user|>\nHi</s>\n<|user|>\nThere</s>", "roles are user, user"),
        ("Why is the sky blue?", "does not begin with the markers"),
        ("Human: Hi\n\nAssistant: Hello.", "does not begin with the markers"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_its_line(text: str, told: str) -> None:
    with pytest.raises(DataError) as caught:
        read(text)
    assert str(caught.value).startswith("rows.jsonl:1: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "Mark a turn with <|im_start|>user and end it with <|im_end|>.",
        "Take [INST] as it is. [/INST]",
        "### Response:\nNone.",
        "Humans: an introduction. Assistant: none.",
        "<s>Struck out</s>",
    ],
)
def test_a_text_about_markers_is_a_text_as_any_other(text: str) -> None:
    assert detect_template(text) is None


def test_turns_named_in_words_are_recognised_and_less_sure() -> None:
    assert detect_template("Human: Why?\n\nAssistant: So.") == SPOKEN


@pytest.mark.parametrize(
    "text", ["<｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜>So.", "<|start|>user<|message|>Why?"]
)
def test_a_template_that_is_not_read_back_is_recognised_and_its_turns_are_asked_for(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "rows.jsonl", [{"text": text}])
    with pytest.raises(DataError, match="Supply the turns as messages") as caught:
        find_layout(path, "auto")
    assert "rendered in a chat template" in str(caught.value)
    assert "--format rendered" not in str(caught.value)


def written(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", RENDERED)
@pytest.mark.parametrize("layout", ["text", "prompt", "qa"])
def test_auto_refuses_a_file_of_rendered_texts_with_what_reads_it(tmp_path: Path, kind: str, layout: str) -> None:
    text = RENDERED[kind]([("user", "Why?"), ("assistant", "So.")])
    names = {"text": ("text",), "prompt": ("prompt", "completion"), "qa": ("question", "answer")}[layout]
    row = dict(zip(names, (text, "So."), strict=False))
    path = written(tmp_path / "rows.jsonl", [row] * 9 + [dict.fromkeys(names, "Plain.")])
    with pytest.raises(DataError) as caught:
        find_layout(path, "auto")
    for fact in ("rows.jsonl", kind, "9 of the first 10 rows", "--format rendered", "messages"):
        assert fact in str(caught.value)
    assert find_layout(path, layout).name == layout  # a user who names it has it


def test_a_few_rendered_rows_are_noted_and_read_as_they_stand(tmp_path: Path) -> None:
    text = RENDERED["ChatML"]([("user", "Why?"), ("assistant", "So.")])
    path = written(tmp_path / "rows.jsonl", [{"text": text}, *[{"text": f"Plain {n}."} for n in range(9)]])
    notes = Notes()
    found = list(iter_conversations(path, find_layout(path, "auto"), Problems(), notes))
    assert found[0].answer.content == text.strip()
    (line,) = notes.lines()
    assert line.startswith("1 row ")
    assert "ChatML" in line
    assert "--format rendered" in line


def test_hostile_texts_of_markers_take_no_time(tmp_path: Path) -> None:
    size = 200_000
    for text in (
        "<|im_start|>user\n" * (size // 17),
        "<|user|>\na<|end|>\n" * (size // 19),
        "[INST]" * (size // 6),
        "[INST]" + " " * size,
        "### Instruction:\n" * (size // 17),
        "### Human: " * (size // 11),
        "<|im_start|>assistant\n" + " " * size + "a" + " </s>" * 9,
    ):
        with pytest.raises(DataError):
            read(text)
