#!/usr/bin/env bash
# torch 2.13.0, CPU: the batching rule of a custom operator (torch.library.register_vmap) cannot call torch.vmap. The
# same rule of an autograd.Function can.
#
# Seen (Linux x86-64):
#     rule of                        that calls torch.vmap       that moves the batch itself
#     autograd.Function              right                       right
#     torch.library.custom_op        internal assertion          right
# The error is `savedLocalDispatchKeySet_.has_value() INTERNAL ASSERT FAILED at .../functorch/Interpreter.h`.
#
# Why it is worth knowing: both rules take the same arguments, (info, in_dims, *args). If an operator has no batched
# form, torch.vmap of the plain formula is the natural rule. An example is a norm whose samples each have their own
# weight. The rule of a custom operator cannot use torch.vmap: it has to move the batch to the front and call a
# function that handles it there.
#
# Exits 0 while this holds, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" torch==2.13.0 numpy==2.4.6
PYTHONPATH=$folder python3 - <<'PYTHON'
import torch
from torch import Tensor


def formula(x, weight):
    """RMS norm of a row."""
    return x / x.square().mean(-1, keepdim=True).sqrt() * weight


def by_vmap(info, in_dims, x, weight):
    return torch.vmap(formula, in_dims)(x, weight), 0


def by_hand(info, in_dims, x, weight):
    x, weight = (t.movedim(d, 0) for t, d in zip((x, weight), in_dims))
    return formula(x, weight.unsqueeze(1)), 0


def of_function(rule):
    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(x, weight):
            return formula(x, weight)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        vmap = staticmethod(rule)

    return Norm.apply


def of_operator(rule):
    @torch.library.custom_op(f"probe::{rule.__name__}", mutates_args=())
    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return formula(x, weight)

    norm.register_vmap(rule)
    return norm


def outcome(call, x, weight):
    try:
        y = torch.vmap(call)(x, weight)
    except RuntimeError as error:
        return "internal assertion" if "INTERNAL ASSERT" in str(error) else f"another error: {error}"
    return "right" if torch.equal(y, formula(x, weight.unsqueeze(1))) else "wrong"


print(f"torch {torch.__version__}")
x, weight = torch.randn(3, 4, 5), torch.randn(3, 5)
seen = {}
for kind in (of_function, of_operator):
    for rule in (by_vmap, by_hand):
        seen[kind, rule] = outcome(kind(rule), x, weight)
        print(f"{kind.__name__:12} {rule.__name__:8} {seen[kind, rule]}")
expected = {key: "right" for key in seen} | {(of_operator, by_vmap): "internal assertion"}
raise SystemExit(0 if seen == expected else "this is no longer so")
PYTHON
