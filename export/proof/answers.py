"""Does the file compute what the trained model computes: distributions over the next token, and greedy answers?

Names torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.proof.grown import added_tokens, asked_of, check_rows
from export.proof.point import Point
from export.proof.reading import (
    CONTEXT_TOKENS,
    SEQUENCES,
    Logits,
    Reader,
    Text,
    Wave,
    batch_tokens,
    plan_reading,
    wave_tokens,
)
from export.proof.reference import Reference
from export.proof.trained import Trained
from gladstone.errors import ArtifactError
from gladstone.llama import Model
from gladstone.lora import Lora
from gladstone.progress import Progress

PROMPTS, ANSWER_TOKENS = 32, 32
ROWS_AT_ONCE = 16  # of logits in float64: as many as the processor's cache holds
TOP1_LIMIT = 0.99
TIE_LOGITS = 0.1  # candidates nearer than this may change places: F16 activations move logits by about 0.03
# mean KL in nats; F16 against float32 is near 1e-5, a wrong scale or rope base far above. What a quantised file may
# lose hides smaller faults: the proof of its F16 is the sharp one
MEAN_KL_LIMIT = 1e-3
QUANTISED_KL_LIMIT = {"Q8": 0.02, "Q6": 0.05, "Q5": 0.1, "Q4": 0.4, "IQ4": 0.4, "MXFP4": 0.4, "Q3": 1.0, "IQ3": 1.0}
FEWEST_BITS_KL_LIMIT = 4.0
CURE = (
    "The weights, or how they are used, are not those that were trained: merge strength, rope, a tensor that is "
    "missing or transposed. Export again; a file by another tool is at fault itself."
)


def check_answers(
    path: Path, quantisation: str, trained: Trained, progress: Progress, loras: Sequence[Lora] = ()
) -> list[Point]:
    """The distributions' point and the answers' point. Raises ArtifactError if no prompt is short enough."""
    reference = Reference(trained)
    prompts = sorted(prompts_of(trained), key=len)  # torch is given those of like length together
    comparison = Comparison()
    with Model(path, loras=loras) as model:
        texts = [prompt_text(model, prompt) for prompt in prompts]
        plan = plan_reading(texts, batch_tokens(model, texts), ANSWER_TOKENS, wave_tokens(model))
        with Reader(model, plan, SEQUENCES * ANSWER_TOKENS) as reader:
            if plan.shared:  # every prompt begins with it, and has the same distributions there
                ours = np.concatenate([reader.read(batch).copy() for batch in plan.opening.batches])
                comparison.add_rows(ours, reference.opening(prompts[0][: plan.shared]), times=len(prompts))
            for wave in plan.waves:
                written = greedy(reader, wave, texts)
                asked = [prompts[number] for number in wave.texts]
                theirs = reference.logits(asked, [answer for answer, _ in written], plan.shared)
                for (answer, ours), their in zip(written, theirs, strict=True):
                    comparison.add(ours, their, answer, ended=model.ends_generation(answer[-1]))
                done = wave.texts[-1] + 1
                progress.update(done / len(prompts), f"greedy answer {done} of {len(prompts)}")
    points = comparison.points(reference.dtype, quantisation)
    added = added_tokens(trained)
    return [*points, check_rows(path, reference.model, added)] if added else points


def kl_limit(quantisation: str) -> float:
    """How far the mean KL of a file of this type may be from the trained model."""
    if quantisation in ("F16", "F32", "BF16"):
        return MEAN_KL_LIMIT if quantisation != "BF16" else 10 * MEAN_KL_LIMIT
    limits = (limit for start, limit in QUANTISED_KL_LIMIT.items() if quantisation.startswith(start))
    return next(limits, FEWEST_BITS_KL_LIMIT)


def prompts_of(trained: Trained) -> list[list[int]]:
    """Up to 32 prompts that leave room for the answer, the first with the tokens that were added to the base's.

    Raises ArtifactError if there is none.
    """
    most = CONTEXT_TOKENS // 2 - ANSWER_TOKENS
    prompts = (trained.prompt(row, ANSWER_TOKENS) for row in trained.rows)
    short = [ids for ids in prompts if 0 < len(ids) <= most][:PROMPTS]
    added = [trained.prompt(row, ANSWER_TOKENS) for row in asked_of(trained)]
    short = [*(ids for ids in added if len(ids) <= most), *short][:PROMPTS]
    if not short:
        raise ArtifactError(f"of {len(trained.rows)} rows none has a prompt of 1 to {most} tokens.")
    return short


def prompt_text(model: Model, prompt: list[int], answer: Sequence[int] = ()) -> Text:
    """A prompt as the model reads it, with an answer if there is one already."""
    if model.has_encoder:
        return Text([model.decoder_start, *answer], 1, prompt)
    return Text([*prompt, *answer], len(prompt))


def greedy(
    reader: Reader, wave: Wave, texts: Sequence[Text], most: int = ANSWER_TOKENS
) -> list[tuple[list[int], Logits]]:
    """The greedy answers to a wave of prompts, their end tokens included.

    With each its logits (T, V) after every token behind the common opening that was read or written, but the last.
    """
    reader.begin(wave)
    rows: dict[int, list[Logits]] = {number: [] for number in wave.texts}
    for batch in wave.batches:
        logits = reader.read(batch)
        for number in dict.fromkeys(batch.texts.tolist()):
            rows[number].append(logits[batch.texts == number])
    answers: dict[int, list[int]] = {number: [] for number in wave.texts}
    going = dict(zip(wave.texts, wave.sequences, strict=True))
    while going:
        for number in going:
            answers[number].append(int(rows[number][-1][-1].argmax()))
        going = {number: slot for number, slot in going.items()
                 if len(answers[number]) < most and not reader.model.ends_generation(answers[number][-1])}  # fmt: skip
        if going:
            places = [len(texts[number].tokens) + len(answers[number]) - 1 for number in going]
            logits = reader.step([answers[number][-1] for number in going], places, [*going.values()])
            for place, number in enumerate(going):
                rows[number].append(logits[place : place + 1].copy())
    return [(answers[number], np.concatenate(rows[number])) for number in wave.texts]


class Comparison:
    """Collects the agreement of two models over prompts."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[np.float64]] = []
        self._same_top: list[npt.NDArray[np.bool_]] = []
        self._near_top: list[npt.NDArray[np.bool_]] = []
        self._answers, self._equal, self._ties, self._ended = 0, 0, 0, 0
        self._widest = 0.0

    def add_rows(self, ours: Logits, theirs: Logits, times: int = 1) -> None:
        """Distributions (T, V) that so many texts have in common."""
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
        """`theirs` may have more vocabulary (padding) and one more position than `ours`."""
        width = min(ours.shape[1], theirs.shape[1])
        theirs = theirs[: len(ours), :width]
        self.add_rows(ours, theirs)
        self._answers += 1
        self._ended += ended
        steps = theirs[-len(answer) :]
        # by how much torch prefers another token at the steps where it does; equal up to there means equal greedily
        gaps = steps.max(axis=1) - steps[np.arange(len(answer)), answer]
        self._widest = max(self._widest, float(gaps.max()))
        self._equal += bool((gaps == 0).all())
        self._ties += bool((gaps > 0).any() and (gaps <= TIE_LOGITS).all())

    def points(self, dtype: str, quantisation: str) -> list[Point]:
        """The distributions' point and the answers' point; of a quantised file other answers are no fault."""
        kl, same = np.concatenate(self._kl), float(np.concatenate(self._same_top).mean())
        # a flat distribution (a small or untrained model) has many tokens that are as good as the best
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
            Point("distributions", near, detail, spread | {"torch_dtype": dtype, "limit": limit}, CURE),
            Point("greedy answers", different == 0 or not plain, told, answers, CURE),
        ]


def kl_divergence(reference: Logits, other: Logits) -> npt.NDArray[np.float64]:
    """KL(reference ‖ other) in nats for each row of logits (T, V), in float64."""
    import torch  # on all cores

    found = []
    for start in range(0, len(reference), ROWS_AT_ONCE):  # in float64 the logits of a whole text take a gigabyte
        p, q = (
            torch.log_softmax(torch.from_numpy(each[start : start + ROWS_AT_ONCE]), 1, torch.float64)
            for each in (reference, other)
        )
        found.append((p.exp() * (p - q)).sum(1).numpy())
    return np.concatenate(found)


def log_softmax(logits: Logits, dtype: Literal["float32", "float64"] = "float64") -> npt.NDArray[Any]:
    """Log-probabilities of each row (T, V), computed in the type."""
    import torch  # on all cores

    found: npt.NDArray[Any] = torch.log_softmax(torch.from_numpy(logits), 1, getattr(torch, dtype)).numpy()
    return found
