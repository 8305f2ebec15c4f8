"""One training on several processes, as torchrun or `accelerate launch` start them. Names torch.

Each process takes a share of a step's rows; what they learnt is summed once a step. The adapter's gradients are small
(megabytes), so that summing them after the last micro-batch costs next to nothing, and the sum is exactly the gradient
that one process would have had of all the rows.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gladstone.errors import UnsupportedError

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among `count`; `sharded`: each holds only a part of the base's weights (FSDP)."""

    rank: int = 0
    world_size: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and talks to the user."""
        return self.rank == 0

    def own_part(self, rows: Sequence[T]) -> list[T]:
        """This process's part, as long as the others' but for one."""
        return list(rows[self.rank :: self.world_size])

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Each value summed over the processes."""
        if self.world_size == 1:
            return list(values)
        import torch

        tensor = torch.tensor(values, dtype=torch.float64, device=_device())
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def all_reduce_max(self, value: float) -> float:
        """The greatest of the processes' values."""
        if self.world_size == 1:
            return value
        import torch

        tensor = torch.tensor(value, dtype=torch.float64, device=_device())
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return float(tensor)

    def all_reduce_gradients(self, parameters: Sequence[Any]) -> None:
        """Sum the parameters' gradients over the processes, in one message."""
        if self.world_size == 1:
            return
        import torch

        for each in parameters:  # a process whose share is empty has none
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        whole = torch._utils._flatten_dense_tensors([each.grad for each in parameters])
        torch.distributed.all_reduce(whole)
        for each, summed in zip(
            parameters, torch._utils._unflatten_dense_tensors(whole, [each.grad for each in parameters]), strict=True
        ):
            each.grad.copy_(summed)

    def broadcast(self, value: T) -> T:
        """What the first process says."""
        if self.world_size == 1:
            return value
        import torch

        said = [value]
        torch.distributed.broadcast_object_list(said, src=0)
        return said[0]

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            import torch

            torch.distributed.barrier()


SINGLE_PROCESS = DistributedContext()


def is_main_process() -> bool:
    """True in the process that talks to the user, before or after they have met."""
    return int(os.environ.get("RANK", "0")) == 0


def init_distributed() -> DistributedContext:
    """Meet the processes that a launcher started; alone where there is none.

    Raises UnsupportedError if the processes of a GPU machine are more than its GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return SINGLE_PROCESS
    import torch

    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        if here > torch.cuda.device_count():
            raise UnsupportedError(f"{here} processes for {torch.cuda.device_count()} GPUs: start one for each GPU.")
        torch.cuda.set_device(local)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // here))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return DistributedContext(torch.distributed.get_rank(), count, sharded)


def shard_frozen_weights(model: Any) -> None:
    """Spread the layers' frozen weights over the processes; embeddings, head and adapter stay whole in each.

    Raises UnsupportedError for weights in 4 bit.
    """
    import torch
    from torch.distributed.fsdp import fully_shard

    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    odd = [name for name, each in model.named_parameters() if name in frozen and not each.is_floating_point()]
    if odd:
        raise UnsupportedError("weights in 4 bit cannot be spread over processes (FSDP): set base.load_in_4bit=false.")
    trained = {each for each in model.parameters() if each.requires_grad}
    for lists in [each for each in model.modules() if isinstance(each, torch.nn.ModuleList)]:
        for layer in lists:
            fully_shard(layer, ignored_params={each for each in layer.parameters() if each in trained})


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
