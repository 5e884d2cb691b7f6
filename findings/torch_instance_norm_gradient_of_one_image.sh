#!/usr/bin/env bash
# torch 2.13.0, CPU: for a batch of one image instance norm's dx is wrong, without a message, if the gradient that
# reaches it lies channels last. The forward is right, and so is the dx of two images.
#
# Seen (Linux x86-64; 2.15.0 shows the same): relative error of dx before a convolution of a channels-last network
#     images    error
#     1         1.5
#     2         2e-07
# Why it is worth knowing: on a CPU instance norm is batch norm of (1, N C, H, W), of a contiguous copy of x. On its
# way through that view the gradient of one image keeps the strides of channels last; the gradient of two images does
# not. Style transfer and volumes train on batches of one. To keep the convolutions of a channels-last network fast,
# users call .contiguous(memory_format=torch.channels_last) after the norm, because its output is contiguous.
#
# Exits 0 while this holds, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" torch==2.13.0 numpy==2.4.6
PYTHONPATH=$folder python3 - <<'PYTHON'
import torch
from torch import nn

C = 8


def formula(x):
    var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def gradient(norm, images, dtype):
    """dx of the norm before a convolution of a channels-last network."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(C, 5, 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(images, C, 9, 7, generator=generator)
    x = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    y = conv.to(dtype)(norm(x).contiguous(memory_format=torch.channels_last))
    return torch.autograd.grad(y.square().mean(), x)[0]


print(f"torch {torch.__version__}")
seen = {}
for images in (1, 2):
    exact = gradient(formula, images, torch.float64)
    found = gradient(nn.InstanceNorm2d(C), images, torch.float32)
    seen[images] = ((found - exact).norm() / exact.norm()).item()
    print(f"images {images}   relative error of dx {seen[images]:.1e}")
raise SystemExit(0 if seen[1] > 0.1 and seen[2] < 1e-5 else "this is no longer so")
PYTHON
