"""Which errors mean that memory did not suffice, on a CPU or an accelerator. Names torch.

An error that is taken for one is answered with smaller micro-batches: a wrong one would be tried again in vain, and
reported as what it is not.
"""

import errno
import re

# the words of the libraries, each with where they come from
NO_MEMORY = (
    r"out of memory",  # torch's allocators, the drivers of CUDA, HIP and XPU, Triton, NCCL's copy of CUDA's error
    r"(?:can't|cannot|unable to|failed to|could not) allocate (?:\S+ ){0,2}memory",  # torch on a CPU, the C library
    r"not enough memory",  # torch's CPU allocator on Windows
    r"bad_alloc",  # C++
    r"memory allocation (?:failed|failure|error)",
    r"could not create a (?:memory object|primitive\b(?! descriptor))|could not execute a primitive",  # oneDNN
    r"\w+_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, hipBLAS
    r"CUDNN_STATUS_INTERNAL_ERROR_(?:DEVICE|HOST)_ALLOCATION_FAILED",  # cuDNN 9
    r"CUDNN_STATUS_NOT_SUPPORTED.*workspace",  # no plan fits the workspace that is left; otherwise a shape
    r"_STATUS_NOT_INITIALIZED when calling `\w+Create\b",  # a library's handle, whose workspace found no room
    r"CUSPARSE_STATUS_INSUFFICIENT_RESOURCES|CUFFT_ALLOC_FAILED",
    r"rocblas_status_memory_error|miopenStatusAllocFailed|hipErrorOutOfMemory|cudaErrorMemoryAllocation",
    r"(?:UR_RESULT|PI)_ERROR_OUT_OF_(?:DEVICE_MEMORY|HOST_MEMORY|RESOURCES)",  # XPU
    r"Failed to CUDA (?:malloc|calloc|host ?alloc)",  # NCCL
    r"No or negligible GPU memory",  # Unsloth's fused loss
)  # fmt: skip
_NO_MEMORY = re.compile("|".join(NO_MEMORY), re.IGNORECASE | re.DOTALL)


def out_of_memory(error: BaseException) -> bool:
    """True for the errors that are raised, on a GPU or a CPU, when memory does not suffice."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
