#!/usr/bin/env bash
# A kernel's float argument is a tensor of the annotated type when compiled, and a plain Python
# float in Triton's interpreter: eps.to(tl.float32) compiles, and raises AttributeError interpreted.
# tl.full([], eps, tl.float32) works in both.
#
# Seen with: triton 3.9.0, torch 2.13.0 (CPU), numpy 2.4, Python 3.11.
# Output:    compiled for sm_90: yes; interpreted: AttributeError 'float' object has no attribute 'to'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0
"$folder/env/bin/pip" install -q --disable-pip-version-check triton==3.9.0 'numpy>=2.4,<2.5'
cat >"$folder/kernel.py" <<'PYTHON'
import triton
import triton.language as tl


@triton.jit
def cast_kernel(y, eps: tl.float64):
    tl.store(y, eps.to(tl.float32))
PYTHON
cat >"$folder/compiled.py" <<'PYTHON'
from kernel import cast_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

source = ASTSource(cast_kernel, {"y": "*fp32", "eps": "fp64"}, {})
print("compiled for sm_90:", "yes" if compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"] else "no")
PYTHON
cat >"$folder/interpreted.py" <<'PYTHON'
import torch
from kernel import cast_kernel

try:
    cast_kernel[(1,)](torch.zeros(1), 1e-5)
except Exception as error:
    cause = error.__cause__ or error
    print("interpreted:", type(cause).__name__, cause)
    assert "no attribute 'to'" in str(error) + str(cause), "changed: another error"
else:
    raise SystemExit("changed: the interpreter takes it")
PYTHON
cd "$folder"
"$folder/env/bin/python" compiled.py
TRITON_INTERPRET=1 "$folder/env/bin/python" interpreted.py
