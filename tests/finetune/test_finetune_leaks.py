import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from finetune.cli import main
from finetune.data.leaks.leaks import LeakIndex, word_difference
from gladstone.chat.messages import Conversation, Message
from gladstone.formats import read_conversations
from tests.finetune.planted import DECOYS, LEAKS, plant_leaks
from tests.tiny_models import medical_rows, write_rows_file

LONG = "Which of the named valves separates the left atrium of the heart from its left ventricle in adults?"


def conversation(question: str, answer: str = "The mitral valve does.", line: int = 1) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), f"train.jsonl:{line}")


def kinds(train: list[Conversation], test: list[Conversation]) -> list[tuple[int, str]]:
    return [(row, leak.kind) for row, leak in LeakIndex(test, 0.6).leaks(train)]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (conversation(LONG.upper(), "Something else is said."), "same question"),
        (conversation(LONG.replace("in adults", "of an adult"), "Something else is said."), "similar question"),
        (
            conversation(f"Answer as a doctor would, in one short sentence. {LONG} Think first."),
            "contains the question",
        ),
        (conversation("Quiz", f"Here is a quiz. {LONG} The answer comes on the next page."), "contains the question"),
        (conversation("Which valve separates the right atrium from its ventricle?"), None),
        (conversation("Which of the named valves separates something else from that?"), None),
    ],
)
def test_a_leak_is_told_by_its_kind(row: Conversation, kind: str | None) -> None:
    assert kinds([row], [conversation("What is unrelated?"), conversation(LONG)]) == ([(0, kind)] if kind else [])


def test_a_similar_row_is_a_leak_though_its_question_is_short() -> None:
    answer = (
        "It keeps blood from flowing back into the left atrium while the ventricle contracts, and opens to fill it."
    )
    assert kinds([conversation("What does a valve do?", answer)], [conversation("What role has a valve?", answer)]) == [
        (0, "similar row")
    ]


def test_no_test_row_means_no_leak() -> None:
    assert kinds([conversation(LONG)], []) == []


def test_the_command_lists_leaks_and_fails(tmp_path: Path) -> None:
    rows = medical_rows()
    train = write_rows_file(tmp_path / "train.jsonl", rows)
    test = write_rows_file(tmp_path / "test.jsonl", [dict(row, answer="Another.") for row in rows[:12]])
    out = tmp_path / "leaks.jsonl"
    result = CliRunner().invoke(main, ["data", "leaks", str(train), "--against", str(test), "--out", str(out)])
    assert result.exit_code == 1
    assert "40 training rows against 12 test rows: same question 12" in result.output
    assert f"{train} contains rows of {test} (12 problems):" in result.output
    assert f"  - {train}:1: same question as {test}:1 (1.00)" in result.output
    assert "… and 2 more" in result.output
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 12


def test_files_that_share_nothing_pass(tmp_path: Path) -> None:
    rows = medical_rows()
    train, test = write_rows_file(tmp_path / "a.jsonl", rows[:20]), write_rows_file(tmp_path / "b.jsonl", rows[25:])
    result = CliRunner().invoke(main, ["data", "leaks", str(train), "--against", str(test)])
    assert (result.exit_code, result.output) == (0, "20 training rows against 15 test rows: no leak\n")


def test_a_missing_test_file_is_one_message(tmp_path: Path) -> None:
    train = write_rows_file(tmp_path / "a.jsonl")
    result = CliRunner().invoke(main, ["data", "leaks", str(train), "--against", str(tmp_path / "none.jsonl")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("what are the symptoms of asthma", "symptoms of asthma please", True),
        ("what are the symptoms of asthma", "what are the symptoms of gout", False),
        ("what are the symptoms of asthma", "Please: what are the signs of asthma?", True),
        ("when does asthma begin", "why does asthma begin", False),
        ("treatment of pneumonia", "treatment of pnemonia", True),
        ("treatment of hypothyroidism", "treatment of hyperthyroidism", False),
        ("type 1 diabetes", "type 2 diabetes", False),
        ("causes of gout", "causes of gout in women", False),
        ("causes of gout", "causes of early gout", False),
        ("symptoms of personality disorder", "symptoms of dependent personality disorder", False),
        ("what is gout", "what to do for gout", False),
        ("how is gout treated", "why is gout treated", False),
        ("what are the causes of kidney stones", "what are the reasons for renal stones", True),
        ("what causes hepatitis a", "what causes hepatitis", False),
        ("is aspirin safe", "is aspirin not safe", False),
        ("how much is 5 mg of codeine", "how much is 50 mg of codeine", False),
        ("how long should a patient rest after knee surgery", "hw lonng shoud a patiemt rst aftr knee surgrey", True),
        (
            "how long should a patient rest after knee surgery",
            "After knee surgery, how long should a patient rest?",
            True,
        ),
    ],
)
def test_questions_of_one_pattern_are_not_the_same_question(one: str, other: str, same: bool) -> None:
    test = [conversation(one), conversation("hyperthyroidism"), conversation("How are you?")]
    assert bool(kinds([conversation(other, "Something else is said.")], test)) is same


