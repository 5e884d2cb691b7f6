"""The engine for CPUs by itself: every loop, values that need care, and other ways to compile."""

import functools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as TF

import fastnorm
import fastnorm.functional as F
from fastnorm.kernels.cpu import build, calls
from tests.conftest import assert_close, in_a_process, running
from tests.kernels_cpu import cases

pytestmark = pytest.mark.no_kernel
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("norm", cases.NORMS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_loop(norm, dtype):
    chosen = [case for case in cases.cases() if case.norm == norm and case.dtype == dtype]
    assert len(chosen) >= 14
    with calls.record() as called:
        errors = {case: cases.check(case) for case in chosen}
    assert len(called) == 2 * len(chosen)
    assert {case: error for case, error in errors.items() if error > 1} == {}


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_rows_that_add_and_weights(dtype):
    assert cases.check_add_norm(dtype, "layer") <= 1
    assert cases.check_add_norm(dtype, "rms") <= 1
    assert cases.check_weight_norm(dtype) <= 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(131, 2), (131, 2, 3), (7, 5, 33), (128, 33, 13), (2, 3, 40000)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_values_are_their_mean(dtype, shape, layout):
    """To the last bit, whatever a mean of shares rounds: torch answers 0 too."""
    order = (0, *range(2, len(shape)), 1) if layout == "channels_last" else range(len(shape))
    for value in (9984.0, 1234.5678, 3e-3, 7.7):
        x = torch.full(shape, value, dtype=dtype).permute(*order)
        x = x.contiguous().permute(*torch.tensor(list(order)).argsort().tolist())
        with running("cpu"):
            found = [F.batch_norm(x, None, None, training=True), F.group_norm(x, 1)]
            found += [F.instance_norm(x)] if x.dim() > 2 else []
            found += [F.layer_norm(x, x.shape[1:])]
        assert not any(y.any() for y in found), value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 40), (40, 3)])
def test_a_sum_of_deviations_that_overflows(dtype, shape):
    """No NaN: the variance is infinite, and the other values of the set are 0."""
    x = torch.full(shape, -torch.finfo(dtype).max / 2, dtype=dtype)
    x[::2] *= -1
    with running("cpu"):
        y = F.batch_norm(x, None, None, training=True)
    assert y.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_value_is_read_and_rounded_as_torch_does(dtype):
    """All 65536, and their sums with others: subnormal ones, ties, overflows, NaN, Inf, -0."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(64, 1024)
    for other in (x.flip(0), x.roll(12345).view(64, 1024), torch.full_like(x, 0.33)):
        with running("cpu"):
            _, total = F.add_rms_norm(x, other, (1024,))
        expected = x + other
        assert torch.equal(total.isnan(), expected.isnan())
        there = ~expected.isnan()
        assert torch.equal(total.view(torch.int16)[there], expected.view(torch.int16)[there])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_parameter_is_read_and_rounded(dtype):
    """Parameters and running statistics one by one: a code of their own."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    values = values[values.isfinite()]
    C = values.numel()
    mean = values.clone()
    with running("cpu"):
        F.mean_only_batch_norm(torch.zeros(2, C), mean, training=True, momentum=0.0)
        y = F.mean_only_batch_norm(torch.zeros(2, C), torch.zeros(C, dtype=dtype), values)
        mean3 = values.clone()
        F.mean_only_batch_norm(torch.zeros(2, C), mean3, training=True, momentum=0.625)
    assert torch.equal(mean, values)
    assert torch.equal(y[0], values.float())
    assert torch.equal(mean3, (values.float() * 0.375).to(dtype))


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations_over_their_range(dtype, activation):
    """From where they are 0 to where they are z, values and slopes."""
    x = torch.cat([torch.linspace(-130, 130, 20001), torch.linspace(-3, 3, 9999)]).to(dtype)
    x = x.view(1, 1, -1).requires_grad_()
    mean, var = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    with running("cpu"):
        y = F.batch_norm(x, mean, var, eps=0.0, activation=activation)
        (dx,) = torch.autograd.grad(y.sum(), x)
    wide = x.detach().double().requires_grad_()
    function = {"silu": TF.silu, "gelu": TF.gelu}[activation]
    truth, torchs = function(wide), function(x)
    for mine, its, exact in (
        (y, torchs, truth),
        (dx, *(torch.autograd.grad(z.sum(), t)[0] for z, t in ((torchs, x), (truth, wide)))),
    ):
        scale = torch.finfo(dtype).eps * exact.abs().clamp(min=1)
        error, torchs_error = (((t.double() - exact).abs() / scale).max() for t in (mine, its))
        assert error <= 2 * torchs_error + 2, (error, torchs_error)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_activations_of_what_is_not_finite(activation):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 3e38, -3e38]).view(1, 1, -1)
    with running("cpu"):
        y = F.batch_norm(x, torch.zeros(1), torch.ones(1), eps=0.0, activation=activation)
    expected = {"silu": TF.silu, "gelu": TF.gelu}[activation](x.double()).float()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[~y.isnan()], expected[~y.isnan()])


