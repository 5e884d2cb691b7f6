"""Below Triton: programs that wait for one another or count themselves, by atomic operations; and
values that inline assembly hides from the compiler or widens."""

import triton
import triton.language as tl

from .launch import INTERPRETED

SIGN = tl.constexpr(-(1 << 31))
# The interpreter has no inline assembly, and no registers that could spill.
COMPILED = tl.constexpr(not INTERPRETED)
MOVE = tl.constexpr("mov.b32 $0, $1;")
# Both halves of a register of two bfloat16.
WIDEN = tl.constexpr("shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;")
XOR_ZERO = tl.constexpr("{ .reg .b32 zero; mov.u32 zero, %ctaid.z; xor.b32 $0, $1, zero; }")


@triton.jit
def arrived_last(counter_ptr, expected):
    """Whether this program is the last of `expected` to call this; it then sees the others' earlier
    stores. The counter is 0 before and after."""
    tl.debug_barrier()  # all threads' stores come before the one atomic that announces them
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == expected - 1
    if last:
        tl.store(counter_ptr, 0)
    tl.debug_barrier()
    return last


@triton.jit
def wait_for_members(counter_ptr, member, members):
    """A barrier among the programs of a cluster. All have to be resident: else it would never end.

    Arrivals add up to 2^31, so the sign flips when the last one comes, and nothing is ever reset.
    The first member adds 2^31 - (members - 1), written without a sum that leaves int32.
    """
    tl.debug_barrier()
    one = tl.full([], 1, tl.int32)
    share = tl.where(member == 0, (1 - members) ^ SIGN, one)
    before = tl.atomic_add(counter_ptr, share, sem="acq_rel")
    now = before
    while ((now ^ before) & SIGN) == 0:
        now = tl.atomic_add(counter_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def recomputed(n):
    """A scalar of 64 bits itself, hidden from the compiler: what follows from it is computed again,
    not kept in registers."""
    if COMPILED:
        return tl.inline_asm_elementwise(
            "mov.b64 $0, $1;", "=l,l", [n], dtype=n.dtype, is_pure=False, pack=1
        )
    else:
        return n


@triton.jit
def widen(x, ACC: tl.constexpr):
    """A tile that was kept as it is stored, in the dtype of statistics.

    Two instructions for two neighbours in bfloat16; the assembler takes three for a conversion of
    Triton's. Only for kept tiles: elsewhere it changes when loads start, often for the worse.
    """
    if COMPILED and x.dtype == tl.bfloat16 and ACC == tl.float32:
        return tl.inline_asm_elementwise(
            WIDEN, "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2
        )
    else:
        return x.to(ACC)


@triton.jit
def keep_packed(x, HIDE: tl.constexpr = MOVE):
    """x itself, hidden from the compiler. Otherwise it would keep the fp32 form of a 16-bit tile
    across sums and barriers, in twice the registers.

    The assembler may see through a MOVE. If a thread has so many elements that it would spill, use
    XOR_ZERO: an exclusive or with the index of the grid's third axis, which is always 0.
    """
    if COMPILED and x.dtype.primitive_bitwidth == 16:
        return tl.inline_asm_elementwise(HIDE, "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
    else:
        return x
