"""Training on several processes, as torchrun or `accelerate launch` start them. Names torch.

Each process computes a part of a step's rows, and the gradients are summed once per step. The adapter's gradients are
small (megabytes): summing them after the last micro-batch costs little, and gives exactly the gradient that one process
would compute for all rows.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gladstone.errors import UnsupportedError

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
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def all_reduce_max(self, value: float) -> float:
        """Return the maximum of the processes' values."""
        if self.world_size == 1:
            return value
        import torch

        tensor = torch.tensor(value, dtype=torch.float64, device=_device())
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
        gradients = [parameter.grad for parameter in parameters]
        flat = torch._utils._flatten_dense_tensors(gradients)
        torch.distributed.all_reduce(flat)
        for gradient, summed in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(summed)

    def broadcast(self, value: T) -> T:
        """Return the main process's value."""
        if self.world_size == 1:
            return value
        import torch

        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.world_size > 1:
            import torch

            torch.distributed.barrier()


SINGLE_PROCESS = DistributedContext()


def is_main_process() -> bool:
    """True in the process that reports to the user; works before `init_distributed`, too."""
    return int(os.environ.get("RANK", "0")) == 0


def init_distributed() -> DistributedContext:
    """Join the processes that a launcher started; return SINGLE_PROCESS if there is no launcher.

    Raises UnsupportedError if there are more processes than GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return SINGLE_PROCESS
    import torch

    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        if here > torch.cuda.device_count():
            raise UnsupportedError(
                f"{here} processes for {torch.cuda.device_count()} GPUs: start one process for each GPU."
            )
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // here))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return DistributedContext(torch.distributed.get_rank(), count, sharded)


def shard_frozen_weights(model: Any) -> None:
    """Shard the layers' frozen weights over the processes (FSDP); each keeps all of embeddings, head and adapter.

    Raises UnsupportedError for 4-bit weights.
    """
    import torch
    from torch.distributed.fsdp import fully_shard

    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    odd = [name for name, parameter in model.named_parameters() if name in frozen and not parameter.is_floating_point()]
    if odd:
        raise UnsupportedError("4-bit weights cannot be sharded over processes (FSDP): set base.load_in_4bit=false.")
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for lists in [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]:
        for layer in lists:
            fully_shard(layer, ignored_params={parameter for parameter in layer.parameters() if parameter in trained})


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
