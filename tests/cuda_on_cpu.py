"""Unsloth's CUDA classes on a processor: `install` makes a process believe that it has a GPU, and computes on the CPU.

What asks the driver (device count, capability, memory, streams, random state) is answered here. A function mode maps
`cuda` devices to the CPU in every call of torch, and triton's interpreter runs Unsloth's fused kernels (the rotary one,
which would take most of the time, is computed by torch). All else is real: Unsloth takes its CUDA classes, and `finetune` every branch that a GPU takes. The capability decides the dtype as
on real cards: below 8.0, such as a T4's 7.5, float16; from 8.0 bfloat16.

It changes torch for good, so it belongs into a process of its own, before anything imports unsloth:

    python -m tests.cuda_on_cpu --capability 7.5 -- -m finetune run RECIPE --out RUN

Not shown by it: speed, memory, asynchronous execution, the rounding of CUDA kernels, torch.compile (off), a tensor left
on another device (all are the CPU's), NCCL (gloo stands in for it).
"""

import argparse
import importlib
import importlib.util
import os
import re
import resource
import runpy
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from finetune.model.trainable import prepare_environment
from scripts.interpreter import interpreter_folder

TURING, AMPERE = (7, 5), (8, 0)  # a T4 computes in float16, an A100 in bfloat16
ENVIRONMENT = {
    "UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TORCHDYNAMO_DISABLE": "1",
    "UNSLOTH_ENABLE_FLEX_ATTENTION": "0",  # it has no gradient on a processor
}  # fmt: skip
PLACES = re.compile(r"cuda(:\d+)?")


@dataclass(frozen=True)
class Card:
    """A GPU as its driver describes it; a machine has `count` of them."""

    capability: tuple[int, int] = TURING
    memory_bytes: int = 15 << 30
    count: int = 1
    name: str = "a CUDA device on the CPU"


def install(card: Card | None = None) -> None:
    """Make this process's CPU pass for `card`, and import unsloth. Raises RuntimeError if that is already imported."""
    if "unsloth" in sys.modules:
        raise RuntimeError("unsloth is already imported: it has chosen its classes without a GPU.")
    os.environ |= ENVIRONMENT
    prepare_environment()
    if importlib.util.find_spec("triton") is None:
        sys.path.append(str(interpreter_folder()))
    import torch

    _answer_for_the_driver(torch, card or Card())
    _map_autocast(torch)
    _map_groups(torch)
    _map_devices(torch)
    _import_unsloth()
    _index_by_no_device()
    _hasten_the_interpreter()


def _import_unsloth() -> None:
    """Import it; models then say that they are on the GPU, by which our code and others' choose their way."""
    import torch

    system = os.system
    os.system = lambda command: 0  # it would run ldconfig, to find a driver
    try:
        with warnings.catch_warnings(action="ignore"):  # of a driver that is not linked
            importlib.import_module("unsloth")
    finally:
        os.system = system
    from transformers import PreTrainedModel

    PreTrainedModel.device = property(lambda _: torch.device("cuda", torch.cuda.current_device()))


