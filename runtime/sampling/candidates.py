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
MARGIN = 1.0  # how far below the last step's likeliest those of the next may begin
MOST_EXTRA = 1024  # so many candidates cost the samplers less than a second look at the vocabulary
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def likeliest(logits: npt.NDArray[np.float32], count: int) -> tuple[npt.NDArray[np.intp], float]:
    """Places of at least the `count` highest of the logits (V,), in rising order; all that are not -inf if fewer.

    And the least logit that they were asked for. The `count`-th highest of the maxima of blocks is no higher than the
    `count`-th highest logit.
    """
    blocks = len(logits) // BLOCK
    least = -np.inf
    if count < blocks:
        # a block is every `blocks`-th logit: numpy compares whole rows at once, but a short row by itself slowly
        maxima = logits[: blocks * BLOCK].reshape(BLOCK, blocks).max(axis=0)
        least = float(np.partition(maxima, blocks - count)[blocks - count])
    return (logits >= least if least > -np.inf else logits > -np.inf).nonzero()[0], least


class Candidates:
    """llama.cpp's array of candidates, filled with the likeliest tokens of each step."""

    def __init__(self, lib: Any, count: int) -> None:
        self._lib, self._count = lib, count
        self._array = lib.llama_token_data_array()
        self._least = np.inf  # where the likeliest of the last step began
        self._make_room(max(MOST_EXTRA, 2 * count))

    def choose(self, chain: Any, logits: npt.NDArray[np.float32]) -> int:
        """Let the samplers choose among the likeliest of the logits (V,); -1 if none of them is a number."""
        # most often those above the last step's limit are enough and not too many: one look in place of two
        places = (logits >= self._least).nonzero()[0]
        size = len(places)
        if not self._count <= size <= MOST_EXTRA:
            places, least = likeliest(logits, self._count)
            self._least = least - MARGIN
            size = len(places)
        if not size:
            return -1
        if size > len(self._ids):
            self._make_room(2 * size)
        self._ids[:size] = places
        self._logits[:size] = logits[places]
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._begin, size, -1, False
        self._lib.llama_sampler_apply(chain, self._reference)
        return int(array.data[array.selected].id)  # XTC moves where the array begins

    def _make_room(self, size: int) -> None:
        self._data = np.zeros(size, TOKEN_DATA)
        self._ids, self._logits = self._data["id"], self._data["logit"]
        self._begin = ctypes.cast(self._data.ctypes.data, type(self._array.data))
        self._reference = ctypes.byref(self._array)
