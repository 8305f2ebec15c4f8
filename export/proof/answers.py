"""Does the file compute what the trained model computes: distributions over the next token, and greedy answers?

Names torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.proof.point import Point
from export.proof.reference import Reference
from export.proof.trained import Trained
from gladstone.context import Context
from gladstone.errors import ArtifactError
from gladstone.llama import Model
from gladstone.lora import Lora
from gladstone.progress import Progress

PROMPTS, ANSWER_TOKENS, CONTEXT_TOKENS = 32, 32, 1024
ROWS_AT_ONCE = 64
TOP1_LIMIT = 0.99
TIE_LOGITS = 0.1  # candidates nearer than this may change places: F16 activations move logits by about 0.03
# mean KL in nats; F16 against float32 is near 1e-5, a wrong scale or rope base far above. What a quantised file may
# lose hides smaller faults: the proof of its F16 is the sharp one
MEAN_KL_LIMIT = 1e-3
QUANTISED_KL_LIMIT = {"Q8": 0.02, "Q6": 0.05, "Q5": 0.1, "Q4": 0.4, "IQ4": 0.4, "MXFP4": 0.4, "Q3": 1.0, "IQ3": 1.0}
FEWEST_BITS_KL_LIMIT = 4.0
CURE = (
    "The weights, or how they are used, are not those that were trained: merge strength, rope, a tensor that is "
    "missing or transposed. Export again from the run; a file by another tool is at fault itself."
)

Logits = npt.NDArray[np.float32]


def check_answers(
    path: Path, quantisation: str, trained: Trained, progress: Progress, loras: Sequence[Lora] = ()
) -> list[Point]:
    """The distributions' point and the answers' point. Raises ArtifactError if no prompt is short enough."""
    reference = Reference(trained)
    prompts = prompts_of(trained)
    comparison = Comparison()
    with Model(path, loras=loras) as model, Context(model, CONTEXT_TOKENS) as context:
        for number, prompt in enumerate(prompts, 1):
            answer, ours = greedy(model, context, prompt)
            theirs = reference.logits(prompt, answer)
            comparison.add(ours, theirs, answer, ended=model.ends_generation(answer[-1]))
            progress.update(number / len(prompts))
    return comparison.points(reference.dtype, quantisation)


def kl_limit(quantisation: str) -> float:
    """How far the mean KL of a file of this type may be from the trained model."""
    if quantisation in ("F16", "F32", "BF16"):
        return MEAN_KL_LIMIT if quantisation != "BF16" else 10 * MEAN_KL_LIMIT
    limits = (limit for start, limit in QUANTISED_KL_LIMIT.items() if quantisation.startswith(start))
    return next(limits, FEWEST_BITS_KL_LIMIT)


def prompts_of(trained: Trained) -> list[list[int]]:
    """Up to 32 prompts that leave room for the answer. Raises ArtifactError if there is none."""
    most = CONTEXT_TOKENS // 2 - ANSWER_TOKENS
    prompts = (trained.prompt(row, ANSWER_TOKENS) for row in trained.rows)
    short = [ids for ids in prompts if 0 < len(ids) <= most][:PROMPTS]
    if not short:
        raise ArtifactError(f"of {len(trained.rows)} rows none has a prompt of 1 to {most} tokens.")
    return short


def begin(model: Model, context: Context, prompt: list[int], answer: list[int]) -> tuple[list[Logits], int]:
    """Logits of everything known before the answer goes on, and how many positions are taken."""
    context.forget()
    if model.has_encoder:
        context.encode(prompt)
        known = [model.decoder_start, *answer]
    else:
        known = [*prompt, *answer]
    rows: list[Logits] = []
    for start in range(0, len(known), context.batch_tokens):
        batch = known[start : start + context.batch_tokens]
        context.decode(batch, start, all_logits=True)
        rows += [context.logits(index).copy() for index in range(len(batch))]
    return rows, len(known)


def greedy(model: Model, context: Context, prompt: list[int], most: int = ANSWER_TOKENS) -> tuple[list[int], Logits]:
    """The greedy answer, its end token included, and the logits (T, V) before each token that was read or written."""
    rows, taken = begin(model, context, prompt, [])
    first = len(rows)
    answer: list[int] = []
    while len(answer) < most:
        token = int(rows[-1].argmax())
        answer.append(token)
        if model.ends_generation(token):
            break
        context.decode([token], taken + len(answer) - 1)
        rows.append(context.logits().copy())
    return answer, np.stack(rows[: first + len(answer) - 1])


class Comparison:
    """Collects the agreement of two models over prompts."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[np.float64]] = []
        self._same_top: list[npt.NDArray[np.bool_]] = []
        self._near_top: list[npt.NDArray[np.bool_]] = []
        self._answers, self._equal, self._ties, self._ended = 0, 0, 0, 0
        self._widest = 0.0

    def add(self, ours: Logits, theirs: Logits, answer: list[int], *, ended: bool) -> None:
        """`theirs` may have more vocabulary (padding) and one more position than `ours`."""
        width = min(ours.shape[1], theirs.shape[1])
        ours, theirs = ours[:, :width], theirs[: len(ours), :width]
        self._kl.append(kl_divergence(theirs, ours))
        ours_top = ours.argmax(axis=1)
        self._same_top.append(theirs.argmax(axis=1) == ours_top)
        self._near_top.append(theirs.max(axis=1) - theirs[np.arange(len(ours)), ours_top] <= TIE_LOGITS)
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
    found = []
    for start in range(0, len(reference), ROWS_AT_ONCE):  # in float64 the logits of a whole text take a gigabyte
        rows = slice(start, start + ROWS_AT_ONCE)
        p, q = log_softmax(reference[rows]), log_softmax(other[rows])
        found.append((np.exp(p) * (p - q)).sum(axis=1))
    return np.concatenate(found)


def log_softmax(logits: Logits, dtype: Literal["float32", "float64"] = "float64") -> npt.NDArray[Any]:
    """Log-probabilities of each row (T, V), computed in the type."""
    import torch  # on all cores

    found: npt.NDArray[Any] = torch.log_softmax(torch.from_numpy(logits), 1, getattr(torch, dtype)).numpy()
    return found
