"""Less device memory than a step needs, so that it must be redone in smaller micro-batches. Names torch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu_check import device
from benchmarks.gpu_check.results import CannotRunError

LEAST_BYTES = 64 << 20  # by which halves of a step must differ, for the limit to lie between them


@contextmanager
def limited_memory(whole: Callable[[], Any], half: Callable[[], Any]) -> Iterator[dict[str, int]]:
    """A limit of torch's allocator between what `half` and `whole` of a step take. Raises CannotRunError."""
    import torch

    peaks = {"half": device.peak_bytes(half), "whole": device.peak_bytes(whole)}
    if peaks["whole"] - peaks["half"] < LEAST_BYTES:
        raise CannotRunError(f"half of the step takes nearly as much memory as all of it: {peaks}")
    limit = peaks["half"] + 3 * (peaks["whole"] - peaks["half"]) // 4
    device.release()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield peaks | {"limit": limit}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        device.release()


@contextmanager
def refused_tokens(model: Any, most: int) -> Iterator[dict[str, int]]:
    """A model that has memory for `most` tokens at a time: what stands for a limit where there is no GPU."""
    import torch

    def refuse(_module: Any, inputs: tuple[Any, ...]) -> None:
        if inputs[0].numel() > most:
            raise torch.OutOfMemoryError("out of memory: raised by the check")

    vocabulary = len(model.get_input_embeddings().weight)
    tables = [
        each for each in model.modules() if isinstance(each, torch.nn.Embedding) and len(each.weight) == vocabulary
    ]
    handles = [table.register_forward_pre_hook(refuse) for table in tables]  # T5's encoder and decoder have their own
    try:
        yield {"tokens": most}
    finally:
        for handle in handles:
            handle.remove()
