#!/usr/bin/env bash
# A tile has three axes, and its last axis is contiguous. Triton 3.6 spreads the warps over the
# first axis, 3.7 and later over the middle one. So in one version the same kernel spreads each row
# over all warps (a barrier and shared memory for each sum of a row), and in the other it gives each
# warp its own rows. The language does not say which. A kernel can choose by an order of axes that
# depends on the version.
#
# Seen with: triton 3.6.0 and 3.7.1, compiled for sm_90.
# Output:    3.6.0 warpsPerCTA = [4, 1, 1], 3.7.1 warpsPerCTA = [1, 4, 1]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/run.py" <<'PYTHON'
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile


@triton.jit
def copy_kernel(x, y, S, rows):
    row, outer, inner = tl.arange(0, 8), tl.arange(0, 8) * 128, tl.arange(0, 128)
    position = outer[:, None, None] + inner[None, None, :]
    at = (row * (S * 16))[None, :, None] + position
    mask = (row < rows)[None, :, None] & (position < S * 16)
    value = tl.load(x + at, mask=mask, other=0.0)
    total = tl.sum(tl.sum(value, axis=0), axis=1)
    tl.store(y + at, value - total[None, :, None], mask=mask)


types = {"x": "*fp32", "y": "*fp32", "S": "i32", "rows": "i32"}
aligned = {(i,): [["tt.divisibility", 16]] for i in (0, 1)}
source = ASTSource(copy_kernel, types, {}, aligned)
options = {"num_warps": 4}
text = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ttgir"]
layout = re.search(r"tt\.load.*#(blocked\d*)>", text).group(1)
warps = re.search(rf"#{layout} = .*?warpsPerCTA = (\[[\d, ]+\])", text).group(1)
print(triton.__version__, "warpsPerCTA =", warps)
assert warps == sys.argv[1], "changed: which axis the warps are given"
PYTHON
for seen in "3.6.0 [4, 1, 1]" "3.7.1 [1, 4, 1]"; do
    version=${seen%% *}
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q --disable-pip-version-check "triton==$version" 'numpy<2.4'
    "$folder/$version/bin/python" "$folder/run.py" "${seen#* }"
done
