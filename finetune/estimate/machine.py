"""The machine that an estimate is for: this CPU or GPU, or another GPU by its data sheet. Names torch."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from finetune.sizing.devices import Device, known_device
from finetune.sizing.memory import ComputeSetting, Memory, gpu_setting
from finetune.sizing.model_shape import Shape
from gladstone.machine.gpu_memory import usable_gpu_bytes
from gladstone.machine.host import available_memory_bytes, core_count, cpu_name, readable_bytes

LIBRARIES_BYTES = 650_000_000  # of a training process before it loads the model, at least
FIRST_STEP_BYTES = 380_000_000  # kernels, thread buffers, and heap that glibc keeps after loading
CONTEXT_BYTES = 450_000_000  # assumed: of the CUDA context, which exists once the free memory is read
PRODUCT_SIZE, PRODUCTS = 1536, 6  # of the matrix products that measure a CPU


@dataclass(frozen=True)
class Machine:
    """Where a model is trained, and how.

    `limit_bytes` is all memory that the process may use; `device` holds published rates, None if they are not known.
    """

    name: str
    setting: ComputeSetting
    limit_bytes: int
    device: Device | None = None
    is_here: bool = True

    def rates(self, shape: Shape) -> Device | None:
        """What the time is computed from: a data sheet, or a measured product on the CPU; None for an unknown GPU."""
        if self.setting.on_gpu:
            return self.device
        return _measured_cpu("float32" if shape.is_encoder_decoder else "bfloat16")

    def notes(self, memory: Memory) -> Iterator[str]:
        """What a user needs to know of the machine: why it cannot be used, and what lies in host memory."""
        if self.device is not None and not self.is_here and self.device.note:
            yield self.device.note
        if memory.offloaded:
            yield f"{readable_bytes(memory.offloaded)} of the recomputed layers' inputs lie in host memory"
            free = available_memory_bytes()
            if self.is_here and memory.offloaded > free:
                yield f"of host memory only {readable_bytes(free)} are free: lower training.batch_size"


def other_machine(device: Device, shape: Shape) -> Machine:
    """A GPU that is not here, with all of its memory free."""
    setting = gpu_setting(shape, device.capability, device.memory_bytes)
    return Machine(device.name, setting, int(device.memory_bytes), device, is_here=False)


def this_machine(shape: Shape) -> Machine:
    """This process's GPU, or the CPU; reads the free memory, so call it before anything is measured."""
    import torch

    if torch.cuda.is_available():
        index = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(index)
        limit = usable_gpu_bytes() + CONTEXT_BYTES
        setting = gpu_setting(shape, (properties.major, properties.minor), limit)
        return Machine(f"this machine's {properties.name}", setting, limit, known_device(properties.name))
    process = _process_bytes() + FIRST_STEP_BYTES
    setting = ComputeSetting(padded=shape.refuses_packing, process_bytes=process)
    name = f"this machine ({cpu_name()}, {core_count()} cores)"
    return Machine(name, setting, available_memory_bytes() + process)


def _process_bytes() -> int:
    import psutil

    return max(LIBRARIES_BYTES, int(psutil.Process().memory_info().rss))


def _measured_cpu(dtype: str) -> Device:
    """Measure the CPU's rate with large matrix products in the dtype of training.

    The best of a few counts, because other load on the machine passes.
    """
    import torch

    taken = []
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE).to(getattr(torch, dtype)) for _ in range(2))
    left @ right
    for _ in range(PRODUCTS):
        begin_s = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - begin_s)
    rate = 2 * PRODUCT_SIZE**3 / min(taken)
    return Device("this machine", 0, rate, rate, 10e9, (0, 0))
