"""The rows of a proof as tokens: prompts to answer, and held-out answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from export.proof.grown import asked_of
from export.proof.reading import CONTEXT_TOKENS, Text
from export.proof.trained import Trained
from gladstone.llamacpp.model import Model

PROMPTS, ANSWER_TOKENS = 32, 32
GREEDY = 8  # rows with a greedy answer
LONGEST_PROMPT = CONTEXT_TOKENS // 2 - ANSWER_TOKENS


@dataclass(frozen=True)
class Row:
    """A prompt that leaves room for an answer, the expected answer, and whether a greedy answer is decoded.

    `answer` is empty if the row has none or is not measured.
    """

    prompt: list[int]
    answer: list[int]
    asked: bool = False


def proof_rows(trained: Trained) -> list[Row]:
    """The first 32 prompts, and the first 32 rows with an answer, in the order of their evaluation.

    Prompts with tokens added to the base's vocabulary come first, then the longest row; they and the next rows get
    greedy answers.
    """
    added = [trained.prompt(row, ANSWER_TOKENS) for row in asked_of(trained)]
    rows = [Row(prompt, [], asked=True) for prompt in added if 0 < len(prompt) <= LONGEST_PROMPT]
    found = _first_rows(trained, PROMPTS - len(rows))
    if found:
        longest = max(found, key=lambda row: len(row.prompt) + len(row.answer))
        found = [longest, *(row for row in found if row is not longest)]
    return [*rows, *(replace(row, asked=place < GREEDY) for place, row in enumerate(found))]


def _first_rows(trained: Trained, prompts: int) -> list[Row]:
    """The first `prompts` rows whose prompts leave room for an answer, and the first 32 with an answer."""
    found: list[Row] = []
    measured = 0
    for row in trained.rows:
        if len(found) >= prompts and measured == PROMPTS:
            break
        prompt = trained.prompt(row, ANSWER_TOKENS)
        if not 0 < len(prompt) <= LONGEST_PROMPT:
            continue
        answer = trained.tokenizer.encode(trained.answer_text(row)) if measured < PROMPTS else []
        answer = answer[ANSWER_TOKENS if row.is_text else 0 :][: CONTEXT_TOKENS // 2]
        if len(found) < prompts or answer:
            found.append(Row(prompt, answer))
        measured += bool(answer)
    return found


def prompt_text(model: Model, prompt: list[int], answer: Sequence[int] = ()) -> Text:
    """A prompt, and an answer if there is one, as the model's encoder or decoder gets them."""
    if model.has_encoder:
        return Text([model.decoder_start, *answer], 1, prompt)
    return Text([*prompt, *answer], len(prompt))
