"""Triton's launches, compiled for a GPU and executed here."""

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.compiled.executor import EmulationError, Options, Statistics, install


class Pointers(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor | None


@triton.jit
def scale_kernel(x, y, weight, factor, count, BLOCK: tl.constexpr = 128):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < count).to(tl.float32) * factor
    if weight is not None:
        value *= tl.load(weight + i, mask=i < count)
    tl.store(y + i, value, mask=i < count)


@triton.jit
def tuple_kernel(inputs, y, sizes, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(inputs.x + i, mask=i < sizes[0])
    if inputs.weight is not None:
        value *= tl.load(inputs.weight + i, mask=i < sizes[0])
    tl.store(y + i, value + sizes[1], mask=i < sizes[0])


@triton.jit
def meet_kernel(counter, y):
    """Every program waits for all others."""
    tl.atomic_add(counter, 1, sem="acq_rel")
    while tl.atomic_add(counter, 0, sem="acquire") < tl.num_programs(0):
        pass
    tl.store(y + tl.program_id(0), tl.program_id(0))


@triton.jit
def softmax_kernel(x, y, columns, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    value = tl.load(x + row * columns + i, mask=i < columns, other=-float("inf")).to(tl.float32)
    value = tl.exp(value - tl.max(value, 0))
    tl.store(y + row * columns + i, value / tl.sum(value, 0), mask=i < columns)


@triton.jit
def transpose_kernel(x, y, M: tl.constexpr, N: tl.constexpr):
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    tile = tl.trans(tl.load(x + rows[:, None] * N + columns[None, :]))
    tl.store(y + columns[:, None] * M + rows[None, :], tile)


@triton.jit
def sort_kernel(x, sums, order, N: tl.constexpr):
    i = tl.arange(0, N)
    value = tl.load(x + i)
    tl.store(sums + i, tl.cumsum(value, 0))
    tl.store(order + i, tl.sort(value))


@triton.jit
def count_kernel(x, total, bins, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(total, tl.sum(tl.load(x + i, mask=i < count, other=0.0), 0))
    tl.atomic_add(bins + i % 7, 1, mask=i < count)
    tl.atomic_max(bins + 7, tl.program_id(0))


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def either(request):
    emulator = install(Options(races=True), capability=request.param)
    emulator.log = []
    torch.manual_seed(0)
    yield emulator
    for _, _, compiled, statistics in emulator.log:
        assert f".target sm_{request.param}" in compiled.asm["ptx"] and not statistics.races
    emulator.uninstall()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_softmax(either, dtype):
    x = torch.randn(5, 777).to(dtype)
    y = torch.full_like(x, float("nan"))
    softmax_kernel[(5,)](x, y, 777, BLOCK=1024)
    truth = x.double().softmax(1)
    # y is rounded once; exp is a power of 2 whose exponent, of up to 8 here, was rounded before.
    eps = torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps
    assert (y.double() - truth).abs().max() <= eps * truth.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_transpose_through_shared_memory(either, dtype):
    x = (torch.randn(64, 128) * 20).to(dtype)
    y = torch.empty(128, 64, dtype=dtype)
    transpose_kernel[(1,)](x, y, 64, 128)
    assert torch.equal(y, x.T)


def test_scan_and_sort(either):
    x = torch.randn(512)
    sums, order = torch.empty(512), torch.empty(512)
    sort_kernel[(1,)](x, sums, order, 512)
    assert (sums - x.double().cumsum(0)).abs().max() < 1e-4 and torch.equal(order, x.sort()[0])


def test_atomics_of_floats_and_integers(either):
    x, total, bins = torch.randn(1000), torch.zeros(1), torch.zeros(8, dtype=torch.int32)
    count_kernel[(8,)](x, total, bins, 1000, BLOCK=128)
    assert (total - x.double().sum()).abs() < 1e-4
    assert torch.equal(bins[:7], torch.bincount(torch.arange(1000) % 7).int()) and bins[7] == 7


def test_arguments_by_name_by_default_and_none(either):
    x, weight, y = torch.randn(100), torch.randn(100), torch.empty(100)
    scale_kernel[(1,)](x, y, None, 3.0, count=100)
    assert torch.equal(y, x * 3)
    scale_kernel[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](
        x, y, weight=weight, factor=2.0, count=100, BLOCK=64
    )
    assert torch.equal(y, x * 2 * weight)
    assert [grid for _, grid, _, _ in either.log] == [1, 2]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("count", [100, 1])  # an integer that is 1 is a constant
def test_tuples_of_pointers_and_of_numbers(either, weighted, count):
    x, weight, y = torch.arange(100.0), torch.arange(100.0) % 7, torch.zeros(100)
    inputs = Pointers(x, weight if weighted else None)
    tuple_kernel[(1,)](inputs, y, (count, 5), BLOCK=128)
    expected = torch.zeros(100)
    expected[:count] = (x * weight if weighted else x)[:count] + 5
    assert torch.equal(y, expected)


def test_an_argument_is_named_where_it_is_overrun(emulator):
    x, weight, y = torch.randn(100), torch.randn(99), torch.zeros(100)
    with pytest.raises(EmulationError, match=r"'inputs.weight' .* of 396 bytes"):
        tuple_kernel[(1,)](Pointers(x, weight), y, (100, 5), BLOCK=128)


def test_strided_tensors_reach_to_their_last_element(emulator):
    base = torch.arange(200.0)
    y = torch.zeros(199)
    scale_kernel[(2,)](base[::2], y, None, 1.0, count=199)
    assert torch.equal(y, base[:199])
    with pytest.raises(EmulationError, match="out-of-bounds load"):
        scale_kernel[(2,)](base[::2], torch.zeros(200), None, 1.0, count=200)


@pytest.mark.parametrize("cooperative", [True, False])
def test_a_cooperative_launch_is_one(emulator, cooperative):
    counter, y = torch.zeros(1, dtype=torch.int32), torch.full((5,), -1, dtype=torch.int32)
    emulator.options = Options(schedule="interleaved", resident=3, spins=2000)
    if cooperative:
        meet_kernel[(5,)](counter, y, launch_cooperative_grid=True)
        assert y.tolist() == list(range(5))
    else:
        with pytest.raises(EmulationError, match="3 alive, 2 not started: a deadlock"):
            meet_kernel[(5,)](counter, y)


def test_an_edit_changes_what_runs_and_not_what_is_compiled(emulator):
    x, y = torch.randn(100), torch.empty(100)
    edited = []

    def edit(name: str, ptx: str) -> str:
        edited.append(name)
        return ptx.replace("mul.f32", "add.f32")

    emulator.edit = edit
    scale_kernel[(1,)](x, y, None, 3.0, count=100)
    assert torch.equal(y, x + 3) and edited == ["scale_kernel"]
    emulator.edit = None
    scale_kernel[(1,)](x, y, None, 3.0, count=100)
    assert torch.equal(y, x * 3)


def test_statistics_and_log_tell_of_each_launch(emulator):
    x, y = torch.randn(100), torch.empty(100)
    for _ in range(2):
        scale_kernel[(1,)](x, y, None, 3.0, count=100)
    found = emulator.statistics["scale_kernel"]
    assert isinstance(found, Statistics) and found.launches == 2 and found.ctas == 2
    name, grid, compiled, one = emulator.log[0]
    assert (name, grid, one.launches) == ("scale_kernel", 1, 1) and "ptx" in compiled.asm
    assert found.executed == 2 * one.executed > 0


def test_warmup_compiles_and_runs_nothing(emulator):
    y = torch.full((100,), 7.0)
    compiled = scale_kernel.warmup(torch.randn(100), y, None, 3.0, count=100, grid=(1,))
    assert "ptx" in compiled.asm and (y == 7).all() and not emulator.log


def test_uninstalling_gives_back_what_there_was():
    run, active = JITFunction.run, driver._active
    emulator = install(Options())
    assert JITFunction.run is not run
    emulator.uninstall()
    assert JITFunction.run is run and driver._active is active
    emulator.launch = None  # a launch through it would raise another error
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="active"):
            scale_kernel[(1,)](torch.zeros(1), torch.zeros(1), None, 1.0, count=1)


@pytest.mark.parametrize(
    "grid, x, message",
    [((2, 2), torch.zeros(4), "one-dimensional"), ((1,), torch.zeros(4, device="meta"), "on meta")],
)
def test_what_cannot_be_executed_is_refused(emulator, grid, x, message):
    with pytest.raises(EmulationError, match=message):
        scale_kernel[grid](x, torch.zeros(4), None, 1.0, count=4)


def test_the_interpreter_and_the_executor_exclude_each_other():
    """In a process of its own, where Triton interprets."""
    program = "from tests.compiled.executor import install; install()"
    found = subprocess.run(
        [sys.executable, "-c", f"import os; os.environ['TRITON_INTERPRET'] = '1'; {program}"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert found.returncode == 1 and "unset TRITON_INTERPRET" in found.stderr
