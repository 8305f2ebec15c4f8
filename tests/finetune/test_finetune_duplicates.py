from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config.data import Source
from finetune.data.duplicates.compare_rows import say_the_same
from finetune.data.duplicates.content_keys import content_key
from finetune.data.duplicates.duplicates import Duplicates, batches
from finetune.data.duplicates.grams import CommonText, Hashes, Sketcher, jaccard
from finetune.data.duplicates.groups import Groups, rows_by_key
from finetune.data.sources import source_file
from gladstone.chat.messages import Conversation, Message
from gladstone.formats import read_conversations
from tests.finetune.planted import EDITS, edited, plant


def conversation(question: str, answer: str, line: int = 1) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)), f"rows.jsonl:{line}")


def found(rows: list[Conversation], similarity: float | None = 0.8) -> Duplicates:
    duplicates = Duplicates(rows, similarity)
    duplicates.find()
    return duplicates


@pytest.fixture(scope="module")
def flashcards() -> list[Conversation]:
    return read_conversations(source_file(Source(path="sample:flashcards")), "qa")


@pytest.fixture(scope="module")
def corpus(flashcards: list[Conversation]) -> list[Conversation]:
    """Distinct rows, and rows with more and more words changed: every similarity occurs."""
    shares = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15)
    return [*flashcards[:80], *(row for share in shares for row in plant(flashcards[:80], edited(share)))]


def true_pairs(duplicates: Duplicates, similarity: float) -> set[tuple[int, int]]:
    count = len(duplicates.rows)
    grams = [duplicates.grams(row) for row in range(count)]
    return {
        (one, other) for one, other in combinations(range(count), 2) if jaccard(grams[one], grams[other]) >= similarity
    }


@pytest.mark.parametrize("similarity", [0.6, 0.8, 0.95])
def test_what_is_found_is_what_comparing_every_pair_gives(corpus: list[Conversation], similarity: float) -> None:
    duplicates = found(corpus, similarity)
    root = duplicates.similar.root
    pairs = true_pairs(duplicates, similarity)
    pairs = {
        pair for pair in pairs if not {*pair} & {row for row, (_, near) in duplicates.partners.items() if near == 1}
    }
    together = sum(root(one) == root(other) for one, other in pairs)
    assert len(pairs) > 20
    assert together >= 0.99 * len(pairs)
    wanted = Groups(len(corpus))
    for one, other in pairs:
        wanted.merge(one, other)
    assert all(wanted.root(row) == wanted.root(root(row)) for row in range(len(corpus)))
    kept = {row for row in range(len(corpus)) if row not in duplicates.partners}
    assert all(
        say_the_same(corpus[row], corpus[other], duplicates.known) for row, (other, _) in duplicates.partners.items()
    )
    assert all(other in kept for other, _ in duplicates.partners.values())


def test_no_distinct_row_is_a_duplicate(flashcards: list[Conversation]) -> None:
    assert found(flashcards).partners == {}


@pytest.mark.parametrize("name", ["case", "punctuation", "word swaps", "5 % of words"])
def test_planted_near_duplicates_are_found(flashcards: list[Conversation], name: str) -> None:
    planted = plant(flashcards, EDITS[name])
    partners = found([*flashcards, *planted]).partners
    hits = sum(partners.get(len(flashcards) + number, (-1, 0))[0] == number for number in range(len(planted)))
    assert hits / len(planted) > {"case": 0.999, "punctuation": 0.95, "word swaps": 0.7, "5 % of words": 0.3}[name]
    assert all(abs(row - other) == len(flashcards) for row, (other, _) in partners.items())


def test_exact_copies_are_found_where_near_ones_are_not_looked_for() -> None:
    rows = [conversation("a?", "b"), conversation("A?", "b"), conversation("a?", "b"), conversation("a?", "c")]
    assert found(rows, None).partners == {2: (0, 1.0)}
    assert found(rows, 1.0).partners == {1: (0, 1.0), 2: (0, 1.0)}


