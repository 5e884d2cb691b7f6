"""Two processes that train one model under each of torch's wrappers; test_wrappers.py judges them.

`python -m tests.distributed.gloo_wrappers RANK RANKS PORT FOLDER` writes FOLDER/RANK.pt: for each
case the parameters and buffers after training. An exception ends the process and its partner's
collective call: neither waits for the other longer than processes.TIMEOUT.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import fastnorm
from tests.distributed.processes import join

RANKS, STEPS = 2, 3
WRAPPERS = ("ddp", "fsdp1", "fsdp1 original parameters", "fully_shard")
BACKENDS = ("triton", "cpu")
LEARNING_RATE = 1.0  # such that the steps carry rho out of [0, 1], at both ends


def build():
    """Every family of norms, with what makes them differ from torch.nn's."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        fastnorm.BatchNorm2d(4, activation="silu"),
        fastnorm.InstanceNorm2d(4, affine=True, track_running_stats=True),
        fastnorm.GroupNorm(2, 4, activation="gelu"),
        fastnorm.LayerNorm((4, 3, 3)),
        fastnorm.BatchInstanceNorm2d(4),  # last: most norms would undo what rho does
    ).double()
    model[5].rho.data.copy_(torch.tensor([0.999, 0.4, 0.001, 0.6]))
    return model


def batch(rank, step):
    """What this rank sees in this step."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(3, 3, 3, 3, generator=generator, dtype=torch.float64)


def loss_of(y):
    return (3 * y).cos().mean()


def project(model):
    """Read every rho: between two steps, where the shards are what the modules hold."""
    for module in model.modules():
        _ = getattr(module, "rho", None)


def wrap(model, wrapper):
    if wrapper == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if wrapper == "fully_shard":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (RANKS,))
        fully_shard(model[5], mesh=mesh)  # one group of its own, the others in the root's
        return fully_shard(model, mesh=mesh)
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), use_orig_params=wrapper != "fsdp1"
    )


def full_state(model, wrapper):
    """The whole state_dict, gathered."""
    if wrapper == "ddp":
        return model.module.state_dict()
    if wrapper == "fully_shard":
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
        return model.state_dict()


def train(wrapper, rank):
    model = wrap(build(), wrapper)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model(batch(rank, step))).backward()
        optimizer.step()
        project(model)
    model.eval()
    with torch.no_grad():
        y = model(batch(0, STEPS))  # the same in all ranks
    return {"state": {k: v.clone() for k, v in full_state(model, wrapper).items()}, "y": y}


def main(rank, ranks, port, folder):
    join(rank, ranks, port)
    results = {}
    for backend in BACKENDS:
        with fastnorm.use_backend(backend):
            for wrapper in WRAPPERS:
                print(f"{backend}, {wrapper}", file=sys.stderr, flush=True)
                results[backend, wrapper] = train(wrapper, rank)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]))
