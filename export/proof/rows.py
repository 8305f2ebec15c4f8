"""The rows of a proof as tokens: prompts to answer, and held-out answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from export.proof.grown import asked_of
from export.proof.reading import CONTEXT_TOKENS, Text
from export.proof.trained import Trained
from gladstone.llamacpp.model import Model

PROMPTS, ANSWER_TOKENS = 32, 32
LONGEST_PROMPT = CONTEXT_TOKENS // 2 - ANSWER_TOKENS


@dataclass(frozen=True)
class Row:
    """A prompt that leaves room for an answer, the expected answer, and whether a greedy answer is decoded.

    `answer` is empty if the row has none or is not measured.
    """

    prompt: list[int]
    answer: list[int]
    asked: bool


def proof_rows(trained: Trained) -> list[Row]:
    """The first 32 prompts for greedy answers, and the first 32 rows with an answer for the loss.

    Prompts with tokens added to the base's vocabulary come first.
    """
    added = (trained.prompt(row, ANSWER_TOKENS) for row in asked_of(trained))
    found = [Row(prompt, [], asked=True) for prompt in added if 0 < len(prompt) <= LONGEST_PROMPT]
    asked, measured = len(found), 0
    for row in trained.rows:
        if asked >= PROMPTS and measured == PROMPTS:
            break
        prompt = trained.prompt(row, ANSWER_TOKENS)
        if not 0 < len(prompt) <= LONGEST_PROMPT:
            continue
        answer = trained.tokenizer.encode(trained.answer_text(row)) if measured < PROMPTS else []
        answer = answer[ANSWER_TOKENS if row.is_text else 0 :][: CONTEXT_TOKENS // 2]
        if asked < PROMPTS or answer:
            found.append(Row(prompt, answer, asked=asked < PROMPTS))
        asked, measured = asked + (asked < PROMPTS), measured + bool(answer)
    return found


def ordered_rows(trained: Trained) -> list[Row]:
    """The rows of `proof_rows`, measured rows first, sorted by prompt length."""
    return sorted(proof_rows(trained), key=lambda row: (not row.answer, len(row.prompt)))


def sequences_of(trained: Trained) -> list[tuple[list[int], list[int]]]:
    """Up to 32 (prompt, answer) pairs of token ids; a plain text is split in two."""
    return [(row.prompt, row.answer) for row in proof_rows(trained) if row.answer]


def prompt_text(model: Model, prompt: list[int], answer: Sequence[int] = ()) -> Text:
    """A prompt, and an answer if there is one, as the model's encoder or decoder gets them."""
    if model.has_encoder:
        return Text([model.decoder_start, *answer], 1, prompt)
    return Text([*prompt, *answer], len(prompt))