class _Driver:
    """What torch.cuda asks the driver, answered for a card; names and signatures are torch's."""

    def __init__(self, card: Card) -> None:
        self._card, self._current = card, 0

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return self._card.count

    def current_device(self) -> int:
        return self._current

    def set_device(self, device: Any) -> None:
        self._current = self._index(device)

    def get_device_name(self, device: Any = None) -> str:
        return self._card.name

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return self._card.capability

    def get_arch_list(self) -> list[str]:
        return ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]

    def get_device_properties(self, device: Any = None) -> Any:
        major, minor = self._card.capability
        return SimpleNamespace(
            name=self._card.name, major=major, minor=minor, total_memory=self._card.memory_bytes, is_integrated=0,
            multi_processor_count=40, shared_memory_per_block_optin=65536, shared_memory_per_block=49152, warp_size=32,
            L2_cache_size=4 << 20, regs_per_multiprocessor=65536, max_threads_per_multi_processor=1024,
        )  # fmt: skip

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return including_emulation or self._card.capability >= AMPERE

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return max(0, self._card.memory_bytes - self.memory_allocated()), self._card.memory_bytes

    def memory_allocated(self, device: Any = None) -> int:
        """The memory that the process holds: the CPU's tensors have no allocator that counts."""
        import psutil

        return int(psutil.Process().memory_info().rss)

    def max_memory_allocated(self, device: Any = None) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    memory_reserved, max_memory_reserved = memory_allocated, max_memory_allocated

    def get_rng_state(self, device: Any = "cuda") -> Any:
        import torch

        return torch.get_rng_state()

    def get_rng_state_all(self) -> list[Any]:
        return [self.get_rng_state() for _ in range(self._card.count)]

    def set_rng_state(self, new_state: Any, device: Any = "cuda") -> None:
        import torch

        torch.set_rng_state(new_state)

    def set_rng_state_all(self, new_states: Any) -> None:
        self.set_rng_state(new_states[0])

    def device(self, device: Any) -> Any:
        """A context whose `idx` is the device."""
        context = nullcontext()
        context.idx = self._index(device)  # type: ignore[attr-defined]
        return context

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def current_stream(self, device: Any = None) -> Any:
        return Stream()

    default_stream = current_stream

    def nothing(self, *_: Any, **__: Any) -> None:
        """Stands for what has no effect on a processor."""

    synchronize = empty_cache = ipc_collect = manual_seed = manual_seed_all = nothing
    reset_peak_memory_stats = reset_max_memory_allocated = set_per_process_memory_fraction = init = nothing

    def _index(self, device: Any) -> int:
        index = getattr(device, "index", device)
        if isinstance(index, str):
            index = int(index.partition(":")[2] or self._current)
        return self._current if index is None else index


class Stream:
    """A stream and an event at once, whose work is done when it is asked for."""

    cuda_stream, device, device_index = 0, None, 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: Any) -> float:
        return 0.0

    def record_event(self, event: Any = None) -> Any:
        return event or Stream()

    def nothing(self, *_: Any, **__: Any) -> None: ...

    wait_stream = wait_event = synchronize = record = wait = nothing


def _answer_for_the_driver(torch: Any, card: Card) -> None:
    """Replace in `torch.cuda` whatever needs a driver."""
    cuda, driver = torch.cuda, _Driver(card)
    for name in dir(_Driver):
        if not name.startswith("_") and name != "nothing":
            setattr(cuda, name, _function(driver, name))
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "mem_get_info"):
        setattr(cuda.memory, name, getattr(cuda, name))
    cuda.Stream = cuda.Event = Stream
    torch._C._cuda_getCurrentRawStream = lambda _index=0: 0


def _function(driver: _Driver, name: str) -> Callable[..., Any]:
    """Return the method as a function of its own: torch keeps rules for each, and two names may share one method."""
    method = getattr(driver, name)
    return lambda *args, **kwargs: method(*args, **kwargs)  # noqa: PLW0108 - a new function


