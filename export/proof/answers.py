"""Checks that a file computes what the trained model computes: next-token distributions and greedy answers.

Names torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.proof.check import Check
from export.proof.divergence import kl_divergence, log_softmax
from export.proof.grown import added_tokens, check_rows
from export.proof.heldout import HeldOut
from export.proof.reading import (
    SEQUENCES,
    WAVE_BYTES,
    Batch,
    Logits,
    Reader,
    Text,
    Wave,
    batch_tokens,
    plan_reading,
    wave_tokens,
)
from export.proof.reading_results import KeptLogProbs, ReadingResults, fits
from export.proof.reference import Reference
from export.proof.rows import ANSWER_TOKENS, LONGEST_PROMPT, Row, ordered_rows, prompt_text
from export.proof.trained import Trained
from gladstone.commands.progress import Progress
from gladstone.errors import ArtifactError
from gladstone.llamacpp.lora import Lora
from gladstone.llamacpp.model import Model

TOP1_LIMIT = 0.99
TIE_LOGITS = 0.1  # logits closer than this are a tie: F16 activations move logits by about 0.03
# mean KL in nats: F16 against float32 is near 1e-5, a wrong scale or rope base far above. The limits of quantised
# files hide smaller faults: the proof of the F16 file is the sharp one
MEAN_KL_LIMIT = 1e-3
QUANTISED_KL_LIMIT = {"Q8": 0.02, "Q6": 0.05, "Q5": 0.1, "Q4": 0.4, "IQ4": 0.4, "MXFP4": 0.4, "Q3": 1.0, "IQ3": 1.0}
FEWEST_BITS_KL_LIMIT = 4.0
CURE = (
    "The file does not compute with the trained weights: wrong merge scale or rope, or a missing or transposed tensor. "
    "Export again; a file made by another tool has to be made again there."
)


def check_answers(
    path: Path, quantisation: str, trained: Trained, progress: Progress, loras: Sequence[Lora] = ()
) -> list[Check]:
    """The checks of distributions and greedy answers. Raises ArtifactError if no prompt is short enough."""
    with Model(path, loras=loras) as model:
        return compare_answers(model, quantisation, trained, progress)


def compare_answers(
    model: Model, quantisation: str, trained: Trained, progress: Progress, results: ReadingResults | None = None
) -> list[Check]:
    """As `check_answers` for an open file; fills `results` with the held-out loss behind the same prompts."""
    reading = _Reading(model, trained, results)
    reference = Reference(trained)
    comparison, asked = Comparison(), sum(row.asked for row in reading.rows)
    with Reader(model, reading.plan, SEQUENCES * ANSWER_TOKENS, branches=results is not None) as reader:
        shared = reading.plan.shared
        if shared:  # the shared prefix has the same distributions in every prompt
            ours = reading.open(reader)
            comparison.add_rows(ours, reference.opening(reading.texts[0].tokens[:shared]), times=asked)
        done = 0
        for answers in _together(reading, reader, streamed=reference.placement.streamed):
            prompts = [reading.rows[number].prompt for number in answers]
            theirs = reference.logits(prompts, [answer for answer, _ in answers.values()], shared)
            for (answer, ours), their in zip(answers.values(), theirs, strict=True):
                comparison.add(ours, their, answer, ended=model.ends_generation(answer[-1]))
            done += len(answers)
            progress.update(done / asked, f"greedy answer {done} of {asked}")
    if results is not None:
        reading.finish(results)
    checks = comparison.checks(reference.dtype, quantisation)
    added = added_tokens(trained)
    return [*checks, check_rows(model.path, reference.model, added)] if added else checks


def _together(reading: "_Reading", reader: Reader, *, streamed: bool) -> Iterator[dict[int, tuple[list[int], Logits]]]:
    """The greedy answers of each wave; of several waves where torch reads all layers once for what it gets."""
    waiting: dict[int, tuple[list[int], Logits]] = {}
    for wave in reading.plan.waves:
        waiting |= reading.read(reader, wave)
        last, size = wave is reading.plan.waves[-1], sum(logits.nbytes for _, logits in waiting.values())
        if waiting and (last or not streamed or size >= WAVE_BYTES // 2):
            yield waiting
            waiting = {}


class _Reading:
    """Runs the rows of a proof through a file: each prompt once, then the held-out and the greedy answer behind it."""

    def __init__(self, model: Model, trained: Trained, results: ReadingResults | None) -> None:
        self.rows: list[Row] = ordered_rows(trained)
        if not any(row.asked for row in self.rows):
            raise ArtifactError(f"of {len(trained.rows)} rows none has a prompt of 1 to {LONGEST_PROMPT} tokens.")
        self._measures = results is not None
        self.texts = [prompt_text(model, row.prompt, row.answer if self._measures else ()) for row in self.rows]
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

    def read(self, reader: Reader, wave: Wave) -> dict[int, tuple[list[int], Logits]]:
        """The greedy answers of a wave's asked texts, in the form of `write_answers`."""
        found = read_prompts(reader, wave)
        if wave.answers:
            self._read_answers(reader, wave, found)
        asked = [number for number in wave.texts if self.rows[number].asked]
        return write_answers(reader, wave, self.texts, {number: found[number] for number in asked})

    def _read_answers(self, reader: Reader, wave: Wave, prompts: dict[int, list[Logits]]) -> None:
        reader.branch(wave, self.texts)
        answers = _by_text(reader, wave, wave.answers)
        reader.cut_off(wave)
        for number in wave.texts:
            text, parts = self.texts[number], [*prompts[number], *answers[number]]
            tokens = text.tokens[text.answer_at :]
            if not tokens:
                continue
            likely = log_softmax(np.concatenate(parts), "float32")
            at = text.answer_at - 1 - self.plan.shared + np.arange(len(tokens))
            self._nats.append(-float(likely[at, tokens].astype(np.float64).sum()))
            if self._keeps:
                self._kept.add(likely)

    def finish(self, results: ReadingResults) -> None:
        """Store the held-out loss and the kept log-probabilities in `results`."""
        counts = tuple(len(row.answer) for row in self.rows if row.answer)
        results.held_out = HeldOut(tuple(self._nats), counts) if counts else None
        results.kept = self._kept if self._keeps and counts else None


