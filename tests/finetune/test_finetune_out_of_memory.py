"""What libraries say when memory does not suffice, and what they say of other faults."""

import errno

import pytest

from finetune.model.out_of_memory import out_of_memory

# of torch 2.6 to 2.13, CUDA 12 and 13, ROCm 6, XPU, NCCL 2.2x, Triton 3, oneDNN 3, Unsloth 2026.10
NO_MEMORY = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.74 GiB of which 1.06 GiB is free. "
    "Including non-PyTorch memory, this process has 13.67 GiB memory in use.",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle, computeDesc.descriptor())`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED when calling `cudnnCreate(&handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN Frontend error: CUDNN_STATUS_NOT_SUPPORTED: no plan fits the workspace limit",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES when calling `cusparseCreate(handle)`",
    "HIP out of memory. Tried to allocate 64.00 MiB. GPU 0 has a total capacity of 15.98 GiB",
    "HIP error: out of memory",
    "HIP error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(&handle)`",
    "XPU out of memory. Tried to allocate 512.00 MiB (GPU 0; 15.91 GiB total capacity)",
    "Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB).",
    "Triton Error [CUDA]: out of memory",
    "NCCL error in: ProcessGroupNCCL.cpp:2029, unhandled cuda error, NCCL version 2.21.5\nncclUnhandledCudaError: Call "
    "to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
    "ncclSystemError: System call failed.\nLast error:\nFailed to CUDA calloc async 608 bytes",
    "Unsloth: No or negligible GPU memory available for fused cross entropy.",
    "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp",  # bitsandbytes
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "17179869184 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:79] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
    "unable to mmap 497774208 bytes from file </model.safetensors>: Cannot allocate memory (12)",
    "std::bad_alloc",
    "could not create a primitive",
    "could not execute a primitive",
    "backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB",
]
OTHER = [
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: misaligned address",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: invalid configuration argument",
    "CUDA error: unspecified launch failure",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmulAlgoGetHeuristic( ltHandle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "out of resource: shared memory, Required: 98304, Hardware limit: 65536. Reducing block sizes or `num_stages` may "
    "help.",
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE) ran for 600000 milliseconds",
    "mat1 and mat2 shapes cannot be multiplied (8x576 and 1536x576)",
    "index 49152 is out of bounds for dimension 0 with size 49152",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
    "The NVIDIA driver on your system is too old (found version 12080).",
    "No CUDA GPUs are available",
    "could not create a primitive descriptor for the matmul primitive",
    "view size is not compatible with input tensor's size and stride (at least one dimension spans across two "
    "contiguous subspaces)",
    "cublasLt ran into an error!",  # bitsandbytes, of shapes
    "pidfd_getfd: Operation not permitted",
    "FlashAttention only supports Ampere GPUs or newer.",
    "PytorchStreamReader failed reading zip archive: failed finding central directory",
]


@pytest.mark.parametrize("message", NO_MEMORY)
def test_what_says_that_memory_does_not_suffice_is_taken_for_it(message: str) -> None:
    assert out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("message", OTHER)
def test_what_says_something_else_is_not(message: str) -> None:
    assert not out_of_memory(RuntimeError(message))


def test_the_kind_of_an_error_counts_as_its_words_do() -> None:
    import torch

    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("anything"))
    assert out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not out_of_memory(ValueError("a row says: out of memory"))