@pytest.mark.parametrize("kind", [*LEAKS, *DECOYS])
def test_planted_leaks_are_found_and_decoys_are_not(kind: str) -> None:
    path = Path(__file__).parents[2] / "finetune" / "samples" / "flashcards.jsonl"
    rows = read_conversations(path, "qa")
    test, train = rows[::2], rows[1::2]
    planted = plant_leaks(test, kind, 40)
    found = [leak for _, leak in LeakIndex(test, 0.6).leaks([*train, *planted])]
    share = sum(leak.train == f"{leak.test} planted" for leak in found) / len(planted)
    assert share == 0 if kind in DECOYS else share >= {"synonyms": 0.7, "misread only q": 0.9}.get(kind, 0.95)


def test_real_questions_among_themselves_are_no_leaks() -> None:
    path = Path(__file__).parents[2] / "finetune" / "samples" / "flashcards.jsonl"
    rows = read_conversations(path, "qa")
    assert kinds(rows[1::2], rows[::2]) == []


def test_a_leak_shows_what_differs_in_a_line() -> None:
    row = conversation(LONG.replace("in adults", "in humans\n\x1b[31m of age"), "Something else is said.")
    shown = word_difference(["what", "are", "the", "symptoms", "of", "gout"], ["what", "are", "signs", "of", "gout"])
    assert shown == "what are [-the-] {+signs+} [-symptoms-] of gout"
    leaks = [leak for _, leak in LeakIndex([conversation(LONG)], 0.6).leaks([row])]
    assert all(leak.difference.isprintable() and len(leak.difference) <= 160 for leak in leaks)


def test_questions_of_one_pattern_are_no_leaks() -> None:
    names = ("asthma", "gout", "sepsis", "anaemia", "migraine", "psoriasis")
    pattern = "Answer this question truthfully: when should I seek urgent medical care when I have {}?"
    rows = [
        conversation(pattern.format(name), f"When {name} gets {number} times worse.")
        for number, name in enumerate(names)
    ]
    assert kinds(rows[3:], rows[:3]) == []
    assert kinds(rows, rows[:3]) == [(0, "same question"), (1, "same question"), (2, "same question")]


def test_a_pattern_that_the_test_file_has_once_is_no_leak() -> None:
    pattern = "What to do for what I need to know about {} at home and away?"
    test = [conversation(pattern.format("kidney stones")), conversation("What else should I know about kidney stones?")]
    assert kinds([conversation(pattern.format("gestational diabetes"))], test) == []
    assert kinds([conversation(f"Now: {pattern.format('kidney stones')} Tell me all.", "Drink water.")], test) == [
        (0, "contains the question")
    ]


CONTEXT = " ".join(
    f"Group {name} of the cohort had {count} events in the follow up of the {drug} arm, fewer than were expected then."
    for name, count, drug in zip(
        "abcdefgh", range(11, 99, 11), ["abacavir", "bosentan", "colistin", "dapsone"] * 2, strict=True
    )
)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What are the symptoms of meningitis?", "Wh at are tbe symptorns 0f Meiingifis?", True),
        ("What causes giant congenital nevus?", "What cau5es giantcongenital nev us?", True),
        ("What are the symptoms of meningitis?", "Wh at are tbe symptorns 0f Brorchitis?", False),
        ("What are the symptoms of hypertension?", "Whaf are tbe symptorns 0f hypotensi0n?", False),
        ("What is the usual dose of codeine in 5 days?", "Wbat is the usual d0se of codeine in 50 days?", False),
        ("Is atropine needed with ketamine sedation?", "ls austrian needed witb ketamine sedati0n?", False),
        ("What causes gout?", "Birthmarks is what causes gout in women?", False),
        ("What is a user page?", "Birthmarks is a user page?", False),
        ("How is it made and why is it sold?", "Why is it made and why is it sold?", False),
        ("A trial of it was stopped early. How?", "A trial of it was stopped early. Why?", False),
    ],
)
def test_a_misread_question_is_found_and_another_name_is_not(one: str, other: str, same: bool) -> None:
    clean = [conversation(f"Which {name} is meant?") for name in ("bronchitis", "hypotension", "symptom", "dose")]
    assert bool(kinds([conversation(other, "Something else is said.")], [conversation(one), *clean])) is same


