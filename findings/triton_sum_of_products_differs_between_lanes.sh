#!/usr/bin/env bash
# tl.sum(a * b), one element a thread: the compiler contracts the product with the first step of the
# sum across lanes, shfl.sync.bfly then fma.rn. So each of two lanes adds its own unrounded product
# to the other's rounded product, and the two copies of the sum differ in the last bit. If Triton
# then passes the sum through shared memory, all lanes of a warp store to one address in one
# instruction. It is undefined which value stays (PTX ISA, st). Results may differ in the last bit
# from architecture to architecture, and between warps from run to run. If the product is rounded
# first, by tl.fma(a, b, 0.0), all copies are equal.
#
# Seen with: triton 3.9.0, compiled for sm_90; NumPy repeats the additions of the code.
# Output:    contracted: True with tl.fma: False; pairs of lanes that differ: 5 of 16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check triton==3.9.0 'numpy>=2.4,<2.5'
cat >"$folder/run.py" <<'PYTHON'
import re

import numpy as np
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile


@triton.jit
def sum_kernel(a, b, y, ROUNDED: tl.constexpr):
    at = tl.arange(0, 128)
    one, other = tl.load(a + at), tl.load(b + at)
    if ROUNDED:
        value = tl.fma(one, other, 0.0)
    else:
        value = one * other
    tl.store(y, tl.sum(value, axis=0))


def contracted(rounded):
    """Whether what a lane received from another one is the addend of an fma."""
    types = {"a": "*fp32", "b": "*fp32", "y": "*fp32", "ROUNDED": "constexpr"}
    source = ASTSource(sum_kernel, types, {"ROUNDED": rounded})
    options = {"num_warps": 4, "enable_fp_fusion": True}
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    received = re.search(r"shfl\.sync\.bfly\.b32\s+(%r\d+),", ptx).group(1)
    return bool(re.search(rf"fma\.rn\.f32\s+%r\d+, %r\d+, %r\d+, {received};", ptx))


plain, rounded = contracted(False), contracted(True)
print("contracted:", plain, "with tl.fma:", rounded)
# What the contracted code computes: float64 holds a product of float32 values exactly.
random = np.random.default_rng(0)
a, b = random.standard_normal((2, 32)).astype(np.float32)
exact, lane = a.astype(np.float64) * b, np.arange(32)
step = (exact + exact.astype(np.float32)[lane ^ 16]).astype(np.float32)
differ = int((step != step[lane ^ 16]).sum()) // 2
print("pairs of lanes that differ:", differ, "of 16")
assert plain and not rounded and differ > 0, "changed: the contraction across lanes"
PYTHON
TRITON_DEFAULT_FP_FUSION=1 "$folder/env/bin/python" "$folder/run.py"
