"""The demo never shows a degenerate answer as the tuned model's result."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gladstone.chat.repetition import repeats_itself
from gladstone.demo import describe_answer, find_fault, measured_lines

SAMPLES = Path(__file__).parents[2] / "finetune" / "samples"
GOOD = "Problem: Cough with fever\nSince: Monday\nUrgency: same day\nAdvice: Drink, rest and call the practice."
LOOPS = [
    "The heart pumps. " + "It is a muscle of the body. " * 5,
    "1. Rest and drink. 2. Rest and drink. 3. Rest and drink. 4. Rest and",
    "Problem: Cough\n" * 4,
    "Ja, das ist " + "sehr " * 20,
    "痛み" * 20,
    "Advice: call." + "!" * 60,
    "A cold. " + " ".join(f"The patient has {what} and the patient has {what}." for what in ("a cough", "a fever") * 3),
]


@pytest.mark.parametrize("text", LOOPS)
def test_a_loop_is_never_shown_as_the_tuned_models_answer(text: str) -> None:
    shown = describe_answer(text, ended=False, base=False)
    assert text[:12] not in shown
    assert "repeats itself" in shown
    assert "repeats itself" in describe_answer(text, ended=False, base=True).splitlines()[-1]


@given(st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=60), st.integers(3, 9), st.text())
def test_what_ends_in_the_same_part_again_and_again_repeats_itself(part: str, times: int, before: str) -> None:
    repeated = part * max(times, -(-30 // len(part.casefold())))
    assert repeats_itself(f"{before} {repeated}")


def test_no_answer_of_the_embedded_rows_counts_as_a_loop() -> None:
    rows = [json.loads(line) for name in ("triage", "flashcards", "reasoning")
            for line in (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]  # fmt: skip
    answers = [str(row.get("answer") or row.get("response") or row) for row in rows]
    assert [text for text in answers if repeats_itself(text)] == []


def test_an_empty_answer_is_reported_and_a_good_one_is_shown() -> None:
    assert describe_answer(GOOD, ended=True, base=False) == GOOD
    assert "is empty" in describe_answer("", ended=True, base=False)
    assert describe_answer("It is a cold.", ended=True, base=False) == "It is a cold.\n(not in the form)"
    assert find_fault(GOOD) == ""


def report(answers: list[str]) -> dict[str, Any]:
    """What the benchmark leaves, as far as the demo reads it: the base loops always."""
    results = {name: {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4} for name in ("form", "form.urgency", "perplexity")}
    items = [{"models": {"base": {"answer": {"text": LOOPS[0]}}, "tuned": {"answer": {"text": text}}}}
             for text in answers]  # fmt: skip
    return {"models": [{"label": name, "results": results} for name in ("base", "tuned")], "items": items}


@pytest.mark.parametrize(
    ("looping", "lines"),
    [
        (0, []),
        (1, ["repeated or empty    4 of 4 → 1 of 4 answers"]),
        (2, ["The tuned model's answers repeat themselves or are empty: it learnt nothing useful.",
             "repeated or empty    4 of 4 → 2 of 4 answers"]),
    ],
)  # fmt: skip
def test_a_tuned_model_that_loops_is_the_first_result(looping: int, lines: list[str]) -> None:
    found = measured_lines(report([LOOPS[1]] * looping + [GOOD] * (4 - looping)))
    assert found[: len(lines)] == lines
    assert found[len(lines)].startswith("answers in the form")
