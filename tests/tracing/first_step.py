"""`python first_step.py nn|ours`: CPU seconds of the first compiled training step, without a cache.

Processor time, compilers' included, hardly depends on what else the machine does.
"""

import os
import sys
import tempfile

import torch
from torch import nn

import fastnorm


def model() -> nn.Sequential:
    blocks: list[nn.Module] = []
    channels = 3
    for norm in (nn.BatchNorm2d(16), nn.GroupNorm(4, 16), nn.InstanceNorm2d(16, affine=True)):
        blocks += [nn.Conv2d(channels, 16, 3, padding=1, bias=False), norm, nn.ReLU()]
        channels = 16
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 10))
    return nn.Sequential(*blocks, *head)


if __name__ == "__main__":
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # in this process: its children are counted
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        net = model()
        if sys.argv[1] == "ours":
            net = fastnorm.convert(net).model
            assert type(net[1]) is fastnorm.BatchNorm2d
        run = torch.compile(net)
        before = os.times()
        run(torch.randn(8, 3, 32, 32)).sum().backward()
        print(sum(os.times()[:4]) - sum(before[:4]))
