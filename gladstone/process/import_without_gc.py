"""Import large libraries without the garbage collections that importing them triggers."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_without_gc() -> Iterator[None]:
    """Switch the garbage collector off for imports within the block, and freeze the imported objects afterwards.

    torch or transformers create hundreds of thousands of objects that live until the process ends. Collections during
    the import and at exit take nearly a third of the import's time.
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:  # nothing imported: freezing would only keep garbage alive
            gc.freeze()
        if enabled:
            gc.enable()
