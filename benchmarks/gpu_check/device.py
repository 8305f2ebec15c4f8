"""The device of a check: how it is chosen, what it is called, and how much memory work takes on it. Names torch.

Without a GPU, and with tiny shapes, Unsloth's CUDA classes run on the processor (`tests/cuda_on_cpu.py`); memory is
then what the forward pass saves for the backward pass.
"""

import functools
import gc
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

from benchmarks.gpu_check.results import CannotRunError
from gladstone.errors import UnsupportedError
from gladstone.machine.gpu import use_device

PACKAGES = ("torch", "transformers", "peft", "unsloth", "unsloth_zoo", "bitsandbytes", "triton", "xformers",
            "llama-cpp-python")  # fmt: skip
BFLOAT16 = (8, 0)  # the first compute capability that has it


@functools.cache
def has_gpu() -> bool:
    """True if torch sees a GPU; asked first before anything stands in for one."""
    import torch

    return bool(torch.cuda.is_available())


def describe(*, tiny: bool) -> dict[str, Any]:
    """The device and the versions that matter. Raises CannotRunError without a usable GPU, unless shapes are tiny."""
    try:
        found = use_device("auto" if tiny else "cuda")
    except UnsupportedError as error:
        raise CannotRunError(f"{error} --tiny tries the checks themselves on the processor.") from None
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "name": found.name,
        "gpu": found.gpu is not None,
        "bf16": found.gpu is None or found.gpu.capability >= BFLOAT16,
        "python": platform.python_version(),
        "versions": versions,
    } | found.as_json()


def prepare_unsloth(precision: str) -> None:
    """Import Unsloth so that it takes this precision, on a GPU or, through the test's stand-in, on the processor."""
    import torch

    if not has_gpu():
        from tests.cuda_on_cpu import AMPERE, TURING, Card, install

        install(Card(AMPERE if precision == "bf16" else TURING))
        return
    import unsloth  # noqa: F401 - before transformers
    from unsloth.models import _utils

    if precision == "fp16":  # as on a GPU of the T4's generation
        _utils.SUPPORTS_BFLOAT16, _utils._BF16_BY_DEVICE = False, None
        torch.cuda.is_bf16_supported = lambda *_arguments, **_named: False


def release() -> None:
    """Return what is no longer used to the device."""
    import torch

    gc.collect()
    if has_gpu():
        torch.cuda.empty_cache()


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that is allocated on the GPU while `work` runs; without one, what it saves for a backward pass."""
    import torch

    if not has_gpu():
        return saved_bytes(work)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


def saved_bytes(work: Callable[[], Any]) -> int:
    """The bytes of the tensors that forward passes in `work` save for the backward pass, parameters left out."""
    import torch

    seen: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        if not isinstance(tensor, torch.nn.Parameter):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(seen.values())
