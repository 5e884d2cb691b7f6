#!/usr/bin/env bash
# Two neighbours in bfloat16 share a register, and float32 values of both take one instruction each:
# a shift for the lower half, a mask for the upper one. Triton's x.to(tl.float32) takes three. It
# gives the two halves names of their own, and the assembler first moves the upper one down by PRMT,
# then shifts it up again. A kernel that widens 32 elements a thread and squares them has 152
# instead of 136 instructions. A kernel that widens its tile several times pays each time. The
# results have the same bits.
#
# Seen with: triton 3.6.0 and 3.9.0, compiled for compute capability 9.0 (no GPU), Python 3.11.
# Output:    both versions: 152 instructions, 16 PRMT; by shift and mask 136 instructions, 0 PRMT
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
cat >"$folder/run.py" <<'PYTHON'
import collections
import pathlib
import re
import subprocess
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def converted(x, y):
    i = tl.arange(0, 4096)
    value = tl.load(x + i).to(tl.float32)
    tl.store(y + i, value * value)


@triton.jit
def shifted_and_masked(x, y):
    i = tl.arange(0, 4096)
    value = tl.inline_asm_elementwise(
        "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r",
        [tl.load(x + i)], dtype=tl.float32, is_pure=True, pack=2,
    )  # fmt: skip
    tl.store(y + i, value * value)


def instructions(kernel):
    """(all, PRMT) of the machine code."""
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(2)}
    source = ASTSource(kernel, {"x": "*bf16", "y": "*fp32"}, {}, aligned)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    file = pathlib.Path(sys.argv[1], "kernel.cubin")
    file.write_bytes(made.asm["cubin"])
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    text = subprocess.run([tool, "-c", file], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]+)[. ;]", text)
    return len(names), collections.Counter(names)["PRMT"]


found = instructions(converted), instructions(shifted_and_masked)
print(triton.__version__, "converted, shifted and masked (instructions, PRMT):", *found)
assert found == ((152, 16), (136, 0)), "changed: the instructions of a conversion"
PYTHON
for version in 3.6.0 3.9.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check "triton==$version" numpy
    TRITON_CACHE_DIR="$folder/cache" "$folder/env/bin/python" "$folder/run.py" "$folder"
done
