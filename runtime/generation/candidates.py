"""The tokens that can be chosen at all, found before llama.cpp's samplers look at each of a whole vocabulary.

A sampler costs some time for every candidate, a penalty a search in a table. Where the settings keep the K likeliest
tokens, the others need not be looked at. Penalties only lower logits, of at most W tokens: the K likeliest after them
are among the K + W likeliest before. The tokens chosen are those that the samplers would choose from all.
"""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 64
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def likeliest(logits: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Places of at least the `count` highest of the logits (V,), in rising order; all that are not -inf if fewer.

    The `count`-th highest of the maxima of blocks is no higher than the `count`-th highest logit.
    """
    blocks = len(logits) // BLOCK
    if count >= blocks:
        return np.flatnonzero(logits > -np.inf)
    # a block is every `blocks`-th logit: numpy compares whole rows at once, but a short row by itself slowly
    maxima = logits[: blocks * BLOCK].reshape(BLOCK, blocks).max(axis=0)
    least = np.partition(maxima, blocks - count)[blocks - count]
    return np.flatnonzero(logits >= least if least > -np.inf else logits > -np.inf)


class Candidates:
    """llama.cpp's array of candidates, filled with the likeliest tokens of each step."""

    def __init__(self, lib: Any, count: int) -> None:
        self._lib, self._count = lib, count
        self._data = np.zeros(0, TOKEN_DATA)
        self._array = lib.llama_token_data_array()

    def choose(self, chain: Any, logits: npt.NDArray[np.float32]) -> int:
        """Let the samplers choose among the likeliest of the logits (V,); -1 if none of them is a number."""
        places = likeliest(logits, self._count)
        size = len(places)
        if not size:
            return -1
        if size > len(self._data):
            self._data = np.zeros(2 * size, TOKEN_DATA)
        data = self._data[:size]
        data["id"], data["logit"] = places, logits[places]
        array = self._array
        array.data = ctypes.cast(self._data.ctypes.data, type(array.data))
        array.size, array.selected, array.sorted = size, -1, False
        self._lib.llama_sampler_apply(chain, ctypes.byref(array))
        return int(data["id"][array.selected])
