"""The processes that torchrun starts, one for each device, or this one alone."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from harness.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, start: int, count: int) -> slice:
        """This process's share of `count` rows from `start` on; sizes differ by at most 1."""
        first, last = (start + count * rank // self.size for rank in (self.rank, self.rank + 1))
        return slice(first, last)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, returned in each of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World(rank=0, size=1)


def join(device: torch.device) -> World:
    """The group that torchrun's variables describe: NCCL on GPUs, else gloo. ALONE without any."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ALONE
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU of its own among "
                f"{torch.cuda.device_count()}: use fewer processes or --device cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """End what join began."""
    if dist.is_initialized():
        dist.destroy_process_group()
