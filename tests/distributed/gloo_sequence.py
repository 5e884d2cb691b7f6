"""Norms of rows under SequenceParallel, with a residual; test_sequence.py judges them.

`python -m tests.distributed.gloo_sequence RANK RANKS PORT FOLDER` writes FOLDER/RANK.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

import fastnorm
from tests.distributed.processes import join

SHAPE, SEQUENCE = (2, 6, 8), 1
NORMS = {
    "ln": lambda: fastnorm.LayerNorm(SHAPE[-1], activation="relu"),
    "rms": lambda: fastnorm.RMSNorm(SHAPE[-1]),
}
CALLS = {
    "positional": lambda norm, x, residual: norm(x, residual),
    "keyword": lambda norm, x, residual: norm(x, residual=residual),
    "none": lambda norm, x, residual: norm(x),
}


def inputs():
    """The whole sequence, and its residual."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2)]


def main(rank, ranks, port, folder):
    join(rank, ranks, port)
    mesh = init_device_mesh("cpu", (ranks,))
    results = {}
    for name, build in NORMS.items():
        norm = build().double()
        parallelize_module(norm, mesh, SequenceParallel(use_local_output=True))
        for call, run in CALLS.items():
            x, residual = (t.chunk(ranks, SEQUENCE)[rank].requires_grad_() for t in inputs())
            y = run(norm, x, residual)
            wanted = [x, residual] if call != "none" else [x]
            results[name, call] = [y.detach(), *torch.autograd.grad(y.square().sum(), wanted)]
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]))
