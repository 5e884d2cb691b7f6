"""Norms in blocks of torch.utils.checkpoint: a recomputation counts as it does for torch.nn's.

torch's norms move their statistics in every forward, the recomputation's too, even if that stops
early, inside the norm. So the truth is two plain forwards of the same input.
"""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import fastnorm
from tests.conftest import DEVICE, assert_close, combinations, make_input, running

C, SHAPE = 4, (3, 4, 3, 2)
NORMS = {
    "bn": lambda: fastnorm.BatchNorm2d(C),
    "bn_cumulative": lambda: fastnorm.BatchNorm2d(C, momentum=None, activation="relu"),
    "bn_plain_affine": lambda: fastnorm.BatchNorm2d(C, affine=False),
    "in": lambda: fastnorm.InstanceNorm2d(C, affine=True, track_running_stats=True),
    "bin": lambda: fastnorm.BatchInstanceNorm2d(C),
    "mean_only": lambda: fastnorm.MeanOnlyBatchNorm2d(C, activation="silu"),
    "sn": lambda: fastnorm.SwitchableNorm2d(C),
    "sn_cumulative": lambda: fastnorm.SwitchableNorm2d(C, momentum=None),
}


def recompute_all(ctx, op, *args, **kwargs):
    return CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = functools.partial(create_selective_checkpoint_contexts, recompute_all)
WAYS = {
    "early stop": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "no early stop": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "selective": lambda block, x: checkpoint(block, x, use_reentrant=False, context_fn=SELECTIVE),
    "reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
}


def block_of(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(C, C, 1), norm).to(DEVICE, torch.float64)


def trained(block, x, way=None):
    """Gradients of one backward, by way of a checkpoint or plainly."""
    x = x.clone().requires_grad_()
    with set_checkpoint_early_stop(way != "no early stop"):
        y = block(x) if way is None else WAYS[way](block, x)
    y.sin().sum().backward()
    return [x.grad, *(p.grad for p in block.parameters())]


# Under a dispatch mode that is torch's own instance norm, which moves its statistics last: not
# where a recomputation stops in it. The others cannot know that.
SEEN_ONCE = ("cpu", "in", "selective")
CASES = combinations(
    ("triton", "cpu", "reference"), NORMS, WAYS,
    quick=lambda name, way: way == "early stop" or name == "bn",
)  # fmt: skip


@pytest.mark.parametrize(("backend", "name", "way"), CASES)
def test_a_recomputed_block_has_seen_its_batch_twice(backend, name, way):
    block, x = block_of(NORMS[name]()), make_input(SHAPE, mean=2.0)
    plain = copy.deepcopy(block)
    with running(backend):
        found = trained(block, x, way)
        expected = trained(plain, x)
        if (backend, name, way) != SEEN_ONCE:
            plain(x)
    for mine, exact in zip(found, expected, strict=True):
        assert_close(mine, exact, "gradient", slack=1e-12)
    for key, exact in plain.named_buffers():
        assert_close(dict(block.named_buffers())[key], exact, key, slack=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_that_is_what_torchs_does(way):
    """The truth above, seen in torch.nn's batch norm."""
    block, x = block_of(nn.BatchNorm2d(C)), make_input(SHAPE, mean=2.0)
    plain = copy.deepcopy(block)
    trained(block, x, way)
    plain(x), plain(x)
    for key, exact in plain.named_buffers():
        assert_close(dict(block.named_buffers())[key], exact, key, slack=1e-12)
