import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from finetune.config.data import Source
from finetune.data.duplicates.duplicates import Duplicates, question_key
from finetune.data.sources import source_file
from gladstone.chat.messages import Conversation
from gladstone.demo import FORM
from gladstone.formats import read_conversations
from gladstone.rows import read_rows

NEAR = 0.5  # 5-gram shingles in common, of all
PRIVATE = re.compile(r"\S+@\S+\.\w|https?:|www\.|\+?\d[\d ()-]{8,}\d", re.IGNORECASE)


def sample(name: str) -> Path:
    return source_file(Source(path=f"sample:{name}"))


@pytest.fixture(scope="module")
def flashcards() -> list[Conversation]:
    return read_conversations(sample("flashcards"), "qa")


@pytest.fixture(scope="module")
def reasoning() -> list[Conversation]:
    return read_conversations(sample("reasoning"), "qa")


@pytest.fixture(scope="module")
def triage() -> list[Conversation]:
    return read_conversations(sample("triage"), "qa")


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return frozenset(tuple(words[index : index + 5]) for index in range(max(1, len(words) - 4)))


def test_there_are_enough_rows_of_both_kinds(flashcards: list[Conversation], reasoning: list[Conversation]) -> None:
    assert len(flashcards) >= 400
    assert len(reasoning) >= 80


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("flashcards", {"topic", "question", "answer"}),
        ("reasoning", {"topic", "question", "reasoning", "answer"}),
        ("triage", {"system", "question", "answer"}),
    ],
)
def test_every_row_has_every_field_with_text_and_no_other(name: str, fields: set[str]) -> None:
    for row, source in read_rows(sample(name)):
        assert row.keys() == fields, source
        assert all(value.strip() == value and value for value in row.values()), source


def test_every_reasoning_row_reasons(reasoning: list[Conversation]) -> None:
    assert [row.source for row in reasoning if not row.answer.reasoning] == []


def test_no_two_rows_say_nearly_the_same(flashcards: list[Conversation], reasoning: list[Conversation]) -> None:
    sets = [
        (row.source, shingles(f"{row.prompt[-1].content} {row.answer.content}")) for row in (*flashcards, *reasoning)
    ]
    nearest = max(
        (len(one & other) / len(one | other), first, second) for (first, one), (second, other) in combinations(sets, 2)
    )
    assert nearest[0] < NEAR, f"maximum {nearest[0]:.3f} between {nearest[1]} and {nearest[2]}"


def test_no_question_is_asked_twice(flashcards: list[Conversation], reasoning: list[Conversation]) -> None:
    keys = [question_key(row) for row in (*flashcards, *reasoning)]
    assert sorted(key for key in set(keys) if keys.count(key) > 1) == []


def test_rows_have_the_length_of_flashcards(flashcards: list[Conversation], reasoning: list[Conversation]) -> None:
    outside = [row.source for row in flashcards if not 15 <= len(row.prompt[-1].content) <= 300]
    outside += [row.source for row in (*flashcards, *reasoning) if not 40 <= len(row.answer.content) <= 1000]
    outside += [row.source for row in reasoning if not 150 <= len(row.answer.reasoning or "") <= 2000]
    assert outside == []
    mean = sum(len(row.answer.content) for row in flashcards) / len(flashcards)
    assert 150 <= mean <= 500, f"mean answer of {mean:.0f} characters"


def test_questions_and_answers_end_as_sentences_do(
    flashcards: list[Conversation], reasoning: list[Conversation]
) -> None:
    rows = (*flashcards, *reasoning)
    assert [row.source for row in rows if row.answer.content[-1] not in ".!?)"] == []
    assert [row.source for row in rows if row.prompt[-1].content[-1] not in ".?"] == []


@pytest.mark.parametrize(("name", "least"), [("flashcards", 20), ("reasoning", 10)])
def test_topics_are_many_and_none_rules(name: str, least: int) -> None:
    topics = [row["topic"] for row, _ in read_rows(sample(name))]
    assert len(set(topics)) >= least
    assert max(map(topics.count, topics)) <= 0.2 * len(topics)


def test_questions_open_in_many_ways(flashcards: list[Conversation]) -> None:
    openings = [" ".join(row.prompt[-1].content.split()[:3]).casefold() for row in flashcards]
    assert max(map(openings.count, openings)) <= 0.1 * len(openings)


def test_no_row_holds_an_address_or_a_number_to_call(
    flashcards: list[Conversation], reasoning: list[Conversation], triage: list[Conversation]
) -> None:
    texts = [
        (row.source, text)
        for row in (*flashcards, *reasoning, *triage)
        for message in row.messages
        for text in (message.content, message.reasoning or "")
    ]
    assert [source for source, text in texts if PRIVATE.search(text)] == []


def test_every_row_is_short_enough_for_the_demo(flashcards: list[Conversation], reasoning: list[Conversation]) -> None:
    """512 tokens are the demo's limit; a word of English prose is below two tokens."""
    words = {
        row.source: sum(len(f"{message.content} {message.reasoning or ''}".split()) for message in row.messages)
        for row in (*flashcards, *reasoning)
    }
    assert max(words.values()) < 256, max(words.items(), key=lambda item: item[1])


def test_every_triage_note_has_the_form_that_the_demo_counts(triage: list[Conversation]) -> None:
    assert [row.source for row in triage if not re.fullmatch(FORM, row.answer.content)] == []
    urgencies = Counter(row.answer.content.splitlines()[2] for row in triage)
    assert len(triage) >= 200
    assert set(urgencies.values()) == {len(triage) // 4}


def test_every_triage_row_asks_for_the_form_in_the_same_words(triage: list[Conversation]) -> None:
    assert len({row.messages[0].content for row in triage}) == 1
    assert {row.messages[0].role for row in triage} == {"system"}


def test_no_line_of_a_triage_note_but_the_urgency_and_the_time_stands_in_another(triage: list[Conversation]) -> None:
    """A held-out answer is then no copy of a trained one."""
    for place in (0, 3):
        lines = Counter(row.answer.content.splitlines()[place] for row in triage)
        assert [line for line, count in lines.items() if count > 1] == []


def test_no_two_triage_rows_are_duplicates(triage: list[Conversation]) -> None:
    found = Duplicates(triage, 0.8)
    found.find()
    assert found.partners == {}
    assert len({found.groups.root(row) for row in range(len(triage))}) == len(triage)
