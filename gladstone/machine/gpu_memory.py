"""The memory of the GPU that this process computes on. Names torch, which the caller has imported."""

import sys
from typing import Any


def usable_gpu_bytes() -> int:
    """Bytes that this process can still allocate on its GPU: the free ones, and those that torch keeps unused."""
    import torch

    free: int = torch.cuda.mem_get_info()[0]
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def gpu_memory_facts() -> dict[str, Any] | None:
    """What a manifest records of the GPU's memory; None if this process has not used a GPU.

    `peak_allocated_bytes` were in tensors, `peak_reserved_bytes` were held by torch's allocator. Neither counts the
    CUDA context. Imports nothing: a process that has not loaded torch has used none.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "total_bytes": int(properties.total_memory),
        "peak_allocated_bytes": int(torch.cuda.max_memory_allocated()),
        "peak_reserved_bytes": int(torch.cuda.max_memory_reserved()),
    }