def kl_limit(quantisation: str) -> float:
    """Limit of the mean KL, in nats, for a file of this type."""
    if quantisation in ("F16", "F32", "BF16"):
        return MEAN_KL_LIMIT if quantisation != "BF16" else 10 * MEAN_KL_LIMIT
    limits = (limit for start, limit in QUANTISED_KL_LIMIT.items() if quantisation.startswith(start))
    return next(limits, FEWEST_BITS_KL_LIMIT)


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


class Comparison:
    """Accumulates the agreement of two models over prompts."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[np.float64]] = []
        self._same_top: list[npt.NDArray[np.bool_]] = []
        self._near_top: list[npt.NDArray[np.bool_]] = []
        self._answers, self._equal, self._ties, self._ended = 0, 0, 0, 0
        self._widest = 0.0

    def add_rows(self, ours: Logits, theirs: Logits, times: int = 1) -> None:
        """Add logits (T, V) that `times` texts share."""
        width = min(ours.shape[1], theirs.shape[1])
        ours, theirs = ours[:, :width], theirs[:, :width]
        ours_top, theirs_top = ours.argmax(axis=1), theirs.argmax(axis=1)
        rows = np.arange(len(ours))
        near = theirs[rows, theirs_top] - theirs[rows, ours_top] <= TIE_LOGITS
        for kept, found in (
            (self._kl, kl_divergence(theirs, ours)),
            (self._same_top, theirs_top == ours_top),
            (self._near_top, near),
        ):
            kept.append(np.tile(found, times))

    def add(self, ours: Logits, theirs: Logits, answer: list[int], *, ended: bool) -> None:
        """Add one answer. `ours` is (T, V); `theirs` may have a wider vocabulary (padding) and one more position."""
        width = min(ours.shape[1], theirs.shape[1])
        theirs = theirs[: len(ours), :width]
        self.add_rows(ours, theirs)
        self._answers += 1
        self._ended += ended
        steps = theirs[-len(answer) :]
        # gap by which torch prefers another token; no gap at any step means equal greedy answers
        gaps = steps.max(axis=1) - steps[np.arange(len(answer)), answer]
        self._widest = max(self._widest, float(gaps.max()))
        self._equal += bool((gaps == 0).all())
        self._ties += bool((gaps > 0).any() and (gaps <= TIE_LOGITS).all())

    def checks(self, dtype: str, quantisation: str) -> list[Check]:
        """The two checks; different greedy answers fail only files of 16 or 32 bit."""
        kl, same = np.concatenate(self._kl), float(np.concatenate(self._same_top).mean())
        # in a flat distribution (a small or untrained model) many tokens tie with the best
        but_for_ties = float(np.concatenate(self._near_top).mean())
        mean, limit = float(kl.mean()), kl_limit(quantisation)
        plain = quantisation in ("F16", "F32")
        spread = {"mean_kl_nats": mean, "p999_kl_nats": float(np.quantile(kl, 0.999)), "max_kl_nats": float(kl.max())}
        spread |= {"positions": len(kl), "top1_agreement": same, "top1_agreement_but_for_ties": but_for_ties}
        near = mean <= limit and (but_for_ties >= TOP1_LIMIT or not plain)
        top = f"{but_for_ties:.2%} but for ties" + (f", limit {TOP1_LIMIT:.0%}" if plain else "")
        detail = (
            f"mean KL {mean:.2e} nats (limit {limit:.0e}), 99.9 % below {spread['p999_kl_nats']:.1e}, "
            f"top-1 agreement {same:.2%} ({top}) over {len(kl):,} tokens"
        )
        different = self._answers - self._equal - self._ties
        answers = {
            "prompts": self._answers,
            "equal": self._equal,
            "equal_but_for_ties": self._ties,
            "different": different,
            "widest_gap_logits": self._widest,
            "ended_by_the_model": self._ended,
        }
        told = f"{self._equal} of {self._answers} greedy answers and stops equal torch's"
        told += f", {self._ties} but for ties (< {TIE_LOGITS} logits)" if self._ties else ""
        told += f", {different} differ" if different else ""
        return [
            Check("distributions", near, detail, spread | {"torch_dtype": dtype, "limit": limit}, CURE),
            Check("greedy answers", different == 0 or not plain, told, answers, CURE),
        ]
