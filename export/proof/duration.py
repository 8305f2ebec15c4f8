"""How long a proof takes, estimated before it begins."""

import math
import time
from pathlib import Path

import numpy as np

from export.proof.answers import ANSWER_TOKENS, PROMPTS
from export.proof.heldout import sequences_of
from export.proof.reading import Text, plan_reading
from export.proof.trained import Trained
from gladstone.gguf import read_header

MATRIX = 768
# what llama.cpp and torch reach of the speed at which numpy multiplies matrices, and what loading and texts take
LLAMA_SHARE, TORCH_SHARE, FIXED_S = 0.6, 0.4, 6.0


def proof_s(path: Path, trained: Trained, files: int) -> float | None:
    """Seconds for all points of a file and of so many quantised ones made of it; None if there are no rows for it."""
    sequences = sequences_of(trained)
    if not sequences:
        return None
    prompts = [Text(prompt, len(prompt)) for prompt, _ in sequences[:PROMPTS]]
    rows = [Text([*prompt, *answer], len(prompt)) for prompt, answer in sequences]
    written = len(prompts) * ANSWER_TOKENS
    torch_tokens = sum(len(prompt.tokens) for prompt in prompts) + written
    read = plan_reading(prompts, 512).read + written + plan_reading(rows, 512).read * (1 + files if files else 0)
    elements = sum(math.prod(tensor.shape) for tensor in read_header(path).tensors)
    return FIXED_S + 2 * elements * (torch_tokens / TORCH_SHARE + read / LLAMA_SHARE) / _operations_per_s()


def readable_s(seconds: float) -> str:
    """A rough time for people.

    >>> readable_s(17.2), readable_s(250)
    ('20 s', '4 min')
    """
    return f"{max(round(seconds / 10), 1) * 10} s" if seconds < 90 else f"{round(seconds / 60)} min"


def _operations_per_s() -> float:
    """Of numpy's product of two matrices, the best of three."""
    factor = np.ones((MATRIX, MATRIX), np.float32)
    times = []
    for _ in range(3):
        begin_s = time.perf_counter()
        factor @ factor
        times.append(time.perf_counter() - begin_s)
    return 2 * MATRIX**3 / min(times)
