"""Two processes with DTensors; test_dtensor.py judges their results.

`python -m tests.distributed.gloo_dtensor RANK RANKS PORT FOLDER` writes FOLDER/RANK.pt: for each
case the whole output, gradients and buffers, and the placements of the output.
"""

import itertools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

import fastnorm
from tests.distributed.processes import join

RANKS = 2
BACKENDS = ("triton", "cpu")
SHAPE = (3, 4, 6, 5)  # a batch that two processes do not share evenly
NORMS = {
    "bn": lambda p: p.BatchNorm2d(4),
    "bn_cumulative": lambda p: p.BatchNorm2d(4, momentum=None),
    "in": lambda p: p.InstanceNorm2d(4, affine=True),
    "in_tracked": lambda p: p.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "gn": lambda p: p.GroupNorm(2, 4),
    "ln": lambda p: p.LayerNorm(SHAPE[2:]),
    "rms": lambda p: p.RMSNorm(SHAPE[-1]),
    "bin": lambda p: p.BatchInstanceNorm2d(4),
    "mean_only": lambda p: p.MeanOnlyBatchNorm2d(4),
    "sn": lambda p: p.SwitchableNorm2d(4),
    "add_ln": lambda p: p.AddLayerNorm(SHAPE[-1]),
    "add_rms": lambda p: p.AddRMSNorm(SHAPE[2:]),
}
PLACEMENTS = {"batch": Shard(0), "channels": Shard(1), "rows": Shard(2), "whole": Replicate()}
CASES = [
    *itertools.product(NORMS, ("batch",), (True, False)),
    *itertools.product(("bn", "in_tracked", "gn", "bin", "ln"), ("channels", "rows"), (True,)),
    ("bn", "channels", False), ("bn", "rows", False), ("rms", "channels", True),
    ("add_ln", "rows", True), ("ln", "whole", True),
]  # fmt: skip


def build(name, train):
    """The module with values that no constructor would make."""
    module = NORMS[name](fastnorm).double().train(train)
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(values / 2 + 0.3)
    return module


def inputs():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) + 1 for _ in range(2)]


def loss_of(y):
    return (3 * y).cos().sum()


def run(module, x, residual):
    y = module(x, residual)
    loss = loss_of(y[0]) + loss_of(2 * y[1]) if isinstance(y, tuple) else loss_of(y)
    loss.backward()
    results = {"y": y[0], "sum": y[1]} if isinstance(y, tuple) else {"y": y}
    results |= {"dx": x.grad, "dresidual": residual.grad}
    results |= {f"d{name}": p.grad for name, p in module.named_parameters()}
    return results | dict(module.named_buffers())


def whole(tensor):
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


def distributed(name, placement, train, mesh):
    module = distribute_module(build(name, train), mesh)  # everything replicated
    x, residual = (
        distribute_tensor(t, mesh, [PLACEMENTS[placement]]).requires_grad_() for t in inputs()
    )
    results = run(module, x, residual)
    found = {key: whole(tensor) for key, tensor in results.items()}
    return found | {"placements": repr(results["y"].placements)}


def sequence_parallel(kind, mesh, package):
    """(N, L, D) sharded along L; the module is given a process's own part."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), getattr(package, kind)(6)).double()
    parallelize_module(model, mesh, {"1": SequenceParallel()})
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    part = x.chunk(RANKS, 1)[mesh.get_local_rank()].requires_grad_()
    y = model[1](part)
    loss_of(y.to_local()).backward()
    gradients = {f"d{n}": whole(p.grad) for n, p in model[1].named_parameters()}
    return {"y": whole(y), "dx": part.grad.clone(), **gradients}


def channels_last(mesh):
    """Whether y, whole and local, is laid out as x."""
    part = inputs()[0].to(memory_format=torch.channels_last)
    x = DTensor.from_local(part, mesh, [Shard(0)])
    y = distribute_module(NORMS["gn"](fastnorm).double(), mesh)(x)
    return (y.shape, y.stride(), y.to_local().stride()) == (x.shape, x.stride(), part.stride())


def compiled(mesh):
    """The difference that torch.compile makes, which is handed DTensors."""
    module = distribute_module(NORMS["gn"](fastnorm).double(), mesh)
    x = distribute_tensor(inputs()[0], mesh, [Shard(0)])
    y = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
    return (whole(y) - whole(module(x))).abs().max().item()


def refused(mesh):
    """A plain module beside a DTensor."""
    try:
        build("gn", True)(distribute_tensor(inputs()[0], mesh, [Shard(0)]))
    except RuntimeError as error:
        return str(error)
    return "nothing was raised"


def main(rank, ranks, port, folder):
    join(rank, ranks, port)
    mesh = init_device_mesh("cpu", (ranks,))
    results = {}
    for backend in BACKENDS:
        with fastnorm.use_backend(backend):
            for case in CASES:
                print(backend, case, file=sys.stderr, flush=True)
                results[backend, *case] = distributed(*case, mesh)
            for kind in ("LayerNorm", "RMSNorm"):
                results[backend, kind] = sequence_parallel(kind, mesh, fastnorm)
            results[backend, "channels_last"] = channels_last(mesh)
            results[backend, "compiled"] = compiled(mesh)
            results[backend, "refused"] = refused(mesh)
    for kind in ("LayerNorm", "RMSNorm"):
        results["torch", kind] = sequence_parallel(kind, mesh, nn)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]))
