"""Imports of the large libraries, without the searches for garbage that they set off."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """What is imported within stays to the end, and no search for garbage goes through it, now or at the end.

    A library of the size of torch or transformers makes hundreds of thousands of objects. To search them again and
    again while they grow, and once more before the process ends, takes nearly a third of the time of importing them.
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # else garbage of today would be kept for nothing
            gc.freeze()
        if enabled:
            gc.enable()
