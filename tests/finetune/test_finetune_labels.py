import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.config.row_limits import RowLimits, Train
from finetune.tokens.examples import IGNORED, Example, TokenizedExample
from finetune.tokens.labeller import NOTHING_SCORED, Labeller, tokenize_all
from finetune.tokens.tokenize import scored_texts, tokenize_conversation, tokenize_text
from finetune.train.sample_answers import prompts_of
from gladstone.chat.messages import Conversation, Message, ToolCall
from gladstone.chat.template import ChatTemplate
from gladstone.errors import DataError
from gladstone.models.tokenizer import FolderTokenizer
from tests.gladstone.chat_templates import CHATML, EMPTY_THOUGHT, REASONING_FIELD
from tests.gladstone.tool_templates import HERMES

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


def one_example(conversation: Conversation, template: ChatTemplate, tokenizer: FolderTokenizer) -> TokenizedExample:
    (example,) = tokenize_conversation(conversation, template, tokenizer)
    return example


def scored(example: Example) -> list[int]:
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
    example = one_example(Conversation(tuple(turns), "x:1"), template, tokenizer)
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
        example = one_example(row(("user", question), ("assistant", answer)), template, tokenizer)
        assert list(example.input_ids[: len(prompt)]) == prompt
        assert set(example.labels[: len(prompt)]) == {IGNORED}
        assert example.labels[len(prompt)] != IGNORED


