"""The traffic meter itself, on kernels whose traffic is easily counted by hand."""

import gc
import weakref

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.conftest import DEVICE
from tests.kernels import traffic

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the meter reads the interpreter")

N = 100  # elements, less than two whole tiles
BLOCK = 64
PROGRAMS = 2


@triton.jit
def copy_kernel(x_ptr, y_ptr, count, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane * STRIDE, mask=lane < count)
    tl.store(y_ptr + lane, x, mask=lane < count)


@triton.jit
def copy_backwards_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    lane = BLOCK - 1 - tl.arange(0, BLOCK)
    tl.store(y_ptr + lane, tl.load(x_ptr + lane))


@triton.jit
def transposed_kernel(x_ptr, y_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    offsets = tl.arange(0, COLUMNS)[:, None] + tl.arange(0, ROWS)[None, :] * COLUMNS
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets))


@triton.jit
def broadcast_kernel(x_ptr, scale_ptr, y_ptr, count, BLOCK: tl.constexpr):
    """y = scale * x: the scalar scale loaded by every lane."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(scale_ptr + lane * 0, mask=lane < count)
    x = tl.load(x_ptr + lane, mask=lane < count)
    tl.store(y_ptr + lane, scale * x, mask=lane < count)


@triton.jit
def parameter_kernel(x_ptr, weight_ptr, y_ptr, rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y = x * weight, weight (COLUMNS,) loaded once by each program as a row of a tile."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :] + tl.zeros([ROWS, 1], tl.int32)
    mask = (row < rows)[:, None]
    offsets = row[:, None] * COLUMNS + column
    x = tl.load(x_ptr + offsets, mask=mask)
    tl.store(y_ptr + offsets, x * tl.load(weight_ptr + column), mask=mask)


@triton.jit
def two_pass_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    """y = x - mean(x), in one program that walks over x twice."""
    total = 0.0
    for start in range(0, count, BLOCK):
        lane = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(x_ptr + lane, mask=lane < count, other=0.0))
    for start in range(0, count, BLOCK):
        lane = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + lane, mask=lane < count)
        tl.store(y_ptr + lane, x - total / count, mask=lane < count)


@triton.jit
def window_kernel(x_ptr, y_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of windows: rows of the tile overlap in all but one element."""
    row = tl.arange(0, ROWS)
    window = tl.load(x_ptr + row[:, None] + tl.arange(0, COLUMNS)[None, :])
    tl.store(y_ptr + row, tl.sum(window, axis=1))


@triton.jit
def scalar_kernel(x_ptr, y_ptr):
    tl.store(y_ptr, tl.load(x_ptr))


@triton.jit
def atomics_kernel(x_ptr, total_ptr, lock_ptr, count, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane, mask=lane < count, other=0.0)
    tl.atomic_add(total_ptr + lane % 4, x, mask=lane < count)
    tl.atomic_cas(lock_ptr, 0, 1)


@triton.jit
def atomic_copy_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_store(
        y_ptr + lane, tl.atomic_load(x_ptr + lane, mask=lane < count), mask=lane < count
    )
    tl.atomic_poll(x_ptr, 1)


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16, torch.int8], ids=str)
def x(request) -> torch.Tensor:
    return torch.arange(N).to(request.param)


def test_copy(x):
    y = torch.empty_like(x)
    with traffic.meter() as t:
        copy_kernel[(PROGRAMS,)](x, y, N, 1, BLOCK)
    assert torch.equal(x, y)  # metered kernels still compute
    assert (t.loads, t.stores, t.atomics) == (x.nbytes, x.nbytes, 0)
    assert t.total == 2 * x.nbytes
    assert t.launches == ["copy_kernel"]


def test_masked_off_lanes_count_nothing(x):
    y = torch.zeros_like(x)
    with traffic.meter() as t:
        copy_kernel[(PROGRAMS,)](x, y, 3, 1, BLOCK)  # the second program has nothing to do
    assert (t.loads, t.stores) == (3 * x.itemsize, 3 * x.itemsize)