def test_reasoning_makes_another_row() -> None:
    plain, reasoned = Message("assistant", "Yes."), Message("assistant", "Yes.", "Because the valve is narrow.")
    rows = [Conversation((Message("user", "Is it?"), answer), "x:1") for answer in (plain, reasoned)]
    assert found(rows).partners == {}


def test_equal_questions_get_equal_hashes() -> None:
    rows = [conversation("What is anaemia?", "x y z"), conversation("what is ANAEMIA", "q r s")]
    questions = found(rows).questions
    assert questions[0] == questions[1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_equal_runs_are_all_rows_that_share_a_key(keys: list[int]) -> None:
    runs = list(rows_by_key(np.array(keys, dtype=np.uint64)))
    wanted = {key: [row for row, other in enumerate(keys) if other == key] for key in keys}
    assert sorted(runs) == sorted(rows for rows in wanted.values() if len(rows) > 1)


@given(st.integers(2, 40), st.data())
def test_a_group_is_known_by_its_earliest_row(count: int, data: st.DataObject) -> None:
    groups, sets = Groups(count), [{row} for row in range(count)]
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=30))
    for one, other in pairs:
        groups.merge(one, other)
        merged = sets[one] | sets[other]
        for row in merged:
            sets[row] = merged
    assert [groups.root(row) for row in range(count)] == [min(each) for each in sets]


def test_a_copy_of_groups_is_its_own() -> None:
    groups = Groups(3)
    copy = groups.copy()
    copy.merge(0, 2)
    assert (groups.root(2), copy.root(2)) == (2, 0)


def gram_hashes(text: str) -> Hashes:
    return CommonText().grams([[content_key(text)]])[0]


@given(st.text(max_size=60))
def test_any_text_has_at_least_one_gram(text: str) -> None:
    assert len(gram_hashes(text)) >= 1


def test_grams_know_no_case_and_no_punctuation() -> None:
    assert np.array_equal(gram_hashes("Café au lait!"), gram_hashes("cafe\u0301 AU, lait"))
    assert not np.array_equal(gram_hashes("type 1 diabetes"), gram_hashes("type 2 diabetes"))


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_the_sketch_is_small_and_surely_finds_what_is_similar_enough(similarity: float) -> None:
    bands, rows = Sketcher(similarity).shape
    assert bands * rows <= 128
    assert 1 - (1 - min(similarity, 0.99) ** rows) ** bands >= 0.995


def test_sketches_meet_as_often_as_the_similarity_says() -> None:
    rng = np.random.default_rng(0)
    sketcher = Sketcher(0.8)
    bands, rows = sketcher.shape
    shared, pairs = 80, 300
    meetings = 0
    for _ in range(pairs):
        grams = rng.integers(0, 1 << 63, 120, dtype=np.uint64)
        one, other = grams[: shared + 20], np.concatenate([grams[:shared], grams[shared + 20 :]])
        keys, _ = sketcher.sketch([one, other])
        meetings += int((keys[:, 0] == keys[:, 1]).sum())
    expected = (shared / 120) ** rows
    assert meetings / (pairs * bands) == pytest.approx(expected, rel=0.25)


def test_batches_cover_everything_in_order() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("similarity", [0.6, 0.8])
def test_bits_pass_similar_texts_and_stop_most_others(similarity: float) -> None:
    rng = np.random.default_rng(1)
    sketcher = Sketcher(similarity)

    def differing(shared: int, grams: int = 200) -> int:
        drawn = rng.integers(0, 1 << 63, 2 * grams - shared, dtype=np.uint64)
        _, bits = sketcher.sketch([drawn[:grams], np.concatenate([drawn[:shared], drawn[grams:]])])
        return int(np.bitwise_count(bits[0] ^ bits[1]).sum())

    shared = round(2 * 200 * similarity / (1 + similarity))  # of 200 each, for exactly that similarity
    assert sum(differing(shared) > sketcher.most_differing_bits for _ in range(300)) <= 1
    assert sum(differing(90) > sketcher.most_differing_bits for _ in range(300)) > (290 if similarity == 0.8 else 20)