def test_parameters_of_several_dtypes():
    """Each gradient comes in its parameter's dtype, running statistics in theirs."""
    x = torch.randn(4, 5, 6)
    weight, bias = torch.rand(5, dtype=torch.bfloat16), torch.rand(10, dtype=torch.float16)[::2]
    mean, var = torch.zeros(5, dtype=torch.float64), torch.ones(5)
    weight.requires_grad_(), bias.requires_grad_()
    exact_mean, exact_var = torch.zeros(5).double(), torch.ones(5).double()
    exact = TF.batch_norm(
        x.double(), exact_mean, exact_var, weight.double(), bias.double(), training=True
    )
    with running("cpu"):
        y = F.batch_norm(x, mean, var, weight, bias, training=True)
        grads = torch.autograd.grad(y.square().sum(), (weight, bias))
    truth = torch.autograd.grad(exact.square().sum(), (weight, bias))
    assert_close(y, exact)
    assert_close(mean.float(), exact_mean)
    assert_close(var, exact_var)
    for mine, its, parameter in zip(grads, truth, (weight, bias), strict=True):
        assert mine.dtype == parameter.dtype
        assert_close(mine, its.double(), slack=0.02 * its.abs().max().item())


def test_more_memory_than_there_is(monkeypatch):
    """The engine answers that it has none, and Python raises."""
    monkeypatch.setattr(build, "LOADED", dict(build.LOADED))
    functions = build.functions(torch.float32)
    full = {name: (lambda job: -1) for name in build.FUNCTIONS}
    broken = build.Functions(quick=build.SimpleNamespace(**full), **full)
    build.LOADED[torch.float32] = broken
    with running("cpu"), pytest.raises(MemoryError, match=r"\(2, 3\), torch.float32"):
        F.layer_norm(torch.ones(2, 3), (3,))
    assert functions is not broken


def test_torchs_runtime_of_threads_is_ours():
    """One libgomp: two would keep two sets of threads."""
    code = (
        "import torch, fastnorm\n"
        "fastnorm.functional.layer_norm(torch.ones(400, 300), (300,))\n"
        "lines = open('/proc/self/maps').read().splitlines()\n"
        "print(len({line.split()[-1] for line in lines if 'gomp' in line}))"
    )
    done = in_a_process("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"


def test_a_child_computes_after_a_fork():
    """OpenMP's threads are gone in it, and it does not wait for them."""
    code = (
        "import os, torch, fastnorm\n"
        "torch.set_num_threads(3)\n"
        "x = torch.randn(64, 16, 32, 32)\n"
        "expected = fastnorm.functional.group_norm(x, 4)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    y = fastnorm.functional.group_norm(x, 4)\n"
        "    torch.set_num_threads(1)\n"  # torch's own operators do wait for them
        "    same = torch.equal(y, expected)\n"
        "    os._exit(0 if same else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    done = in_a_process("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0"


def compiled_with(tmp_path, *flags, **environment):
    """The process that checks all cases with the engine compiled so."""
    env = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"} | environment
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", "tests.kernels_cpu.all_cases", str(tmp_path), *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1500)


@functools.cache
def library_of(name):
    """Where the compiler has a library."""
    command = [*build._compiler()[0].split(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow  # a minute of compiling, and as much of checking
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="flags of gcc for x86-64")
@pytest.mark.parametrize("march", ["haswell", "x86-64-v2"])
def test_older_cpus(tmp_path, march):
    """Vectors of 256 bits, with instructions for float16 and without."""
    if os.uname().machine != "x86_64":
        pytest.skip("for x86-64")
    done = compiled_with(tmp_path, f"-march={march}", "-O1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow  # two minutes of compiling, and as much of checking
@pytest.mark.timeout(1800)
def test_sanitizers(tmp_path):
    """No access outside of a tensor, nothing that C leaves undefined."""
    asan = library_of("libasan.so")
    if not os.path.isabs(asan):
        pytest.skip("the compiler comes without sanitizers")
    done = compiled_with(
        tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g",
        LD_PRELOAD=f"{os.path.realpath(asan)} {library_of('libstdc++.so.6')}",  # torch's C++ throws
        ASAN_OPTIONS="detect_leaks=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_backend_is_what_auto_takes():
    with fastnorm.use_backend("auto"), calls.record() as called:
        F.layer_norm(torch.ones(2, 3), (3,))
    assert called == ["rows"]
