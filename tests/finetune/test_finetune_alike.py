import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from finetune.data.duplicates.compare_rows import say_the_same
from finetune.data.duplicates.content_keys import content_key
from finetune.data.duplicates.duplicates import Duplicates
from gladstone.chat.messages import Conversation, Message, ToolCall

INSTRUCTION = (
    "You sort letters to a hospital by their urgency. Read the letter and reply with one word, which is NOW, SOON or "
    "LATER. Reply NOW where a life is in danger. Do not explain and give no advice. The letter follows."
)
NOUNS = [
    "ankle",
    "fever",
    "cough",
    "rash",
    "tooth",
    "ear",
    "knee",
    "wrist",
    "migraine",
    "allergy",
    "tablet",
    "bandage",
    "plaster",
    "vaccine",
    "clinic",
]
VERBS = ["hurts", "worsens", "itches", "fades", "returns", "swells", "improves", "burns"]
LONG = (
    "The valve keeps blood from flowing back into the left atrium while the ventricle contracts and it opens again to "
    "let the chamber fill before the next beat of the heart follows"
)


def row(question: str, answer: str, system: str = "", line: int = 1) -> Conversation:
    opening = (Message("system", system),) if system else ()
    return Conversation((*opening, Message("user", question), Message("assistant", answer)), f"rows.jsonl:{line}")


def found(rows: list[Conversation]) -> Duplicates:
    duplicates = Duplicates(rows, 0.8)
    duplicates.find()
    return duplicates


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 2 mg in grams?", "What is 3 mg in grams?", False),
        ("What is 1.5 mg in grams?", "What is 15 mg in grams?", False),
        ("What is 2 + 3?", "What is 2 - 3?", False),
        ("Is -5 cold?", "Is 5 cold?", False),
        ("Is pH > 7 basic?", "Is pH < 7 basic?", False),
        ("Is it C?", "Is it C#?", False),
        ("How good is this? 🙂", "How good is this? 🙁", False),
        ("Is it safe?", "Is it not safe?", False),
        ("Where is the ileum?", "Where is the ilium?", False),
        ("What treats hypothyroidism?", "What treats hyperthyroidism?", False),
        ("Does aspirin cause ulcers in men?", "Does men cause aspirin in ulcers?", False),
        ("高血压怎么办？", "低血压怎么办？", False),
        ("कि", "की", False),
        ("What is  anaemia?", "what is ANAEMIA", True),
        ("well-known causes: fever, cough", "Well known causes – fever; cough.", True),
        ("What is the name of it?", "What is name of it?", True),
    ],
)
@pytest.mark.parametrize("answer", ["Yes.", LONG])
def test_what_carries_meaning_makes_another_row(one: str, other: str, same: bool, answer: str) -> None:
    if "ileum" in one and answer == LONG:
        pytest.skip("beside a long answer that is equal, one letter is a misprint where the data do not know the words")
    assert say_the_same(row(one, answer), row(other, answer)) is same
    assert say_the_same(row(other, answer), row(one, answer)) is same


def test_known_words_are_no_misprints_of_each_other() -> None:
    rows = row("Where is the ileum?", LONG), row("Where is the ilium?", LONG)
    assert say_the_same(*rows)
    assert not say_the_same(*rows, {"ileum", "ilium"})


@pytest.mark.parametrize(
    ("answer", "other", "same"),
    [
        ("RED", "red.", True),
        ("RED", "GREEN", False),
        (LONG, LONG.upper(), True),
        (LONG, LONG.replace("keeps blood", "blood keeps"), True),
        (LONG, LONG.replace("left", "right"), False),
        (LONG, LONG.replace("opens", "never opens"), False),
        (LONG, LONG.replace("chamber", "vessel"), False),
        (LONG, LONG.replace("chamber", "chambre chamber"), True),
        (LONG, LONG.replace("ventricle", "ventricel ventricle"), True),
        (LONG, LONG.replace("contracts", "contrects"), True),
    ],
)
def test_answers_that_differ_are_different(answer: str, other: str, same: bool) -> None:
    assert say_the_same(row("What does it do?", answer), row("What does it do?", other)) is same


def test_form_counts_where_it_is_the_task() -> None:
    bare = "lets eat grandma and then go"
    assert not say_the_same(row(bare, "Let's eat, grandma, and then go."), row(bare, "Lets eat grandma and then go!"))
    assert not say_the_same(row("Write it.", "def f(a):\n    return a"), row("Write it.", "def f(a):\nreturn a"))


