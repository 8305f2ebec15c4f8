"""The agreement of a file with torch: next-token distributions and greedy answers, and their limits."""

import numpy as np
import numpy.typing as npt

from export.proof.check import Check
from export.proof.divergence import kl_divergence
from export.proof.reading import Logits

TOP1_LIMIT = 0.99
SETTLED_ROWS = 12  # with some 800 tokens: a fault in one of 100 tokens stays unseen once in 3,000 times
PLAIN = ("F16", "F32", "BF16")
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


def kl_limit(quantisation: str) -> float:
    """Limit of the mean KL, in nats, for a file of this type."""
    if quantisation in PLAIN:
        return MEAN_KL_LIMIT if quantisation != "BF16" else 10 * MEAN_KL_LIMIT
    limits = (limit for start, limit in QUANTISED_KL_LIMIT.items() if quantisation.startswith(start))
    return next(limits, FEWEST_BITS_KL_LIMIT)


class Comparison:
    """Accumulates the agreement of a file with torch, row by row."""

    def __init__(self, quantisation: str, rows: int, *, settles: bool = True) -> None:
        """For a file of a type, and `rows` rows in all; without `settles` all of them are compared."""
        self._quantisation, self._rows = quantisation, rows
        self._settles = settles and quantisation in PLAIN
        self._done = 0
        self._kl: list[npt.NDArray[np.float64]] = []
        self._same_top: list[npt.NDArray[np.bool_]] = []
        self._near_top: list[npt.NDArray[np.bool_]] = []
        self._answers, self._equal, self._ties, self._ended = 0, 0, 0, 0
        self._widest = 0.0

    @property
    def settled(self) -> bool:
        """Whether equality is clear: 12 rows or more, and not one token beyond the limit of the mean.

        The longest row is among them, and `settles` says that every token's row of embedding and head is the trained
        one: faults of long texts and of rare tokens are not left to chance.
        """
        return (
            self._settles
            and self._done >= SETTLED_ROWS
            and self._answers == self._equal + self._ties
            and all(bool(near.all()) for near in self._near_top)
            and all(float(kl.max()) <= kl_limit(self._quantisation) for kl in self._kl)
        )

    def add_row(self, ours: Logits, theirs: Logits) -> None:
        """Add the logits (T, V) of a row's prompt and answer; `theirs` may have a wider vocabulary (padding)."""
        self.add_logits(ours, theirs)
        self._done += 1

    def add_logits(self, ours: Logits, theirs: Logits) -> None:
        """Add logits (T, V)."""
        width = min(ours.shape[1], theirs.shape[1])
        ours, theirs = ours[:, :width], theirs[:, :width]
        ours_top, theirs_top = ours.argmax(axis=1), theirs.argmax(axis=1)
        rows = np.arange(len(ours))
        self._kl.append(kl_divergence(theirs, ours))
        self._same_top.append(theirs_top == ours_top)
        self._near_top.append(theirs[rows, theirs_top] - theirs[rows, ours_top] <= TIE_LOGITS)

    def add_greedy(self, ours: Logits, theirs: Logits, answer: list[int], *, ended: bool) -> None:
        """Add a greedy answer of the file, and the logits (T, V) from which each of its T tokens was chosen."""
        theirs = theirs[:, : min(ours.shape[1], theirs.shape[1])]
        self.add_logits(ours, theirs)
        self._answers += 1
        self._ended += ended
        # gap by which torch prefers another token; no gap at any step means equal greedy answers
        gaps = theirs.max(axis=1) - theirs[np.arange(len(answer)), answer]
        self._widest = max(self._widest, float(gaps.max()))
        self._equal += bool((gaps == 0).all())
        self._ties += bool((gaps > 0).any() and (gaps <= TIE_LOGITS).all())

    def checks(self, dtype: str) -> list[Check]:
        """The two checks; different greedy answers fail only files of 16 or 32 bit."""
        kl, same = np.concatenate(self._kl), float(np.concatenate(self._same_top).mean())
        # in a flat distribution (a small or untrained model) many tokens tie with the best
        but_for_ties = float(np.concatenate(self._near_top).mean())
        mean, limit = float(kl.mean()), kl_limit(self._quantisation)
        plain = self._quantisation in ("F16", "F32")
        spread = {"mean_kl_nats": mean, "p999_kl_nats": float(np.quantile(kl, 0.999)), "max_kl_nats": float(kl.max())}
        spread |= {
            "positions": len(kl),
            "rows": self._done,
            "rows_in_all": self._rows,
            "settled": self.settled,
            "top1_agreement": same,
            "top1_agreement_but_for_ties": but_for_ties,
        }
        near = mean <= limit and (but_for_ties >= TOP1_LIMIT or not plain)
        top = f"{but_for_ties:.2%} but for ties" + (f", limit {TOP1_LIMIT:.0%}" if plain else "")
        detail = (
            f"mean KL {mean:.2e} nats (limit {limit:.0e}), 99.9 % below {spread['p999_kl_nats']:.1e}, "
            f"top-1 agreement {same:.2%} ({top}) over {len(kl):,} tokens of {self._done} rows"
        )
        if self._done < self._rows:
            detail += f"; the other {self._rows - self._done} were not needed: no token is beyond the limit of the mean"
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
