"""Candidates: only the tokens that can be sampled at all, instead of the whole vocabulary, go to llama.cpp's samplers.

A sampler takes time for every candidate, and a penalty looks each one up in a table. With top-k K, no other token
matters. Penalties only lower logits, of at most W tokens, so that the K likeliest after them are among the K + W
likeliest before. The sampled tokens are the same as from the whole vocabulary.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 64
MARGIN = 1.0  # the threshold of the next step lies this far below that of the last one
MAX_CANDIDATES = 1024  # so many candidates cost the samplers less than a second scan of the vocabulary
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def likeliest(logits: npt.NDArray[np.float32], count: int) -> tuple[npt.NDArray[np.intp], float]:
    """Indices (N,) of at least the `count` highest logits (V,), ascending, and the threshold that selected them.

    If fewer than `count` are above -inf, they are all of those. The threshold is the `count`-th highest maximum of a
    block, which is at most the `count`-th highest logit.
    """
    blocks = len(logits) // BLOCK
    least = -np.inf
    if count < blocks:
        # a block is every `blocks`-th logit: numpy compares whole rows fast, and short rows slowly
        maxima = logits[: blocks * BLOCK].reshape(BLOCK, blocks).max(axis=0)
        least = float(np.partition(maxima, blocks - count)[blocks - count])
    return (logits >= least if least > -np.inf else logits > -np.inf).nonzero()[0], least


class Candidates:
    """llama.cpp's array of candidates, filled with the likeliest tokens of each step."""

    def __init__(self, lib: Any, count: int) -> None:
        self._lib, self._count = lib, count
        self._array = lib.llama_token_data_array()
        self._threshold = np.inf  # of the last step
        self._make_room(max(MAX_CANDIDATES, 2 * count))

    def choose(self, chain: Any, logits: npt.NDArray[np.float32]) -> int:
        """Let the samplers choose among the likeliest of the logits (V,); -1 if all logits are -inf or NaN."""
        # the last threshold mostly selects enough tokens and not too many, which saves a scan
        indices = (logits >= self._threshold).nonzero()[0]
        size = len(indices)
        if not self._count <= size <= MAX_CANDIDATES:
            indices, least = likeliest(logits, self._count)
            self._threshold = least - MARGIN
            size = len(indices)
        if not size:
            return -1
        if size > len(self._ids):
            self._make_room(2 * size)
        self._ids[:size] = indices
        self._logits[:size] = logits[indices]
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._begin, size, -1, False
        self._lib.llama_sampler_apply(chain, self._reference)
        return int(array.data[array.selected].id)  # XTC moves the beginning of the array

    def _make_room(self, size: int) -> None:
        self._data = np.zeros(size, TOKEN_DATA)
        self._ids, self._logits = self._data["id"], self._data["logit"]
        self._begin = ctypes.cast(self._data.ctypes.data, type(self._array.data))
        self._reference = ctypes.byref(self._array)
