"""How far distributions over the next token are apart. Names torch."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.proof.reading import Logits

ROWS_AT_ONCE = 16  # of logits in float64: as many as the processor's cache holds


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
