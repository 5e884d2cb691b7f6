"""Norms with the statistics of a process group; test_statistics.py judges them.

`python -m tests.distributed.gloo_statistics RANK RANKS PORT FOLDER` writes FOLDER/RANK.pt: for each
case this rank's output, gradients and buffers.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import fastnorm
from fastnorm import collectives
from tests.conftest import NO_BIAS
from tests.distributed.processes import join

C, SPATIAL, STEPS = 4, (3, 2), 2
# Four interpreters on a machine's few cores would take a minute to show what two do.
BACKENDS = {2: ("triton", "cpu", "reference"), 4: ("cpu",)}  # by the number of ranks
NORMS = {
    "bn": lambda: fastnorm.BatchNorm2d(C, activation="silu"),
    "bn_cumulative": lambda: fastnorm.BatchNorm2d(C, momentum=None, **NO_BIAS),
    "bn_plain": lambda: fastnorm.BatchNorm2d(C, affine=False, track_running_stats=False),
    "bin": lambda: fastnorm.BatchInstanceNorm2d(C, activation="relu"),
    "sn": lambda: fastnorm.SwitchableNorm2d(C),
}
SIZES = {"equal": lambda rank: 2, "unequal": lambda rank: rank + 1, "empty": lambda rank: 2 * rank}


def build(name):
    norm = NORMS[name]().double()
    for i, parameter in enumerate(norm.parameters()):
        generator = torch.Generator().manual_seed(i)
        parameter.data.copy_(torch.rand(parameter.shape, generator=generator) * 0.8 + 0.1)
    return norm


def batch(rank, step, sizes, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + 10 * step + rank)
    shape = (SIZES[sizes](rank), C, *SPATIAL)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1


def train(norm, batches, residuals, cotangents):
    """Output and gradients of each step, and the buffers at the end."""
    found = []
    for x, residual, dy in zip(batches, residuals, cotangents, strict=True):
        x, residual = x.requires_grad_(), residual.requires_grad_()
        y = norm(x, residual)
        grads = torch.autograd.grad(y, [x, residual, *norm.parameters()], dy)
        found.append([t.detach().clone() for t in (y, *grads)])
    return {"steps": found, "buffers": {k: v.clone() for k, v in norm.named_buffers()}}


def penalty(norm, x):
    """A second derivative: the gradients of |dx|^2."""
    x = x.requires_grad_()
    (dx,) = torch.autograd.grad((norm(x) ** 3).sum(), x, create_graph=True)
    return torch.autograd.grad((dx**2).sum(), x)[0]


def steps_of(rank, sizes):
    return [[batch(rank, step, sizes, seed) for step in range(STEPS)] for seed in range(3)]


def main(rank, ranks, port, folder):
    join(rank, ranks, port)
    reductions = []
    reduce = dist.all_reduce

    def counted(tensor, *args, **kwargs):
        reductions.append(tensor.numel())
        return reduce(tensor, *args, **kwargs)

    collectives.dist.all_reduce = counted
    results = {}
    for backend in BACKENDS[ranks]:
        with fastnorm.use_backend(backend):
            for name in NORMS:
                for sizes in SIZES:
                    norm = fastnorm.convert_sync_batchnorm(build(name))
                    reductions.clear()
                    results[backend, name, sizes] = train(norm, *steps_of(rank, sizes))
                    results[backend, name, sizes]["reductions"] = list(reductions)
            norm = fastnorm.convert_sync_batchnorm(build("bin"))
            results[backend, "penalty"] = penalty(norm, batch(rank, 0, "unequal"))
            with torch.no_grad():
                results[backend, "eval"] = norm.eval()(batch(rank, 0, "unequal"))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]))