def test_booleans_are_bytes():
    x = torch.arange(N) % 3 == 0
    y = torch.zeros_like(x)
    with traffic.meter() as t:
        copy_kernel[(PROGRAMS,)](x, y, N, 1, BLOCK)
    assert torch.equal(x, y)
    assert t.total == 2 * N


def test_broadcast_scalar_counts_once_a_program(x):
    scale, y = torch.ones(1, dtype=x.dtype), torch.empty_like(x)
    with traffic.meter() as t:
        broadcast_kernel[(PROGRAMS,)](x, scale, y, N, BLOCK)
    assert t.loads_of(scale) == PROGRAMS * scale.nbytes
    assert t.total == 2 * x.nbytes + PROGRAMS * scale.nbytes


def test_parameter_vector_counts_once_a_program():
    x, weight = torch.ones(6, 16), torch.ones(16)
    y = torch.empty_like(x)
    with traffic.meter() as t:
        parameter_kernel[(3,)](x, weight, y, 6, 2, 16)
    assert t.loads_of(weight) == 3 * weight.nbytes
    assert (t.loads, t.stores) == (x.nbytes + 3 * weight.nbytes, y.nbytes)


def test_second_pass_counts_again():
    x = torch.arange(N, dtype=torch.float32)
    y = torch.empty_like(x)
    with traffic.meter() as t:
        two_pass_kernel[(1,)](x, y, N, BLOCK)
    assert (t.loads_of(x), t.stores_of(y), t.total) == (2 * x.nbytes, y.nbytes, 3 * x.nbytes)


