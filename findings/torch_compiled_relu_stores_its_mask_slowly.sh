#!/usr/bin/env bash
# torch 2.13.0, CPU: a compiled ReLU whose gradient is wanted takes several times as long as the eager one. Its mask
# of bools is the reason: without a gradient the compiled forward is fast.
#
# Seen (Linux x86-64, AMD EPYC with AVX-512, gcc 12, one thread, 2 million float32 values):
#     torch.relu(2 x)                     eager        compiled
#     forward, gradient wanted            1.65 ms      22.9 ms
#     forward under no_grad               1.02 ms      0.70 ms
# With vectors of 256 bits (inductor's cpp.simdlen=256) the compiled forward takes as long.
#
# Why: the backward needs to know which values passed. Inductor keeps them as a tensor of bools, and each vector of
# float comparisons goes to bools by way of a buffer in memory (at::vec::VecMask). The backward, which loads them,
# loses the same way. SiLU keeps its input and is not slower.
#
# Why it is worth knowing: batch norm + ReLU of an image, compiled for a CPU, trains 5 to 10 times as slowly as the
# same chain in eager mode. A comparison with "torch.compile" on a CPU may be a comparison with this.
#
# Exits 0 while this holds, 1 if it has changed. It needs a C++ compiler.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" torch==2.13.0 numpy==2.4.6
export TORCHINDUCTOR_CACHE_DIR="$folder/inductor"
PYTHONPATH=$folder python3 - <<'PYTHON'
import statistics
import time

import torch

torch.set_num_threads(1)
x = torch.randn(1 << 21, requires_grad=True)


def double_relu(x):
    return torch.relu(x * 2)


def milliseconds(function):
    for _ in range(3):
        function(x)
    found = []
    for _ in range(15):
        start = time.perf_counter()
        function(x)
        found.append(1e3 * (time.perf_counter() - start))
    return statistics.median(found)


compiled = torch.compile(double_relu)
eager_ms, compiled_ms = milliseconds(double_relu), milliseconds(compiled)
with torch.no_grad():
    plain_eager_ms, plain_compiled_ms = milliseconds(double_relu), milliseconds(compiled)
print(f"gradient wanted: eager {eager_ms:.2f} ms, compiled {compiled_ms:.2f} ms")
print(f"no_grad:         eager {plain_eager_ms:.2f} ms, compiled {plain_compiled_ms:.2f} ms")
if compiled_ms < 3 * eager_ms or plain_compiled_ms > 1.5 * plain_eager_ms:
    raise SystemExit("this has changed")
PYTHON
echo "holds"
