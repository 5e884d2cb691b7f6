"""Batch norm over processes: two processes with half a batch each train as one with all of it.

torchrun --nproc-per-node=2 docs/examples/sync_bn.py    # NCCL or, without GPUs, gloo
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastnorm

STEPS, BATCH = 5, 8


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, dtype=torch.float64),
        fastnorm.BatchNorm2d(8, activation="relu", dtype=torch.float64),
        nn.Conv2d(8, 4, 3, dtype=torch.float64),
    )


def train(model: nn.Module, batches: list[Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images in batches:
        optimizer.zero_grad()
        model(images).cos().mean().backward()
        optimizer.step()


def main() -> None:
    if "RANK" not in os.environ:
        raise SystemExit("start it with torchrun --nproc-per-node=2 docs/examples/sync_bn.py")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.device_count() >= ranks
    device = torch.device(f"cuda:{rank}" if on_gpu else "cpu")
    dist.init_process_group("nccl" if on_gpu else "gloo")
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, BATCH, 3, 8, 8)
    batches = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    model = fastnorm.convert_sync_batchnorm(build()).to(device)
    train(DistributedDataParallel(model), [batch.chunk(ranks)[rank] for batch in batches])
    alone = build().to(device)
    train(alone, list(batches))

    torch.testing.assert_close(model.state_dict(), alone.state_dict())
    if rank == 0:
        print(f"{ranks} processes: parameters and running statistics are those of one")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
