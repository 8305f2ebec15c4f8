"""Training on several processes, as torchrun or `accelerate launch` start them. Names torch.

Each process computes a part of a step's rows, and the gradients are summed once per step. The adapter's gradients are
small (megabytes): summing them after the last micro-batch costs little, and gives exactly the gradient that one process
would compute for all rows. `finetune.model.launch` makes the group of processes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from gladstone.errors import ToolError

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """The rank of this process among `world_size`; `sharded`: each holds a part of the base's weights (FSDP)."""

    rank: int = 0
    world_size: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and reports to the user."""
        return self.rank == 0

    def own_part(self, rows: Sequence[T]) -> list[T]:
        """Return this process's rows; the parts of all processes differ by at most one row."""
        return list(rows[self.rank :: self.world_size])

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Return each value, summed over the processes in float64."""
        if self.world_size == 1:
            return list(values)
        import torch

        tensor = torch.tensor(values, dtype=torch.float64, device=_device())
        with _answered():
            torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def all_reduce_max(self, value: float) -> float:
        """Return the maximum of the processes' values."""
        if self.world_size == 1:
            return value
        import torch

        tensor = torch.tensor(value, dtype=torch.float64, device=_device())
        with _answered():
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return float(tensor)

    def all_reduce_gradients(self, parameters: Sequence[Any]) -> None:
        """Sum the parameters' gradients over the processes, in one call."""
        if self.world_size == 1:
            return
        import torch

        for parameter in parameters:  # a process without rows has no gradients
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        with _flat([parameter.grad for parameter in parameters]) as flat, _answered():
            torch.distributed.all_reduce(flat)

    def broadcast_parameters(self, parameters: Sequence[Any]) -> None:
        """Give every process the main process's values, in one call: the initial adapter may depend on the GPU."""
        if self.world_size == 1:
            return
        import torch

        with _flat([parameter.data for parameter in parameters]) as flat, _answered():
            torch.distributed.broadcast(flat, src=0)

    def broadcast(self, value: T) -> T:
        """Return the main process's value."""
        if self.world_size == 1:
            return value
        import torch

        values = [value]
        with _answered():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.world_size
        with _answered():
            torch.distributed.all_gather_object(values, value)
        return values


SINGLE_PROCESS = DistributedContext()


def is_main_process() -> bool:
    """True in the process that reports to the user; works before the processes have met, too."""
    return int(os.environ.get("RANK", "0")) == 0


def local_processes() -> int:
    """Number of processes of this training on this machine, which share its memory and processors."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 1


def ended_error(error: Exception) -> ToolError:
    """Return the error for a call that another process did not answer."""
    why = (str(error).splitlines() or [""])[0][:200]
    return ToolError(
        "another process of this training ended, or did not answer within training.process_timeout_minutes; its own "
        f"message says why. Saved checkpoints are whole: --resume goes on from them. ({why})"
    )


@contextmanager
def _flat(tensors: Sequence[Any]) -> Iterator[Any]:
    """Yield the tensors as one; what it holds at the end is copied back into them."""
    import torch

    flat = torch._utils._flatten_dense_tensors(tensors)
    yield flat
    for tensor, changed in zip(tensors, torch._utils._unflatten_dense_tensors(flat, tensors), strict=True):
        tensor.copy_(changed)


@contextmanager
def _answered() -> Iterator[None]:
    """Raises ToolError if another process does not take part."""
    try:
        yield
    except RuntimeError as error:
        raise ended_error(error) from error


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
