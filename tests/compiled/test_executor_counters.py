"""Instructions by class, sectors, bank conflicts: counts that are known in advance."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.compiled.conftest import run_ptx
from tests.compiled.executor import Options

WARPS = 4


@triton.jit
def copy_kernel(x, y, stride, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i * stride, mask=i < count), mask=i < count)


def totals(counter: dict) -> tuple[int, int]:
    """Of loads and of stores."""
    return tuple(
        sum(n for (kind, _), n in counter.items() if kind == which) for which in ("load", "store")
    )


def aligned(count: int, offset: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`count` items that begin `offset` items after a multiple of 128 bytes."""
    room = torch.zeros(count + 128, dtype=dtype)
    first = -room.data_ptr() % 128 // room.element_size() + offset
    return room[first : first + count]


def copy(emulator, count, stride=1, offset=0, dtype=torch.float32, block=128):
    x, y = aligned(count * stride, offset, dtype), aligned(count, 0, dtype)
    x.copy_(torch.arange(count * stride) % 100)
    emulator.options = Options(count=True)
    copy_kernel[(triton.cdiv(count, block),)](x, y, stride, count, BLOCK=block, num_warps=WARPS)
    assert torch.equal(y, x[::stride])
    return emulator.statistics["copy_kernel"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int8])
def test_an_aligned_copy_touches_as_many_bytes_as_it_asks_for(emulator, dtype):
    found = copy(emulator, 1024, dtype=dtype)
    size = 1024 * torch.empty(0, dtype=dtype).element_size()
    assert totals(found.asked) == (size, size)
    assert totals(found.sectors) == (size // 32, size // 32)
    assert found.ctas == 8 and found.warps == 32 and found.launches == 1


def test_a_misaligned_copy_touches_one_sector_more_a_request(emulator):
    """Each warp loads 128 bytes, that begin 4 bytes after a multiple of 128."""
    found = copy(emulator, 1024, offset=1)
    assert totals(found.asked) == (4096, 4096)
    requests = totals(found.requests)[0]
    assert requests == 32 and totals(found.sectors) == (requests * 5, 128)


@pytest.mark.parametrize("stride, sectors", [(2, 2), (8, 8), (16, 8)])
def test_a_strided_copy_touches_a_sector_for_each_float_it_takes_of_it(emulator, stride, sectors):
    """8 floats are a sector: of those from 1, 2 or 8 of them, `sectors` times as many."""
    found = copy(emulator, 1024, stride=stride)
    assert totals(found.asked) == (4096, 4096)
    assert totals(found.sectors) == (128 * sectors, 128)


def test_threads_that_do_not_execute_ask_for_nothing(emulator):
    found = copy(emulator, 40)
    assert totals(found.asked) == (160, 160) and totals(found.sectors) == (5, 5)


def test_without_count_no_sectors_are_counted(emulator):
    copy(emulator, 64)
    emulator.statistics.clear()
    emulator.options = Options()
    copy_kernel[(1,)](aligned(64), aligned(64), 1, 64, BLOCK=128, num_warps=WARPS)
    found = emulator.statistics["copy_kernel"]
    assert not found.sectors and found.executed > 0


@pytest.mark.parametrize("stride, touched", [(4, 4), (8, 8), (32, 32), (64, 32), (0, 1)])
def test_sectors_of_a_request(stride, touched):
    words = np.zeros(64 * 16 + 64, np.uint32)
    first = -words.ctypes.data % 128 // 4
    body = f"mul.wide.u32 %d8, %r1, {stride};\nadd.s64 %d8, %d1, %d8;\nld.global.b32 %r6, [%d8];"
    found = run_ptx(body, words[first : first + 64 * 16 + 1], count=True).statistics
    ((site, sectors),) = found.sectors.items()
    assert site[0] == "load" and found.requests[site] == 2 and sectors == 2 * touched


def test_atomics_are_requests():
    found = run_ptx("red.global.add.u32 [%d1], 1;", count=True).statistics
    assert [(site[0], n) for site, n in found.requests.items()] == [("atomic", 2)]


SHARED = """
    and.b32 %r7, %r1, 31;
    mul.lo.s32 %r7, %r7, {};
    mov.b32 %r8, global_smem;
    add.s32 %r7, %r7, %r8;
    {};
"""


@pytest.mark.parametrize(
    "stride, passes", [(4, 1), (8, 2), (12, 1), (16, 4), (128, 32), (132, 1), (0, 1)]
)
@pytest.mark.parametrize("access", ["st.shared.b32 [%r7], %r1", "ld.shared.b32 %r6, [%r7]"])
def test_bank_conflicts_are_the_passes_beyond_the_first(stride, passes, access):
    found = run_ptx(SHARED.format(stride, access), shared=8192, count=True).statistics
    assert (found.shared_requests, found.bank_conflicts) == (2, 2 * (passes - 1))


@pytest.mark.parametrize("vector, requests", [("v2", 2), ("v4", 4)])
def test_wide_shared_accesses_are_served_in_parts_without_conflicts(vector, requests):
    size = int(vector[1]) * 4
    values = ", ".join(["%r1"] * int(vector[1]))
    access = f"st.shared.{vector}.b32 [%r7], {{{values}}}"
    found = run_ptx(SHARED.format(size, access), shared=8192, count=True).statistics
    assert (found.shared_requests, found.bank_conflicts) == (2 * requests, 0)
    found = run_ptx(SHARED.format(128, access), shared=8192, count=True).statistics
    assert found.bank_conflicts == 2 * requests * (32 // requests - 1)


def test_instructions_are_counted_once_a_warp_that_executes_them():
    """A loop of 1 + (warp) rounds: 3 instructions each, and two fma by its first warp alone."""
    body = """
        shr.u32 %r7, %r1, 5;
    $LOOP:
        add.s32 %r7, %r7, -1;
        setp.ge.s32 %p1, %r7, 0;
        @%p1 bra $LOOP;
        setp.lt.u32 %p2, %r1, 32;
        @!%p2 bra $END;
        fma.rn.f32 %r6, %r6, %r6, %r6;
        fma.rn.f32 %r6, %r6, %r6, %r6;
    $END:
        bar.sync 0;
    """
    for warps in ("lockstep", "forward"):
        found = run_ptx(body, threads=96, grid=2, warps=warps).statistics
        assert found.classes["fp.f32"] == 2 * 2
        assert found.classes["setp"] == 2 * (1 + 2 + 3 + 3)
        assert found.classes["branch"] == 2 * (6 + 3 + 3)  # with each warp's ret
        assert found.classes["bar"] == 2 * 3 and found.classes["ld.param"] == 2 * 3 * 2
        assert found.executed == found.classes.total() and found.warps == 6


def test_statistics_add_up(emulator):
    first = copy(emulator, 1024)
    executed, sectors = first.executed, dict(first.sectors)
    second = copy(emulator, 1024)
    assert second is first and second.launches == 2 and second.executed == 2 * executed
    assert dict(second.sectors) == {site: 2 * n for site, n in sectors.items()}
    assert [entry[3].executed for entry in emulator.log] == [executed, executed]
