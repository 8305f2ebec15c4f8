"""Runs the rows of a proof through a file: each prompt once, then the held-out and the greedy answer behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.proof.divergence import log_softmax
from export.proof.heldout import HeldOut
from export.proof.reading import Batch, Logits, Reader, Text, Wave, batch_tokens, plan_reading, wave_tokens
from export.proof.reading_results import KeptLogProbs, ReadingResults, fits
from export.proof.rows import ANSWER_TOKENS, LONGEST_PROMPT, Row, prompt_text, proof_rows
from export.proof.trained import Trained
from gladstone.errors import ArtifactError
from gladstone.llamacpp.model import Model


@dataclass(frozen=True)
class Evaluated:
    """What a file computes of a row: logits (T, V) float32 after each token of prompt and answer.

    The shared prefix has none. `greedy` is the file's greedy answer, empty if none was decoded, and `greedy_logits`
    (G, V) are those from which each of its tokens was chosen; `ended` says whether the last one ends it.
    """

    row: Row
    logits: Logits
    greedy: list[int]
    greedy_logits: Logits
    ended: bool


class FileRows:
    """Runs the rows of a proof through a file: each prompt once, then the held-out and the greedy answer behind it."""

    def __init__(self, model: Model, trained: Trained, results: ReadingResults | None) -> None:
        self.rows: list[Row] = proof_rows(trained)
        if not self.rows:
            raise ArtifactError(f"of {len(trained.rows)} rows none has a prompt of 1 to {LONGEST_PROMPT} tokens.")
        self._measures = results is not None
        self.texts = [prompt_text(model, row.prompt, row.answer) for row in self.rows]
        self.plan = plan_reading(self.texts, batch_tokens(model, self.texts), ANSWER_TOKENS, wave_tokens(model))
        self._keeps = results is not None and results.keeps and fits(self.texts, model.vocab_size)
        self._kept = KeptLogProbs(np.zeros((0, model.vocab_size), np.float32))
        self._nats: list[float] = []

    def open(self, reader: Reader) -> Logits:
        """Logits (T, V) float32 of the prefix that all prompts share."""
        logits = np.concatenate([reader.read(batch).copy() for batch in self.plan.opening.batches])
        if self._keeps:
            self._kept = KeptLogProbs(log_softmax(logits, "float32"))
        return logits

    def read(self, reader: Reader, wave: Wave) -> list[Evaluated]:
        """The rows of a wave, evaluated."""
        prompts = read_prompts(reader, wave)
        answers: Mapping[int, list[Logits]] = {}
        if wave.answers:
            reader.branch(wave, self.texts)
            answers = _by_text(reader, wave, wave.answers)
            reader.cut_off(wave)
        asked = {number: prompts[number] for number in wave.texts if self.rows[number].asked}
        greedy = write_answers(reader, wave, self.texts, asked)
        found = []
        for number in wave.texts:
            logits = np.concatenate([*prompts[number], *answers.get(number, ())])
            if self._measures:
                self._measure(self.texts[number], logits)
            answer, chosen = greedy.get(number, ([], logits[:0]))
            chosen = chosen[len(chosen) - len(answer) :].copy()
            ended = bool(answer) and reader.model.ends_generation(answer[-1])
            found.append(Evaluated(self.rows[number], logits, answer, chosen, ended))
        return found

    def _measure(self, text: Text, logits: Logits) -> None:
        """Add the loss of a held-out answer, and keep the row's log-probabilities if they are wanted."""
        tokens = text.tokens[text.answer_at :]
        if not tokens:
            return
        likely = log_softmax(logits, "float32")
        at = text.answer_at - 1 - self.plan.shared + np.arange(len(tokens))
        self._nats.append(-float(likely[at, tokens].astype(np.float64).sum()))
        if self._keeps:
            self._kept.add(likely)

    def finish(self, results: ReadingResults) -> None:
        """Store the held-out loss and the kept log-probabilities in `results`."""
        counts = tuple(len(row.answer) for row in self.rows if row.answer)
        results.held_out = HeldOut(tuple(self._nats), counts) if counts else None
        results.kept = self._kept if self._keeps and counts else None


def greedy(
    reader: Reader, wave: Wave, texts: Sequence[Text], most: int = ANSWER_TOKENS
) -> list[tuple[list[int], Logits]]:
    """Prefill the prompts of a wave and decode greedy answers, in the form of `write_answers`."""
    return [*write_answers(reader, wave, texts, read_prompts(reader, wave), most).values()]


def read_prompts(reader: Reader, wave: Wave) -> dict[int, list[Logits]]:
    """Prefill the prompts of a wave; returns logits (T, V) float32 of each prompt, in parts."""
    reader.begin(wave)
    return _by_text(reader, wave, wave.prompts)


def _by_text(reader: Reader, wave: Wave, batches: Sequence[Batch]) -> dict[int, list[Logits]]:
    rows: dict[int, list[Logits]] = {number: [] for number in wave.texts}
    for batch in batches:
        logits = reader.read(batch)
        for number in dict.fromkeys(batch.texts.tolist()):
            rows[number].append(logits[batch.texts == number])
    return rows


def write_answers(
    reader: Reader,
    wave: Wave,
    texts: Sequence[Text],
    prompts: Mapping[int, list[Logits]],
    most: int = ANSWER_TOKENS,
) -> dict[int, tuple[list[int], Logits]]:
    """Decode greedy answers to prefilled prompts: token ids with their end token, and logits (T, V) float32.

    The logits follow every token after the shared prefix, prompt and answer, except the last.
    """
    slots = dict(zip(wave.texts, wave.sequences, strict=True))
    rows = {number: [*parts] for number, parts in prompts.items()}
    answers: dict[int, list[int]] = {number: [] for number in rows}
    going = {number: slots[number] for number in rows}
    while going:
        for number in going:
            answers[number].append(int(rows[number][-1][-1].argmax()))
        going = {number: slot for number, slot in going.items()
                 if len(answers[number]) < most and not reader.model.ends_generation(answers[number][-1])}  # fmt: skip
        if going:
            places = [texts[number].answer_at + len(answers[number]) - 1 for number in going]
            logits = reader.step([answers[number][-1] for number in going], places, [*going.values()])
            for place, number in enumerate(going):
                rows[number].append(logits[place : place + 1].copy())
    return {number: (answers[number], np.concatenate(rows[number])) for number in rows}
