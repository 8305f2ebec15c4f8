"""Texts read together compute what each computes alone, and each token once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.proof.duration import proof_s, token_s
from export.proof.file_rows import greedy
from export.proof.reading import CONTEXT_TOKENS, SEQUENCES, WAVE_TOKENS, Reader, Text, plan_reading, read_all
from export.proof.reading_results import KeptLogProbs
from export.proof.reference import Reference, place_reference
from export.proof.rows import ANSWER_TOKENS, GREEDY, prompt_text, proof_rows
from export.proof.trained import Trained
from gladstone.chat.messages import Conversation, Message
from gladstone.commands.progress import Silent
from gladstone.llamacpp.context import Context
from gladstone.llamacpp.model import Model

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=200)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=20), st.integers(1, 64), st.integers(0, 40))
def test_a_plan_reads_every_token_of_every_text_once_and_what_all_begin_with_once(
    rows: list[tuple[list[int], list[int]]], batch_tokens: int, room: int
) -> None:
    texts = [Text([*prompt, *answer], len(prompt)) for prompt, answer in rows]
    plan = plan_reading(texts, batch_tokens, room)
    opening = [token for batch in plan.opening.batches for token in batch.tokens.tolist()]
    read: list[list[int]] = [list(opening) for _ in texts]
    for wave in plan.waves:
        assert len(wave.texts) <= SEQUENCES
        assert (
            len(wave.texts) == 1
            or sum(
                text.answer_at - plan.shared + max(len(text.tokens) - text.answer_at, room)
                for text in map(texts.__getitem__, wave.texts)
            )
            <= WAVE_TOKENS
        )
        for batch in wave.batches:
            assert 0 < len(batch.tokens) <= batch_tokens
            for token, position, sequence, number in zip(
                batch.tokens, batch.positions, batch.sequences, batch.texts, strict=True
            ):
                assert wave.sequences[wave.texts.index(number)] == sequence
                assert position == len(read[number])
                read[number].append(int(token))
    assert read == [text.tokens for text in texts]
    assert all(plan.shared < text.answer_at for text in texts)
    assert plan.read == sum(len(text.tokens) for text in texts) - plan.shared * (len(texts) - 1)


@given(st.lists(st.tuples(TOKENS, TOKENS | st.just([])), min_size=1, max_size=20), st.integers(1, 64))
def test_prompts_and_answers_read_apart_are_the_whole_texts(
    rows: list[tuple[list[int], list[int]]], batch_tokens: int
) -> None:
    texts = [Text([*prompt, *answer], len(prompt)) for prompt, answer in rows]
    plan = plan_reading(texts, batch_tokens, ANSWER_TOKENS)
    for wave in plan.waves:
        read: dict[int, list[tuple[int, int]]] = {number: [] for number in wave.texts}
        for batches, slots in ((wave.prompts, wave.sequences), (wave.answers, wave.branches)):
            for batch in batches:
                assert 0 < len(batch.tokens) <= batch_tokens
                for token, position, slot, number in zip(
                    batch.tokens, batch.positions, batch.sequences, batch.texts, strict=True
                ):
                    assert slots[wave.texts.index(number)] == slot
                    assert (position < texts[number].answer_at) == (batches is wave.prompts)
                    read[number].append((int(position), int(token)))
        for number in wave.texts:
            assert read[number] == [*enumerate(texts[number].tokens)][plan.shared :]
        assert {*wave.sequences}.isdisjoint(wave.branches)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=20), st.integers(1, 64), st.integers(0, 3))
def test_what_is_kept_is_found_again_for_every_token_of_every_batch(
    rows: list[tuple[list[int], list[int]]], batch_tokens: int, opened: int
) -> None:
    """Also where the file that was kept had less in common to begin with."""
    texts = [Text([*prompt, *answer], len(prompt)) for prompt, answer in rows]
    plan = plan_reading(texts, batch_tokens)
    opening = min(opened, plan.shared)
    kept = KeptLogProbs(np.array([[-1, position] for position in range(opening)], np.float32).reshape(-1, 2))
    for number, text in enumerate(texts):
        kept.add(np.array([[number, position] for position in range(opening, len(text.tokens))], np.float32))
    for wave in (plan.opening, *plan.waves):
        for batch in wave.batches:
            found = kept.rows(batch)
            assert found[:, 1].tolist() == batch.positions.tolist()
            behind = batch.positions >= opening
            assert found[behind, 0].tolist() == np.maximum(batch.texts, 0)[behind].tolist()


def test_the_first_32_prompts_and_answers_are_read_the_longest_first_and_some_get_greedy_answers(
    trained: Trained,
) -> None:
    rows = [
        Conversation((Message("user", f"Row {number}?"), Message("assistant", "" if number % 8 == 0 else "Yes.")), "")
        for number in range(50)
    ]
    rows[5] = Conversation((Message("user", "Row 5, which is longer?"), Message("assistant", "Yes.")), "")
    long = Conversation((Message("user", "word " * 2_000), Message("assistant", "No.")), "")
    subject = dataclasses.replace(trained, rows=[long, *rows])
    found = proof_rows(subject)
    prompts = [subject.prompt(row, ANSWER_TOKENS) for row in rows]
    read = [at for at in range(50) if at < 32 or at % 8][:36]
    assert [row.prompt for row in found] == [prompts[at] for at in (5, *(at for at in read if at != 5))]
    assert sum(bool(row.answer) for row in found) == 32
    assert [row.asked for row in found] == [True] * GREEDY + [False] * (36 - GREEDY)


def alone(context: Context, tokens: list[int]) -> np.ndarray:
    context.forget()
    context.decode(tokens, 0, all_logits=True)
    return context.all_logits(len(tokens)).copy()


@pytest.mark.slow
def test_texts_read_together_have_the_distributions_that_each_has_alone(f16: Path, trained: Trained) -> None:
    prompts = [trained.prompt(row, ANSWER_TOKENS) for row in trained.rows][:10]
    with Model(f16) as model, Context(model, CONTEXT_TOKENS) as context:
        texts = [prompt_text(model, prompt) for prompt in prompts]
        plan = plan_reading(texts, 512)
        assert plan.shared > 0
        wanted = [alone(context, prompt) for prompt in prompts]
        with Reader(model, plan) as reader:
            for batch, (logits,) in read_all([reader], plan, Silent()):
                for place, number, row in zip(batch.positions, batch.texts, logits, strict=True):
                    assert np.abs(row - wanted[max(number, 0)][place]).max() < 0.05


@pytest.mark.slow
def test_answers_written_together_are_those_that_each_prompt_gets_alone(f16: Path, trained: Trained) -> None:
    prompts = [trained.prompt(row, ANSWER_TOKENS) for row in trained.rows][:6]
    with Model(f16) as model:
        texts = [prompt_text(model, prompt) for prompt in prompts]
        together = plan_reading(texts, 512, ANSWER_TOKENS)
        assert [len(wave.texts) for wave in together.waves] == [1, len(prompts) - 1]
        with Reader(model, together, SEQUENCES * ANSWER_TOKENS) as reader:
            for batch in together.opening.batches:
                reader.read(batch)
            found = [each for wave in together.waves for each in greedy(reader, wave, texts)]
        for text, (answer, logits) in zip(texts, found, strict=True):
            plan = plan_reading([text], 512, ANSWER_TOKENS)
            with Reader(model, plan, ANSWER_TOKENS) as reader:
                single, whole = greedy(reader, plan.waves[0], [text])[0]
            steps = whole[-len(single) :]
            assert len(logits) == len(text.tokens) - together.shared + len(answer) - 1
            same = next(
                (at for at, pair in enumerate(zip(answer, single, strict=False)) if pair[0] != pair[1]), len(single)
            )
            if same < len(single):  # the two candidates are as good as each other
                assert steps[same].max() - steps[same][answer[same]] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0, 6])
def test_torch_gives_texts_together_the_logits_that_each_has_alone(trained: Trained, shared: int) -> None:
    reference = Reference(trained)
    prompts = [trained.prompt(row, ANSWER_TOKENS) for row in trained.rows][:4]
    answers = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
    assert len({tuple(prompt[:shared]) for prompt in prompts}) == 1
    if shared:
        opening = reference.opening(prompts[0][:shared])
        assert np.abs(opening - reference.logits([prompts[0]], [answers[0]])[0][:shared]).max() < 1e-3
    for prompt, answer, behind in zip(prompts, answers, reference.logits(prompts, answers, shared), strict=True):
        single = reference.logits([prompt], [answer])[0]
        together = np.concatenate([single[:shared], behind])
        assert together.shape == single.shape == (len(prompt) + len(answer) - 1, single.shape[1])
        assert np.abs(together - single).max() < 1e-3


@pytest.mark.slow
def test_the_time_of_a_proof_is_told_where_there_are_rows_also_of_a_file_with_too_few_entries(
    f16: Path, trained: Trained
) -> None:
    with Model(f16) as model:
        place = place_reference(trained)
        told = proof_s(model, trained, 2, place)
        assert told is not None
        assert told > token_s(model, [10**7, 1]) > 0
        assert proof_s(model, dataclasses.replace(trained, rows=()), 2, place) is None
