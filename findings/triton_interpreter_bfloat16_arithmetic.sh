#!/usr/bin/env bash
# Triton's interpreter (TRITON_INTERPRET=1) adds bfloat16 values as if their bit patterns were
# integers. The sum of 1 2 3 4 -5 6 7 8 is 26, but the interpreter returns about -7.5e-37. Compiled,
# the same kernel gives 26. Float16 and float32 are right in the interpreter.
#
# Seen with: triton 3.9.0, torch 2.13.0 (CPU), numpy 2.4, Python 3.11.
# Output:    float16 26.0, float32 26.0, bfloat16 -7.52...e-37
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0
"$folder/env/bin/pip" install -q --disable-pip-version-check triton==3.9.0 'numpy>=2.4,<2.5'
cat >"$folder/run.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def sum_kernel(x, y):
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, 8)), axis=0))


found = {}
for dtype in (torch.float16, torch.float32, torch.bfloat16):
    x = torch.tensor([1, 2, 3, 4, -5, 6, 7, 8], dtype=dtype)
    y = torch.zeros(1, dtype=dtype)
    sum_kernel[(1,)](x, y)
    found[dtype] = y.item()
    print(dtype, found[dtype])
assert found[torch.float16] == found[torch.float32] == 26.0
assert abs(found[torch.bfloat16]) < 1e-30, "changed: the interpreter's bfloat16 sum"
PYTHON
TRITON_INTERPRET=1 "$folder/env/bin/python" "$folder/run.py"