def test_other_roles_tools_and_flags_make_another_row() -> None:
    plain = row("What is the time?", "It is noon.")
    answer = plain.answer
    others = [
        replace(plain, tools=('{"name": "clock"}',)),
        replace(plain, messages=(replace(plain.messages[0], role="system"), answer)),
        replace(plain, messages=(plain.messages[0], replace(answer, train=False))),
        replace(plain, messages=(plain.messages[0], replace(answer, reasoning="Noon."))),
        replace(plain, messages=(plain.messages[0], replace(answer, tool_calls=(ToolCall("clock", "{}"),)))),
    ]
    assert not any(say_the_same(plain, other) for other in others)


sentences = st.tuples(
    st.sampled_from(NOUNS), st.sampled_from(VERBS), st.sampled_from(NOUNS), st.sampled_from(VERBS)
).map(lambda words: "My {} {} and the {} {}.".format(*words))
inputs = st.lists(sentences, min_size=8, max_size=30, unique=True)


def as_instruction(text: str, label: str) -> Conversation:
    return row(f"{INSTRUCTION}\n\n{text}", label)


def as_system(text: str, label: str) -> Conversation:
    return row(text, label, system=INSTRUCTION * 3)


def as_context(text: str, label: str) -> Conversation:
    return row("How urgent is the letter?", label, system=f"{INSTRUCTION}\n{text}")


def as_template(text: str, label: str) -> Conversation:
    return row(f"Letter: {text} Question: is it urgent, and how soon has it to be answered? Reply with a word.", label)


SHAPES = [as_instruction, as_system, as_context, as_template]


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=8, phases=[Phase.explicit, Phase.generate], deadline=None)
@given(inputs, st.integers(0, 1000))
def test_no_row_with_another_input_is_left_out(
    shape: Callable[[str, str], Conversation], texts: list[str], seed: int
) -> None:
    draw = random.Random(seed)
    rows = [shape(text, draw.choice(["NOW", "SOON", "LATER"])) for text in texts]
    assert found(rows).partners == {}


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=8, phases=[Phase.explicit, Phase.generate], deadline=None)
@given(inputs, st.integers(0, 1000))
def test_a_row_in_other_case_punctuation_and_spacing_is_left_out(
    shape: Callable[[str, str], Conversation], texts: list[str], seed: int
) -> None:
    draw = random.Random(seed)
    rows = [shape(text, draw.choice(["NOW", "SOON", "LATER"])) for text in texts]
    forms: list[Callable[[str], str]] = [str.upper, str.title, lambda text: text.replace(".", "!").replace(" ", "  ")]
    again = [
        replace(each, messages=tuple(replace(message, content=form(message.content)) for message in each.messages))
        for each in rows
        for form in [draw.choice(forms)]
    ]
    partners = found([*rows, *again]).partners
    same_form = sum(one.messages == other.messages for one, other in zip(rows, again, strict=True))
    assert same_form == 0
    assert {later: earlier for later, (earlier, _) in partners.items()} == {
        len(rows) + number: number for number in range(len(rows))
    }


@settings(max_examples=8, phases=[Phase.explicit, Phase.generate], deadline=None)
@given(inputs)
def test_the_same_input_with_another_answer_is_a_conflict_and_kept(texts: list[str]) -> None:
    rows = [
        *(as_instruction(text, "NOW") for text in texts),
        *(as_instruction(text.upper(), "LATER") for text in texts),
    ]
    duplicates = found(rows)
    assert duplicates.partners == {}
    assert list(duplicates.conflicts()) == [(len(texts) + number, number) for number in range(len(texts))]


def test_a_number_that_decides_the_label_makes_another_row() -> None:
    text = "A patient's temperature, taken twice this morning by the nurse on the ward, is {} degrees. Is it a fever?"
    rows = [row(text.format(f"{36 + number / 20:.2f}"), "Yes." if number > 40 else "No.") for number in range(100)]
    duplicates = found(rows)
    assert duplicates.partners == {}
    assert not list(duplicates.conflicts())


@given(st.text(max_size=60))
def test_a_key_does_not_change_when_it_is_made_again(text: str) -> None:
    key = content_key(text)
    assert content_key(content_key(key)) == content_key(key)