def test_gaps_between_strided_elements_do_not_count(x):
    y = x.new_empty(N // 3)
    with traffic.meter() as t:
        copy_kernel[(1,)](x, y, N // 3, 3, BLOCK)
    assert torch.equal(y, x[: N - 1 : 3])
    assert (t.loads_of(x), t.stores_of(y)) == (y.nbytes, y.nbytes)


def test_order_of_lanes_does_not_matter(x):
    y, z = torch.zeros_like(x), torch.zeros_like(x)
    with traffic.meter() as t:
        copy_backwards_kernel[(1,)](x, y, BLOCK)
        transposed_kernel[(1,)](x, z, 4, 16)
    assert torch.equal(y, z)
    assert t.loads_of(x) == 2 * BLOCK * x.itemsize
    assert t.stores_of(y) == t.stores_of(z) == BLOCK * x.itemsize


def test_overlap_within_an_instruction_counts_once():
    x, y = torch.ones(8 + 4 - 1), torch.empty(8)
    with traffic.meter() as t:
        window_kernel[(1,)](x, y, 8, 4)
    assert (t.loads, t.stores) == (x.nbytes, y.nbytes)


def test_elements_that_overlap_in_part():
    """Not what a kernel does; distinct bytes is the definition all the same."""
    start, end = traffic._runs(np.array([104, 100, 102, 110, 110]), 4)
    assert (start.tolist(), end.tolist()) == ([100, 110], [108, 114])


def test_scalar_pointers(x):
    y = torch.empty_like(x)
    with traffic.meter() as t:
        scalar_kernel[(2,)](x, y)
    assert (t.loads_of(x), t.stores_of(y), t.total) == (
        2 * x.itemsize,
        2 * x.itemsize,
        4 * x.itemsize,
    )


def test_atomics_are_counted_apart():
    x, total, lock = torch.ones(N), torch.zeros(4), torch.zeros(1, dtype=torch.int32)
    with traffic.meter() as t:
        atomics_kernel[(PROGRAMS,)](x, total, lock, N, BLOCK)
    assert total.sum() == N
    assert (t.loads, t.stores) == (x.nbytes, 0)
    assert (t.atomics_of(total), t.atomics_of(lock)) == (PROGRAMS * 16, PROGRAMS * 4)
    assert t.total == x.nbytes + PROGRAMS * 20


@pytest.mark.skipif(not hasattr(tl, "atomic_load"), reason="new in Triton 3.9")
def test_atomic_load_and_store_are_atomics():
    """The interpreter makes ordinary ones of them, which must not count a second time."""
    x = torch.ones(N, dtype=torch.int32)
    y = torch.zeros_like(x)
    with traffic.meter() as t:
        atomic_copy_kernel[(PROGRAMS,)](x, y, N, BLOCK)
    assert torch.equal(x, y)
    assert (t.loads, t.stores) == (0, 0)
    assert (t.atomics_of(x), t.atomics_of(y)) == (x.nbytes + PROGRAMS * 4, y.nbytes)


def test_attribution_is_by_address():
    """Views of one buffer are told apart, a gap belongs to nobody, and aliases share."""
    buffer = torch.zeros(4, N)
    x, y = buffer[1], buffer[3]
    with traffic.meter() as t:
        copy_kernel[(PROGRAMS,)](x, y, N, 1, BLOCK)
    assert (t.loads_of(x), t.stores_of(x)) == (x.nbytes, 0)
    assert (t.loads_of(y), t.stores_of(y)) == (0, y.nbytes)
    assert t.bytes_of(buffer[0]) == t.bytes_of(buffer[2]) == 0
    assert t.loads_of(x[10:20]) == x[10:20].nbytes
    assert t.bytes_of(buffer) == t.bytes_of(buffer.T) == t.total == 2 * x.nbytes
    assert t.bytes_of(buffer[:0]) == 0


def test_memory_is_not_handed_out_twice():
    """A scratch tensor that died would leave its traffic to the next one at its address."""
    x, scratch = torch.zeros(N), torch.empty(N)
    with traffic.meter() as t:
        copy_kernel[(PROGRAMS,)](x, scratch, N, 1, BLOCK)
    alive = weakref.ref(scratch)
    del scratch
    gc.collect()
    assert alive() is not None
    assert t.stores_of(alive()) == x.nbytes


def test_counts_inside_the_block_only_and_nests():
    x, y = torch.zeros(N), torch.zeros(N)
    with traffic.meter() as outer:
        copy_kernel[(PROGRAMS,)](x, y, N, 1, BLOCK)
        with traffic.meter() as inner:
            copy_kernel[(PROGRAMS,)](x, y, N, 1, BLOCK)
    copy_kernel[(PROGRAMS,)](x, y, N, 1, BLOCK)
    assert (outer.total, len(outer.launches)) == (4 * x.nbytes, 2)
    assert (inner.total, len(inner.launches)) == (2 * x.nbytes, 1)


def test_torchs_own_moves_are_seen():
    x = torch.ones(N, requires_grad=True)
    small = torch.ones(N // 2)
    with traffic.meter() as t:
        copy_kernel[(PROGRAMS,)](x, torch.empty_like(x), N, 1, BLOCK)
        x.detach().view(2, -1).t()[1:].transpose(0, 1)
        x.new_empty(N)
        small.clone()
        assert not t.moved_by_torch(N)
        x.view(10, 10).t().contiguous()
        torch.autograd.grad(x.sum(), x)
    assert t.moved_by_torch(N // 2)[0] == "aten.clone.default"
    assert t.moved_by_torch(N)[:2] == ["aten.clone.default", "aten.sum.default"]


def test_message_names_the_kernels():
    x = torch.zeros(N)
    with traffic.meter() as t:
        copy_kernel[(PROGRAMS,)](x, torch.empty(N), N, 1, BLOCK)
        scalar_kernel[(1,)](x, torch.empty(1))
        scalar_kernel[(1,)](x, torch.empty(1))
    assert str(t) == (
        "1 x copy_kernel: loads 400, stores 400, atomics 0\n"
        "2 x scalar_kernel: loads 8, stores 8, atomics 0"
    )