ANSWER = "Most people recover within some weeks, but the lung may stay scarred, so that a scan is repeated in summer."


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What should I expect if I have sarcoidosis?", "What lies ahead of me, given sarcoidosis?", True),
        ("How does blood pressure affect sarcoidosis?", "How does BP influence sarcoidosis?", True),
        ("Does smoking raise the risk of sarcoidosis?", "Does smoking boost the odds of sarcoidosis?", True),
        ("What should I expect if I have sarcoidosis?", "What should I expect if I have silicosis?", False),
        ("What should I expect if I have sarcoidosis?", "What should I expect if I have neonatal sarcoidosis?", False),
        ("What is usual in stage 2 of sarcoidosis?", "What is usual in stage 3 of sarcoidosis?", False),
        ("Is it usual to cough in sarcoidosis?", "Is it not usual to cough in sarcoidosis?", False),
        ("Does smoking raise the risk of sarcoidosis?", "Does smoking lower the risk of sarcoidosis?", False),
    ],
)
def test_the_same_answer_to_a_question_in_other_words_is_a_leak(one: str, other: str, same: bool) -> None:
    assert bool(kinds([conversation(other, ANSWER)], [conversation(one, ANSWER)])) is same


@pytest.mark.parametrize(
    ("question", "same"),
    [
        ("Does dapsone lower the number of events?", True),
        ("Please read this first. Does dapsone lower the number of events?", True),
        ("Does dapsone lower the nurnber of evcnts?", True),
        ("Does colistin lower the number of events?", False),
        ("Why does dapsone lower the number of events?", False),
    ],
)
def test_a_question_behind_a_long_context_is_judged_by_itself(question: str, same: bool) -> None:
    test = [conversation(f"{CONTEXT}\n\nDoes dapsone lower the number of events?")]
    assert bool(kinds([conversation(f"{CONTEXT}\n\n{question}", "Something else is said.")], test)) is same


def abstracts(count: int) -> list[Conversation]:
    """Questions behind contexts of 150 words with many figures, no two alike."""
    path = Path(__file__).parents[2] / "finetune" / "samples" / "flashcards.jsonl"
    cards = read_conversations(path, "qa")
    rows = []
    for number in range(count):
        sentences = [card.answer.content for card in cards[number % 10 :: len(cards) // 9]]
        figures = f"Of {number + 122} patients {number + 6} ({number / 7:.1f} %, 95 % CI: 1.{number}-3.2) had it; p = 0.0{number}."
        context = " ".join([sentences[number % 9], figures, *sentences])
        rows.append(conversation(f"{context}\n\n{cards[3 * number].messages[0].content}", f"Answer {number}.", number))
    return rows


@pytest.mark.parametrize(
    "kind", ["exact", "punctuation", "spaces", "wrapped", "misread", "misread only q", "other aspect"]
)
def test_leaks_of_long_inputs_with_figures_are_found(kind: str) -> None:
    rows = abstracts(24)
    planted = plant_leaks(rows, kind, 24)
    found = {leak.train for _, leak in LeakIndex(rows, 0.6).leaks(planted) if leak.train == f"{leak.test} planted"}
    assert len(found) == 0 if kind in DECOYS else len(found) >= 22


@pytest.mark.parametrize(
    ("question", "same"),
    [
        ("What causes herpangina?", False),
        ("What causes anginatosis?", False),
        ("What causes ofangina?", True),
        ("What to expect if I have dyslexia?", False),
        ("What to expect if I hve dysurria?", True),
    ],
)
def test_a_word_that_contains_another_or_begins_like_it_is_another_word(question: str, same: bool) -> None:
    names = ["asthma", "gout", "sepsis", "migraine", "dysuria", "angina", "anaemia", "eczema", "epilepsy"]
    test = [conversation(f"{start} {name}?") for name in names for start in ("What causes", "What to expect if I have")]
    assert bool(kinds([conversation(question, "Something else is said.")], test)) is same


def test_misprints_that_several_rows_have_are_no_words() -> None:
    test = [conversation(f"What are the symptoms of {name}?") for name in ("asthma", "gout", "sepsis", "migraine")] * 10
    train = [conversation("What arc tbe symptorns of gouf?", f"Nothing {number} is said.") for number in range(4)]
    assert len(kinds(train, test)) == 4
