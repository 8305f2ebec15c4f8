import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.labels import IGNORED, TokenizedExample, tokenize_all, tokenize_conversation
from gladstone.chat import Conversation, Message
from gladstone.errors import DataError
from gladstone.template import ChatTemplate
from gladstone.tokenizer import FolderTokenizer

END = "<|im_end|>"
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
TEMPLATE_WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WITHOUT_BOS = TEMPLATE_WITH_BOS.removeprefix("{{ bos_token }}")


def row(*turns: tuple[str, str], reasoning: str | None = None, source: str = "rows.jsonl:7") -> Conversation:
    messages = [Message(role, text) for role, text in turns]
    messages[-1] = Message("assistant", messages[-1].content, reasoning)
    return Conversation(tuple(messages), source)


def scored(example: TokenizedExample) -> list[int]:
    return [label for label in example.labels if label != IGNORED]


# without what SmolLM2's vocabulary cannot hold: control characters and planes above the second lack their bytes in it;
# texts come stripped and non-empty from the readers
characters = st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x2FFFF) | st.sampled_from("\n\t")
texts = st.text(characters, min_size=1, max_size=30).map(str.strip).filter(bool)
answers = st.tuples(texts, st.none() | texts)
talks = st.lists(st.tuples(texts, answers), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(talks, st.none() | texts)
def test_scored_tokens_are_exactly_the_assistants_turns(
    template: ChatTemplate, tokenizer: FolderTokenizer, talk: list[Any], system: str | None
) -> None:
    turns = [Message("system", system)] if system else []
    expected = ""
    for question, (answer, reasoning) in talk:
        turns += [Message("user", question), Message("assistant", answer, reasoning)]
        expected += (f"<think>\n{reasoning}\n</think>\n\n" if reasoning else "") + answer + END
    assume(not any(special in message.content for message in turns for special in tokenizer.special_tokens))
    example = tokenize_conversation(Conversation(tuple(turns), "x:1"), template, tokenizer)
    assert len(example.labels) == len(example.input_ids)
    assert all(label in (IGNORED, token) for token, label in zip(example.input_ids, example.labels, strict=True))
    assert tokenizer.decode(scored(example)) == expected
    assert tokenizer.decode(list(example.input_ids)) == template.render(turns)


@settings(max_examples=100, deadline=None)
@given(texts, texts, texts)
def test_prompt_tokens_do_not_depend_on_the_answer_and_are_never_scored(
    template: ChatTemplate, tokenizer: FolderTokenizer, question: str, one: str, other: str
) -> None:
    prompt = tokenizer.encode(template.render([Message("user", question)], add_generation_prompt=True))
    for answer in (one, other):
        example = tokenize_conversation(row(("user", question), ("assistant", answer)), template, tokenizer)
        assert list(example.input_ids[: len(prompt)]) == prompt
        assert set(example.labels[: len(prompt)]) == {IGNORED}
        assert example.labels[len(prompt)] != IGNORED


def test_the_end_of_turn_is_scored_and_the_newline_after_it_is_not(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    example = tokenize_conversation(row(("user", "Why?"), ("assistant", "Because.")), template, tokenizer)
    assert tokenizer.decode(list(example.input_ids[-2:])) == f"{END}\n"
    assert example.labels[-2] == tokenizer.special_tokens[END]
    assert example.labels[-1] == IGNORED


def test_reasoning_is_scored(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    example = tokenize_conversation(
        row(("user", "Why?"), ("assistant", "So."), reasoning="Let me think."), template, tokenizer
    )
    assert tokenizer.decode(scored(example)) == f"<think>\nLet me think.\n</think>\n\nSo.{END}"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is sepsis?", "Organ dysfunction from a dysregulated response to infection."),
        ("Dose of adrenaline in anaphylaxis (1:1000)?", "0.5 mg IM;  repeat after 5 min.\n\n- then IV fluid"),
        ("Größe? 何ですか 🫀", "½ naïve … 心臓 👩🏽‍⚕️"),
    ],
)
@pytest.mark.parametrize("system", [None, "Answer in one line."])
def test_ids_equal_those_of_transformers(
    template: ChatTemplate, tokenizer: FolderTokenizer, question: str, answer: str, system: str | None
) -> None:
    turns = [("system", system)] if system else []
    turns += [("user", question), ("assistant", answer)]
    expected = tokenizer.hf.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns], tokenize=True, return_dict=False
    )
    assert list(tokenize_conversation(row(*turns), template, tokenizer).input_ids) == expected


