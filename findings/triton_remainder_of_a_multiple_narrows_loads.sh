#!/usr/bin/env bash
# Triton 3.7.1 does not know what divides the remainder of a multiple. An example is offsets that
# contain (arange * 1024) % 2048, whose every value is a multiple of 1024. 3.8.0 loads a block of
# neighbours there by 128 bits a thread, 3.7.1 by 16 bits. The same holds for (arange * 1024) %
# 1024, which is 0. If the same offsets are written as arange % 2 * 1024, both versions load by 128
# bits. The results are the same, but an older Triton issues eight times as many loads, without a
# message.
#
# Seen with: triton 3.7.1 and 3.8.0, compiled for compute capability 9.0 (no GPU), Python 3.11.
# Output:    3.7.1: remainder ld.global.b16, product last ld.global.v4.b32
#            3.8.0: both ld.global.v4.b32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
cat >"$folder/run.py" <<'PYTHON'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def remainder(x, y, S):
    outer = tl.arange(0, 4)[:, None] * 1024
    offsets = outer // 2048 * S + outer % 2048 + tl.arange(0, 1024)[None, :]
    tl.store(y + offsets, tl.load(x + offsets))


@triton.jit
def product_last(x, y, S):
    outer = tl.arange(0, 4)[:, None]
    offsets = outer // 2 * S + outer % 2 * 1024 + tl.arange(0, 1024)[None, :]
    tl.store(y + offsets, tl.load(x + offsets))


def loads(kernel):
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    source = ASTSource(kernel, {"x": "*fp16", "y": "*fp16", "S": "i32"}, {}, aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return set(re.findall(r"ld\.global\.\S+", ptx))


wide = {"ld.global.v4.b32"}
print(triton.__version__, "remainder", loads(remainder), "product last", loads(product_last))
assert loads(product_last) == wide
old = triton.__version__ == "3.7.1"
assert loads(remainder) == ({"ld.global.b16"} if old else wide), "changed: the width of the loads"
PYTHON
for version in 3.7.1 3.8.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check "triton==$version" numpy
    TRITON_CACHE_DIR="$folder/cache" "$folder/env/bin/python" "$folder/run.py"
done