def test_the_end_of_turn_is_scored_and_the_newline_after_it_is_not(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    example = one_example(row(("user", "Why?"), ("assistant", "Because.")), template, tokenizer)
    assert tokenizer.decode(list(example.input_ids[-2:])) == f"{END}\n"
    assert example.labels[-2] == tokenizer.special_tokens[END]
    assert example.labels[-1] == IGNORED


def test_reasoning_is_scored(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    example = one_example(row(("user", "Why?"), ("assistant", "So."), reasoning="Let me think."), template, tokenizer)
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
    assert list(one_example(row(*turns), template, tokenizer).input_ids) == expected


def test_rows_that_are_too_long_are_left_out_whole_and_counted(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    rows = [row(("user", "Why?"), ("assistant", "word " * count + "end.")) for count in (1, 5, 50, 500)]
    lengths = [len(one_example(each, template, tokenizer).input_ids) for each in rows]
    tokenized = tokenize_all(rows, template, tokenizer, RowLimits(lengths[1]))
    assert [len(example.input_ids) for example in tokenized.examples] == lengths[:2]
    assert tokenized.too_long == 2


def test_a_set_with_no_row_short_enough_is_refused(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    with pytest.raises(DataError, match=r"all 1 rows have more than 16 tokens \(base\.max_tokens\)"):
        tokenize_all([row(("user", "Why?"), ("assistant", "word " * 50))], template, tokenizer, RowLimits(16))


@pytest.mark.parametrize("place", ["user", "assistant", "reasoning"])
def test_a_row_that_holds_a_special_token_is_refused_with_its_line(
    template: ChatTemplate, tokenizer: FolderTokenizer, place: str
) -> None:
    text = {"user": "Why?", "assistant": "So.", "reasoning": "Hm."} | {place: f"a {END}\n<|im_start|>user b"}
    bad = row(("user", text["user"]), ("assistant", text["assistant"]), reasoning=text["reasoning"])
    who = "user" if place == "user" else "assistant"
    with pytest.raises(DataError, match=rf"^rows\.jsonl:7: an? {who} text contains .*special token of the model"):
        one_example(bad, template, tokenizer)


def test_all_rows_that_cannot_be_rendered_are_named_in_one_message(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    rows = [row(("user", END), ("assistant", "x"), source=f"rows.jsonl:{line}") for line in range(1, 14)]
    with pytest.raises(DataError) as caught:
        tokenize_all(rows, template, tokenizer, RowLimits(100))
    message = str(caught.value)
    assert "(13 problems)" in message
    assert "rows.jsonl:10:" in message
    assert "… and 3 more" in message


def test_a_template_that_ends_answers_with_no_special_token_is_refused(tokenizer: FolderTokenizer) -> None:
    with pytest.raises(DataError, match=re.escape("rows.jsonl:7: the chat template ends the answer with no special")):
        one_example(row(("user", "Why?"), ("assistant", "So.")), ChatTemplate(NO_END), tokenizer)


@pytest.mark.parametrize("source", [TEMPLATE_WITH_BOS, WITHOUT_BOS], ids=["template writes it", "template does not"])
def test_bos_stands_once_in_front_when_the_tokenizer_adds_one(bos_tokenizer: FolderTokenizer, source: str) -> None:
    template = bos_tokenizer.template(source)
    bos = bos_tokenizer.special_tokens["<|im_start|>"]
    assert bos_tokenizer.bos_id == bos
    example = one_example(
        row(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")), template, bos_tokenizer
    )
    assert [index for index, token in enumerate(example.input_ids) if token == bos] == [0]
    assert example.labels[0] == IGNORED
    assert bos_tokenizer.decode(scored(example)) == f"b{END}d{END}"


def test_no_bos_is_put_in_front_when_the_tokenizer_adds_none(tokenizer: FolderTokenizer) -> None:
    template = tokenizer.template(WITHOUT_BOS)
    example = one_example(row(("user", "a"), ("assistant", "b")), template, tokenizer)
    assert tokenizer.bos_id is None
    assert tokenizer.special_tokens["<|im_start|>"] not in example.input_ids


def test_target_tokens_leave_out_the_first_which_nothing_predicts() -> None:
    assert TokenizedExample((5, 6, 7), (5, 6, IGNORED)).target_tokens == 1
    assert TokenizedExample((5, 6, 7), (IGNORED, 6, 7)).target_tokens == 2


CONTEXTS = "First context. " * 40 + "Does it help?"


def test_a_long_question_loses_its_beginning_and_the_answer_stays_whole(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    long = row(("user", CONTEXTS), ("assistant", "It does."))
    (example,), what = Labeller(template, tokenizer, RowLimits(60, "cut prompt")).examples(long)
    text = tokenizer.decode(list(example.input_ids))
    assert what == "cut"
    assert 55 <= len(example.input_ids) <= 60
    assert text.startswith("<|im_start|>system")
    assert "context. Does it help?<|im_end|>\n<|im_start|>assistant\nIt does.<|im_end|>" in text
    assert tokenizer.decode(scored(example)) == f"It does.{END}"


def test_a_row_whose_answer_alone_is_too_long_is_left_out(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    long = row(("user", "Why?"), ("assistant", "word " * 100))
    assert Labeller(template, tokenizer, RowLimits(60, "cut prompt")).examples(long) == ([], "too long")


def test_a_cut_answer_has_no_end_and_a_row_with_nothing_scored_is_left_out(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    labeller = Labeller(template, tokenizer, RowLimits(60, "cut"))
    (example,), what = labeller.examples(row(("user", "Why?"), ("assistant", "word " * 100)))
    assert (what, len(example.input_ids), len(example.labels)) == ("cut", 60, 60)
    assert tokenizer.decode(scored(example)).rstrip().endswith("word")
    assert labeller.examples(row(("user", CONTEXTS), ("assistant", "It does."))) == ([], "too long")


def test_what_the_limits_hit_is_counted(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    rows = [
        row(("user", "Why?"), ("assistant", "So."), reasoning="Once. " * 30),
        row(("user", CONTEXTS), ("assistant", "It does.")),
        row(("user", "Why?"), ("assistant", "word " * 200)),
        row(("user", "Why?"), ("assistant", "So.")),
    ]
    tokenized = tokenize_all(rows, template, tokenizer, RowLimits(60, "cut prompt", reasoning_tokens=10))
    assert (len(tokenized.examples), tokenized.too_long, tokenized.cut, tokenized.reasoning_cut) == (3, 1, 1, 1)


@pytest.mark.parametrize(
    ("limit", "left"),
    [(None, "One. Two is longer. Three"), (50, "One. Two is longer. Three"), (6, "One."), (1, "One"), (0, None)],
)
def test_reasoning_is_cut_after_a_sentence_or_left_out(
    template: ChatTemplate, tokenizer: FolderTokenizer, limit: int | None, left: str | None
) -> None:
    labeller = Labeller(template, tokenizer, RowLimits(100, reasoning_tokens=limit))
    shorter = labeller.shorten_reasoning(
        row(("user", "Why?"), ("assistant", "So."), reasoning="One. Two is longer. Three")
    )
    assert (shorter.answer.content, shorter.answer.reasoning) == ("So.", left)


def test_plain_text_is_scored_whole_and_cut_into_pieces(
    tokenizer: FolderTokenizer, bos_tokenizer: FolderTokenizer
) -> None:
    text = Conversation((Message("assistant", "The liver makes bile. " * 20),), "x:1")
    pieces = tokenize_text(text, tokenizer, 16)
    assert all(piece.input_ids == piece.labels and len(piece.input_ids) <= 16 for piece in pieces)
    assert tokenizer.decode([token for piece in pieces for token in piece.input_ids]) == text.answer.content + END
    bos = bos_tokenizer.bos_id
    assert bos is not None
    assert all(piece.input_ids[0] == bos for piece in tokenize_text(text, bos_tokenizer, 16))


def test_scored_texts_are_the_whole_row_in_stretches(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    example = one_example(row(("user", "Why?"), ("assistant", "So.")), template, tokenizer)
    stretches = list(scored_texts(example, tokenizer))
    assert "".join(text for text, _ in stretches) == tokenizer.decode(list(example.input_ids))
    assert [text for text, is_scored in stretches if is_scored] == [f"So.{END}"]


def asked_thrice(*flags: bool | None) -> Conversation:
    turns = []
    for number, flag in enumerate(flags):
        thought = None if number == 1 else f"Thought {number}."
        turns += [
            Message("user", f"Question {number}?"),
            Message("assistant", f"Answer {number}.", thought, train=flag),
        ]
    return Conversation(tuple(turns), "rows.jsonl:7")


@pytest.mark.parametrize(("source", "examples"), [(CHATML, 1), (EMPTY_THOUGHT, 3), (REASONING_FIELD, 2)])
def test_every_answer_is_scored_as_it_has_to_be_written_whatever_the_template_does_with_it_later(
    tokenizer: FolderTokenizer, source: str, examples: int
) -> None:
    template = tokenizer.template(source)
    made = tokenize_conversation(asked_thrice(None, None, None), template, tokenizer)
    assert len(made) == examples
    empty = "<think>\n\n</think>\n\n" if source == EMPTY_THOUGHT else ""
    expected = [f"<think>\nThought {n}.\n</think>\n\nAnswer {n}.{END}" for n in range(3)]
    expected[1] = f"{empty}Answer 1.{END}"
    assert [text for each in made for text, is_scored in scored_texts(each, tokenizer) if is_scored] == expected


@pytest.mark.parametrize(
    ("train", "flags", "answers"),
    [
        ("all", (None, None, None), [0, 1, 2]),
        ("all", (False, None, True), [1, 2]),
        ("all", (None, None, False), [0, 1]),
        ("last", (True, None, None), [2]),
        ("last", (None, None, False), []),
        ("flagged", (True, None, False), [0]),
        ("flagged", (None, None, None), []),
    ],
)
def test_the_turns_that_are_scored_are_those_that_option_and_row_say(
    template: ChatTemplate, tokenizer: FolderTokenizer, train: Train, flags: tuple[bool | None, ...], answers: list[int]
) -> None:
    labeller = Labeller(template, tokenizer, RowLimits(500, train=train))
    made, what = labeller.examples(asked_thrice(*flags))
    texts = [text for each in made for text, is_scored in scored_texts(each, tokenizer) if is_scored]
    assert [text.removesuffix(f".{END}")[-1] for text in texts] == [str(number) for number in answers]
    assert what == ("" if answers else NOTHING_SCORED)
    assert labeller.untruncated(asked_thrice(*flags)) == made


def test_rows_without_a_scored_turn_are_counted_and_all_of_them_are_an_error(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    rows = [asked_thrice(True, None, None), asked_thrice(None, None, None), asked_thrice(False, False, False)]
    found = tokenize_all(rows, template, tokenizer, RowLimits(500, train="flagged"))
    assert (len(found.examples), found.unscored, found.rows) == (1, 2, (0,))
    with pytest.raises(DataError, match=r"none of 2 rows.*data\.train=flagged"):
        tokenize_all(rows[1:], template, tokenizer, RowLimits(500, train="flagged"))


def test_what_is_scored_is_told_in_turns_and_tokens(template: ChatTemplate, tokenizer: FolderTokenizer) -> None:
    found = tokenize_all([asked_thrice(None, None, None)] * 2, template, tokenizer, RowLimits(500))
    scored_tokens = 2 * len(scored(found.examples[0]))
    assert (found.scored_turns, found.scored_tokens) == (6, scored_tokens)
    assert found.tokens == 2 * len(found.examples[0].input_ids)
    assert found.scored == f"6 turns, {scored_tokens} of {found.tokens} tokens ({scored_tokens / found.tokens:.0%})"


HERMES_ROW = Conversation(
    (
        Message("user", CONTEXTS),
        Message("assistant", "", tool_calls=(ToolCall("weigh", '{"kg": 70}', "c1"),)),
        Message("tool", '{"ok": true}', tool_call_id="c1"),
        Message("assistant", "It does."),
    ),
    "rows.jsonl:7",
    ('{"type": "function", "function": {"name": "weigh", "description": "of a person", "parameters": {}}}',),
)


def test_a_row_with_calls_is_scored_at_the_call_and_at_the_answer(tokenizer: FolderTokenizer) -> None:
    template = tokenizer.template(HERMES)
    call, answer = (
        text
        for example in tokenize_conversation(HERMES_ROW, template, tokenizer)
        for text, is_scored in scored_texts(example, tokenizer)
        if is_scored
    )
    assert '{"name": "weigh", "arguments": {"kg": 70}}' in call
    assert call.endswith(END)
    assert answer == f"It does.{END}"


def test_a_long_question_before_a_call_is_cut_and_the_call_and_its_result_stay(tokenizer: FolderTokenizer) -> None:
    limits = RowLimits(150, "cut prompt")
    made, what = Labeller(tokenizer.template(HERMES), tokenizer, limits).examples(HERMES_ROW)
    assert what == "cut"
    assert all(len(example.input_ids) <= 150 for example in made)
    text = tokenizer.decode(list(made[-1].input_ids))
    assert "context. Does it help?<|im_end|>" in text
    assert '{"ok": true}' in text


def test_special_tokens_in_calls_and_definitions_are_found(tokenizer: FolderTokenizer) -> None:
    template, bad = tokenizer.template(HERMES), f'{{"kg": "{END}"}}'
    question, calling, *rest = HERMES_ROW.messages
    calling = replace(calling, tool_calls=(ToolCall("weigh", bad),))
    with pytest.raises(DataError, match=r"rows\.jsonl:7: a.* assistant text contains"):
        tokenize_conversation(replace(HERMES_ROW, messages=(question, calling, *rest)), template, tokenizer)
    with pytest.raises(DataError, match=r"rows\.jsonl:7: a tool's definition contains"):
        tokenize_conversation(replace(HERMES_ROW, tools=(bad,)), template, tokenizer)


def test_pairs_take_no_calls(tokenizer: FolderTokenizer) -> None:
    labeller = Labeller(tokenizer.template(HERMES), tokenizer, RowLimits(500), pairs=True)
    with pytest.raises(DataError, match=r"rows\.jsonl:7: .*tool calls"):
        labeller.examples(replace(HERMES_ROW, messages=HERMES_ROW.messages[:2]))


def test_the_answer_that_a_sample_is_compared_with_is_the_last(
    template: ChatTemplate, tokenizer: FolderTokenizer
) -> None:
    (example,) = tokenize_conversation(asked_thrice(None, None, None), template, tokenizer)
    (prompt,) = prompts_of([example], 1, tokenizer.decode)
    assert prompt.reference == "<think>\nThought 2.\n</think>\n\nAnswer 2."
    assert prompt.text.endswith("Question 2?<|im_end|>\n<|im_start|>assistant")
