"""KL divergence and log-softmax of next-token logits. Names torch."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.proof.reading import Logits

ROWS_AT_ONCE = 16  # rows of float64 logits that fit the processor's cache


def kl_divergence(reference: Logits, other: Logits) -> npt.NDArray[np.float64]:
    """KL(reference ‖ other) in nats for each row of logits (T, V), in float64."""
    import torch  # on all cores

    found = []
    for start in range(0, len(reference), ROWS_AT_ONCE):  # the float64 logits of a whole text take a gigabyte
        p, q = (
            torch.log_softmax(torch.from_numpy(each[start : start + ROWS_AT_ONCE]), 1, torch.float64)
            for each in (reference, other)
        )
        found.append((p.exp() * (p - q)).sum(1).numpy())
    return np.concatenate(found)


def log_softmax(logits: Logits, dtype: Literal["float32", "float64"] = "float64") -> npt.NDArray[Any]:
    """Log-probabilities (T, V) of logits (T, V), computed in `dtype`."""
    import torch  # on all cores

    found: npt.NDArray[Any] = torch.log_softmax(torch.from_numpy(logits), 1, getattr(torch, dtype)).numpy()
    return found