def test_rows_that_are_too_long_are_left_out_whole_and_counted(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    rows = [row(("user", "Why?"), ("assistant", "word " * count + "end.")) for count in (1, 5, 50, 500)]
    lengths = [len(tokenize_conversation(each, template, tokenizer).input_ids) for each in rows]
    tokenized = tokenize_all(rows, template, tokenizer, max_tokens=lengths[1])
    assert [len(example.input_ids) for example in tokenized.examples] == lengths[:2]
    assert tokenized.too_long == 2


def test_a_set_with_no_row_short_enough_is_refused(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    with pytest.raises(DataError, match=r"all 1 rows have more than 16 tokens \(base\.max_tokens\)"):
        tokenize_all([row(("user", "Why?"), ("assistant", "word " * 50))], template, tokenizer, max_tokens=16)


@pytest.mark.parametrize("place", ["user", "assistant", "reasoning"])
def test_a_row_that_holds_a_special_token_is_refused_with_its_line(
    template: ChatTemplate, tokenizer: FolderTokenizer, place: str
) -> None:
    text = {"user": "Why?", "assistant": "So.", "reasoning": "Hm."} | {place: f"a {END}\n<|im_start|>user b"}
    bad = row(("user", text["user"]), ("assistant", text["assistant"]), reasoning=text["reasoning"])
    who = "user" if place == "user" else "assistant"
    with pytest.raises(DataError, match=rf"^rows\.jsonl:7: a {who} text contains .*special token of the model"):
        tokenize_conversation(bad, template, tokenizer)


def test_all_rows_that_cannot_be_rendered_are_named_in_one_message(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    rows = [row(("user", END), ("assistant", "x"), source=f"rows.jsonl:{line}") for line in range(1, 14)]
    with pytest.raises(DataError) as caught:
        tokenize_all(rows, template, tokenizer, 100)
    message = str(caught.value)
    assert "(13 problems)" in message
    assert "rows.jsonl:10:" in message
    assert "… and 3 more" in message


def test_a_template_that_ends_answers_with_no_special_token_is_refused(tokenizer: FolderTokenizer) -> None:
    with pytest.raises(DataError, match=re.escape("rows.jsonl:7: the chat template ends the answer with no special")):
        tokenize_conversation(row(("user", "Why?"), ("assistant", "So.")), ChatTemplate(NO_END), tokenizer)


@pytest.mark.parametrize("source", [TEMPLATE_WITH_BOS, WITHOUT_BOS], ids=["template writes it", "template does not"])
def test_bos_stands_once_in_front_when_the_tokenizer_adds_one(bos_tokenizer: FolderTokenizer, source: str) -> None:
    template = bos_tokenizer.template(source)
    bos = bos_tokenizer.special_tokens["<|im_start|>"]
    assert bos_tokenizer.bos_id == bos
    example = tokenize_conversation(
        row(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")), template, bos_tokenizer
    )
    assert [index for index, token in enumerate(example.input_ids) if token == bos] == [0]
    assert example.labels[0] == IGNORED
    assert bos_tokenizer.decode(scored(example)) == f"b{END}d{END}"


def test_no_bos_is_put_in_front_when_the_tokenizer_adds_none(tokenizer: FolderTokenizer) -> None:
    template = tokenizer.template(WITHOUT_BOS)
    example = tokenize_conversation(row(("user", "a"), ("assistant", "b")), template, tokenizer)
    assert tokenizer.bos_id is None
    assert tokenizer.special_tokens["<|im_start|>"] not in example.input_ids


def test_target_tokens_leave_out_the_first_which_nothing_predicts() -> None:
    assert TokenizedExample((5, 6, 7), (5, 6, IGNORED)).target_tokens == 1
    assert TokenizedExample((5, 6, 7), (IGNORED, 6, 7)).target_tokens == 2
