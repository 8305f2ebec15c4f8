"""Where the model in torch computes, and the memory that it needs there. Names torch."""

from dataclasses import dataclass
from pathlib import Path

from export.torch_model.size import FLOAT32, ModelSize, model_shape, model_size
from gladstone.errors import UnsupportedError
from gladstone.machine.gpu import Device, choose_kind, read_gpu_facts
from gladstone.machine.host import available_memory_bytes, readable_bytes

LOGITS_BYTES = 256 << 20  # of the texts that torch computes together
TEXT_TOKENS, MOST_TOKENS = 544, 2048  # of a batch: at least the longest prompt with its answer
CELLS = 2560  # of llama.cpp's cache
SHARE = 0.9  # of the free memory that may be used


@dataclass(frozen=True)
class Memory:
    """Free bytes of the host and of the GPU that torch can use, if any; `unused`: why one that is there is not."""

    host: int
    gpu: int | None = None
    gpu_name: str = ""
    unused: str = ""


@dataclass(frozen=True)
class Placement:
    """Device of the model in torch, whether its layers are widened one after the other, and bytes needed there."""

    device: str  # of torch: cpu or cuda
    streamed: bool
    needed: int
    free: int
    name: str = "the CPU"
    unused: str = ""  # why a GPU that is there is not used

    def __str__(self) -> str:
        """The placement as part of a sentence."""
        how = "layer by layer" if self.streamed else "the whole model"
        return (
            f"in float32 on {self.name}, {how}: {readable_bytes(self.needed)} of memory "
            f"({readable_bytes(self.free)} free){f'; not on the GPU: {self.unused}' if self.unused else ''}"
        )


def free_memory() -> Memory:
    """The free memory of this machine."""
    import torch

    host, facts = available_memory_bytes(), read_gpu_facts()
    try:
        if choose_kind("auto", facts) == "cpu":
            return Memory(host, unused=Device("cpu", facts).unused)
        return Memory(host, torch.cuda.mem_get_info()[0], torch.cuda.get_device_name())
    except (UnsupportedError, RuntimeError) as error:  # no kernels; or another program has all of its memory
        return Memory(host, unused=str(error).partition(". ")[0])


def batch_tokens(vocabulary: int) -> int:
    """Tokens that torch computes together."""
    return min(max(LOGITS_BYTES // (FLOAT32 * vocabulary), TEXT_TOKENS), MOST_TOKENS)


def work_bytes(base: Path) -> tuple[int, int]:
    """Bytes of what torch computes in a batch, and of what llama.cpp and the comparison hold beside it."""
    shape = model_shape(base)
    tokens = batch_tokens(shape["vocabulary"])
    logits = FLOAT32 * tokens * shape["vocabulary"]
    computed = logits + FLOAT32 * tokens * (8 * shape["width"] + 3 * shape["inner"])
    return computed, 4 * logits + CELLS * shape["cached"]


def place(size: ModelSize, work: tuple[int, int], memory: Memory) -> Placement | None:
    """The fastest way of computing that fits: on the GPU or the CPU, whole or layer by layer; None if none does."""
    computed, beside = work
    for streamed in (False, True):
        model = size.tables + (size.layer if streamed else size.layers)
        if memory.gpu is not None and size.held + beside <= SHARE * memory.host:
            needed = model + computed
            if needed <= SHARE * memory.gpu:
                return Placement("cuda", streamed, needed, memory.gpu, f"the GPU ({memory.gpu_name})")
    for streamed in (False, True):
        model = size.tables + (size.layer if streamed else size.layers)
        needed = model + size.held + computed + beside
        if needed <= SHARE * memory.host:
            small = f"{memory.gpu_name} has {readable_bytes(memory.gpu)} free" if memory.gpu is not None else ""
            return Placement("cpu", streamed, needed, memory.host, unused=memory.unused or small)
    return None


def place_model(base: Path, adapter: Path | None, *, in_4bit: bool, memory: Memory | None = None) -> Placement:
    """Where a base with its adapter is computed. Raises UnsupportedError if it fits nowhere, saying what it needs."""
    size, work, memory = model_size(base, adapter, in_4bit=in_4bit), work_bytes(base), memory or free_memory()
    found = place(size, work, memory)
    if found is not None:
        return found
    parts = {
        "embeddings, head and adapter in float32": size.tables,
        "the largest layer": size.layer,
        "weights that cannot stay in their files": size.held,
        "logits and caches": sum(work),
    }
    told = ", ".join(f"{readable_bytes(count)} for {what}" for what, count in parts.items() if count)
    gpu = f"; the GPU ({memory.gpu_name}) has {readable_bytes(memory.gpu)} free" if memory.gpu is not None else ""
    raise UnsupportedError(
        f"{base}: too little memory for the proof: even layer by layer it needs {readable_bytes(sum(parts.values()))} "
        f"({told}), and may use {SHARE:.0%} of the {readable_bytes(memory.host)} that are free{gpu}. Nothing was "
        "written: that the file computes what the trained model computes (distributions, greedy answers) would not be "
        "proven. Close other programs, or use a machine with more memory."
    )
