"""The processes that torchrun or `accelerate launch` started, until they compute together. Names torch.

The first process prepares the run: it downloads the base, and cleans and tokenises the rows, which may take far longer
than a group of processes waits for one of its members. So the group forms only when every process has its rows. Until
then they meet in the launcher's store: the first one says when the others can read, each says when it is ready, and a
process that fails says so. A process that is killed is noticed by the launcher, which ends the others.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from finetune.model.distributed import SINGLE_PROCESS, DistributedContext, ended_error, local_processes
from finetune.model.sharding import sharding_requested
from gladstone.errors import GladstoneError, ToolError, UnsupportedError

POLL_S = 0.2
PREPARED, READY, FAILED = "prepared", "ready", "failed"  # keys of the store


@contextmanager
def launched(minutes: float) -> Iterator["Launch"]:
    """Meet the processes that a launcher started; without one, this process is alone.

    `minutes` is how long a process waits for another one in a step, and for the others to have their rows. An error in
    the block reaches the other processes. Raises UnsupportedError if there are more processes than GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    launch = Launch(int(os.environ.get("RANK", "0")), count, minutes) if count > 1 else Launch(0, 1, minutes)
    try:
        yield launch
    except BaseException as error:
        launch.fail(error)
        raise
    launch.leave()


class Launch:
    """This process among those of a launcher. Its methods raise ToolError if another process ended."""

    def __init__(self, rank: int, world_size: int, minutes: float) -> None:
        self.rank, self.world_size, self._minutes = rank, world_size, minutes
        self._store: Any = None
        if world_size > 1:
            _take_device()
            self._store = _meet(timedelta(minutes=minutes))

    @property
    def is_main(self) -> bool:
        """True for the process that prepares the run, writes files and reports to the user."""
        return self.rank == 0

    def share(self, text: str) -> None:
        """Give the others a text, once they can read what this process prepared."""
        if self._store is not None:
            self._store.set(PREPARED, text)

    def receive(self) -> str:
        """Wait for the first process to share its text, however long it prepares."""
        self._wait_for(PREPARED, "prepare the rows", None)
        return str(self._store.get(PREPARED).decode())

    def join(self) -> DistributedContext:
        """Wait until all processes are ready, and form the group in which they compute."""
        if self._store is None:
            return SINGLE_PROCESS
        import torch

        self._store.set(f"{READY}{self.rank}", "")
        for rank in range(self.world_size):
            self._wait_for(f"{READY}{rank}", f"be ready (process {rank + 1} is not)", self._minutes * 60)
        nccl = torch.cuda.is_available() and torch.distributed.is_nccl_available()
        torch.distributed.init_process_group(
            "nccl" if nccl else "gloo",
            store=torch.distributed.PrefixStore("group", self._store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(minutes=self._minutes),
        )
        return DistributedContext(self.rank, self.world_size, sharding_requested())

    def fail(self, error: BaseException) -> None:
        """Tell the others, if they still wait, that this process ends."""
        if self._store is not None:
            with suppress(RuntimeError):  # the store is gone, and so are the others
                self._store.set(FAILED, f"process {self.rank + 1} ended ({type(error).__name__})")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name this process in the message of an error."""
        try:
            yield
        except GladstoneError as error:
            raise type(error)(f"process {self.rank + 1} of {self.world_size}: {error}") from error

    def leave(self) -> None:
        """Dissolve the group, after its last computation."""
        if self._store is not None:
            import torch

            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    def _wait_for(self, key: str, what: str, limit_s: float | None) -> None:
        begin_s = time.monotonic()
        while True:
            try:
                if self._store.check([key]):
                    return
                failed = self._store.get(FAILED).decode() if self._store.check([FAILED]) else ""
            except RuntimeError as error:  # the process or the launcher that holds the store
                raise ended_error(error) from error
            if failed:
                raise ToolError(f"the processes of this training end: {failed}, and its own message says why.")
            if limit_s is not None and time.monotonic() - begin_s > limit_s:
                raise ToolError(
                    f"waited {limit_s / 60:g} minutes for all processes to {what}. "
                    "Raise training.process_timeout_minutes if it only needs longer."
                )
            time.sleep(POLL_S)


def _take_device() -> None:
    """Compute on the GPU of this process's number on its machine, or on its share of the processors."""
    import torch

    local, here = int(os.environ.get("LOCAL_RANK", "0")), local_processes()
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // here))
        return
    if here > torch.cuda.device_count():
        raise UnsupportedError(
            f"{here} processes for {torch.cuda.device_count()} GPUs: start one process for each GPU."
        )
    torch.cuda.set_device(local)


def _meet(patience: timedelta) -> Any:
    """Connect to the store of the launcher, or of the first process. Raises ToolError if it cannot be reached."""
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=patience))
    except (RuntimeError, ValueError) as error:
        raise ToolError(
            f"the processes of this training do not find each other ({str(error).splitlines()[0]}). Start them with "
            "torchrun or `accelerate launch`."
        ) from error
    return store
