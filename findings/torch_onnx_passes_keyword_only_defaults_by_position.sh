#!/usr/bin/env bash
# torch 2.13.0, torch.onnx.export(dynamo=False): a module whose forward has a keyword-only argument with a default
# cannot be exported. The exporter passes the default by position.
#
# Seen (Linux x86-64):
#     forward(self, x, scale=None)       exported
#     forward(self, x, *, scale=None)    TypeError: KeywordOnly.forward() takes 2 positional arguments but 3 were given
#     the same inside nn.Sequential      exported
# Why it is worth knowing: the module runs, and torch.jit.trace and the newer exporter (dynamo=True) accept it. The
# keyword arguments that the caller of torch.onnx.export gives are passed by position as well. A module that
# takes part in a larger model is not affected: only the signature of the exported module counts.
#
# Exits 0 while this holds, 1 if it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" \
    torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.0
PYTHONPATH=$folder python3 -W ignore - <<'PYTHON'
import io

import torch
from torch import nn


class Positional(nn.Module):
    def forward(self, x, scale=None):
        return 2 * x if scale is None else scale * x


class KeywordOnly(nn.Module):
    def forward(self, x, *, scale=None):
        return 2 * x if scale is None else scale * x


def exported(model):
    model(torch.ones(3))
    torch.jit.trace(model, torch.ones(3))
    try:
        torch.onnx.export(model, (torch.ones(3),), io.BytesIO(), dynamo=False, opset_version=17)
    except TypeError as error:
        return f"TypeError: {error}"
    return "exported"


print(f"torch {torch.__version__}")
models = {
    "scale=None": Positional(),
    "*, scale=None": KeywordOnly(),
    "*, scale=None in nn.Sequential": nn.Sequential(KeywordOnly()),
}
seen = {name: exported(model) for name, model in models.items()}
for name, result in seen.items():
    print(f"{name:<32}{result}")
first, alone, inside = seen.values()
holds = first == inside == "exported" and "takes 2 positional arguments but 3 were given" in alone
raise SystemExit(0 if holds else "this is no longer so")
PYTHON