def _map_autocast(torch: Any) -> None:
    """Autocast for the CPU where it is asked for the GPU; a GPU's list of float32 operations is longer."""
    usual, enabled, dtype = torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype

    def begin(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        usual(self, _kind(device_type), *args, **kwargs)

    torch.autocast.__init__ = begin
    torch.is_autocast_enabled = lambda device_type="cuda": enabled(_kind(device_type))
    torch.get_autocast_dtype = lambda device_type: dtype(_kind(device_type))


def _kind(device_type: str) -> str:
    return "cpu" if device_type == "cuda" else device_type


def _map_groups(torch: Any) -> None:
    """Processes talk through gloo where NCCL is asked for."""
    distributed = torch.distributed
    usual = distributed.init_process_group

    def begin(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("device_id", None)
        usual("gloo" if backend in (None, "nccl") else backend, *args, **kwargs)

    distributed.init_process_group = begin


def _map_devices(torch: Any) -> None:
    """Push a mode for the rest of the process under which every tensor lies on the CPU."""
    from torch.overrides import TorchFunctionMode

    device, returned = torch.device, {torch.Tensor.cuda, torch.Tensor.pin_memory}

    def place(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == "cuda" else value
        return "cpu" if isinstance(value, str) and PLACES.fullmatch(value) else value

    class OnCpu(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in returned:
                return args[0]
            if function is torch.Tensor.record_stream:
                return None
            if function is torch.device:  # a name, not yet a place
                return device("cuda", *args) if isinstance(args[0], int) else device(*args, **(kwargs or {}))
            args = tuple(map(place, args))
            if function is torch.Tensor.to and isinstance(args[1] if len(args) > 1 else None, int):
                args = (args[0], "cpu", *args[2:])
            kwargs = {name: place(value) for name, value in (kwargs or {}).items()}
            if kwargs.get("pin_memory"):
                del kwargs["pin_memory"]
            if isinstance(kwargs.get("device"), int):
                kwargs["device"] = "cpu"
            return function(*args, **kwargs)

    OnCpu().__enter__()
    usual = threading.Thread.run

    def run(self: threading.Thread) -> None:
        with OnCpu():  # a mode is the thread's
            usual(self)

    threading.Thread.run = run  # type: ignore[method-assign]


def _index_by_no_device() -> None:
    """Unsloth keeps its rotary tables in lists by device; the CPU's index is None."""
    from unsloth.models import llama

    class PerDevice(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(0 if index is None else index)

        def __setitem__(self, index: Any, value: Any) -> None:
            super().__setitem__(0 if index is None else index, value)

    def kept(name: str) -> property:
        return property(
            lambda self: self.__dict__[name], lambda self, value: self.__dict__.__setitem__(name, PerDevice(value))
        )

    lists = ("multi_gpu_cos_cached", "multi_gpu_sin_cached", "_rope_cache_versions", "_rope_rows_ready",
             "_rope_rebuild_for_grad", "_short_rope_rebuild_for_grad", "multi_gpu_short_cos_cached",
             "multi_gpu_short_sin_cached", "multi_gpu_long_cos_cached", "multi_gpu_long_sin_cached")  # fmt: skip
    for kind in vars(llama).values():
        if isinstance(kind, type) and kind.__name__.endswith("RotaryEmbedding") and kind.__module__ == llama.__name__:
            for name in lists:
                setattr(kind, name, kept(name))


def _hasten_the_interpreter() -> None:
    """Leave out what takes most of the interpreter's time: overflow checks, and patching anew in every inner call."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    from unsloth.kernels import rms_layernorm, rope_embedding

    interpreter.interpreter_builder.options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    function = interpreter.InterpretedFunction
    function.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
    rms_layernorm._multirow_self_check = lambda *_: True  # many rows in a program; numpy's sums differ in the last bit
    rope_embedding._rope_launch = _rotate  # the one kernel with a program for each token and group of heads
    importlib.import_module("tests.triton_bfloat16").compute_bfloat16()


def _rotate(
    query: Any, query_out: Any, key: Any, key_out: Any, cos: Any, sin: Any, positions: Any, *flags: Any
) -> None:
    """Unsloth's launcher of its rotary kernel, in torch: tensors (rows, heads, tokens, width), written where it says."""
    indexed, backward = flags[0], flags[1]
    half, tokens = query.shape[-1] // 2, query.shape[2]
    if indexed:
        at = positions.view(-1, tokens).long()
        cosine, sine = (table[at, :half].float()[:, None] for table in (cos, sin))
    else:
        cosine, sine = (table[:tokens, :half].float() for table in (cos, sin))
    sine = -sine if backward else sine
    for source, place in ((query, query_out), (key, key_out)):
        if source is not None:
            first, second = source[..., :half].float(), source[..., half:].float()
            rotated = first * cosine - second * sine, second * cosine + first * sine
            place[..., :half], place[..., half:] = (part.to(place.dtype) for part in rotated)


def main() -> None:
    """Run a command, or a module with -m, as if the machine had a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", default="7.5", help="of the GPU: 7.5 (float16) or 8.0 (bfloat16)")
    parser.add_argument("--memory-gib", type=float, default=15, help="of the GPU")
    parser.add_argument("--count", type=int, default=int(os.environ.get("LOCAL_WORLD_SIZE", "1")), help="of GPUs")
    parser.add_argument("command", nargs="+", help="-- -m MODULE and its arguments")
    arguments = parser.parse_args()
    major, _, minor = arguments.capability.partition(".")
    option, program, *rest = arguments.command
    if option != "-m":
        parser.error("expected -- -m MODULE …")
    install(Card((int(major), int(minor)), int(arguments.memory_gib * 2**30), arguments.count))
    sys.argv = [program, *rest]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
