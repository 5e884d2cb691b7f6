"""Compiled models with synchronised norms, in two processes; test_compiled.py judges them.

`python -m tests.distributed.gloo_compiled RANK RANKS PORT FOLDER` writes FOLDER/RANK.pt: for each
case of FOLDER/cases.pt each step's output, gradients and buffers.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import fastnorm
from tests.distributed.processes import join
from tests.tracing.nets import loss

C, SHAPE, STEPS = 4, (3, 4, 5, 3), 2
NORMS = {
    "bn": lambda momentum: fastnorm.BatchNorm2d(C, momentum=momentum),
    "bin": lambda momentum: fastnorm.BatchInstanceNorm2d(C, momentum=momentum),
    "sn": lambda momentum: fastnorm.SwitchableNorm2d(C, momentum=momentum),
}


def build(name, momentum, depth):
    """So many norms, one behind the other."""
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(C, C, 1, bias=False), NORMS[name](momentum), nn.Tanh())
        for _ in range(depth)
    ]
    return nn.Sequential(*blocks).double()


def batch(rank, step, mean):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64) + mean


def train(run, model, batches):
    """Output, gradients and buffers of each step; the loss of a batch is the sum of its parts'."""
    found = []
    for x in batches:
        x.requires_grad_()
        model.zero_grad()
        y = run(x)
        sum(loss(part) for part in y.split(SHAPE[0])).backward()
        tensors = [y, x.grad, *(p.grad for p in model.parameters()), *model.buffers()]
        found.append([t.detach().clone() for t in tensors])
    return found


def main(rank, ranks, port, folder):
    join(rank, ranks, port)
    results = {}
    for case in torch.load(folder / "cases.pt"):
        backend, compiler, name, mean, momentum, depth = case
        print(case, file=sys.stderr, flush=True)
        torch._dynamo.reset()
        model = fastnorm.convert_sync_batchnorm(build(name, momentum, depth))
        run = torch.compile(model, backend=compiler, fullgraph=True)
        with fastnorm.use_backend(backend):
            results[case] = train(run, model, [batch(rank, s, mean) for s in range(STEPS)])
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]))
