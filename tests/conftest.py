"""Shared parts of the tests: the device, the backends, the one tolerance table, inputs, launches.

The same files run on a GPU or, if there is none, in Triton's interpreter. That choice must be in
the environment before any kernel is imported: so it is made right below the imports.
TRITON_INTERPRET=0 prevents it, for the separate run of compiled/, which executes compiled kernels.
"""

import collections
import contextlib
import inspect
import itertools
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available() and os.environ.setdefault("TRITON_INTERPRET", "1") == "1":
    from tests.interpreter import patch_language_once_a_launch

    patch_language_once_a_launch()
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# torch 2.11's batch, instance and group norm have no bias=, and its batch norm refuses an eps of 0.
OLD_TORCH = "bias" not in inspect.signature(torch.nn.BatchNorm2d).parameters
NO_BIAS: dict[str, Any] = {} if OLD_TORCH else {"bias": False}
BACKENDS = ("triton", "cpu", "reference")
LAYOUTS = ("contiguous", "channels_last", "sliced")
TESTS = Path(__file__).parent
collect_ignore = ["compiled"]  # unless named; see its conftest
# In these files a test runs kernels, without a GPU, only if its name has "triton".
NO_KERNELS = (
    "benchmarks/test_cpu.py",
    "benchmarks/test_plot.py",
    "benchmarks/test_shapes.py",
    "benchmarks/test_timing.py",
    "cifar/",
    "test_readme.py",
)

# THE tolerance table. An error is measured relative to the largest magnitude of the float64 truth.
# Allowed are (a multiple of) torch's own error plus this many units of the dtype's eps. At float64
# it judges formulas: 1/sqrt(eps) = 316 magnifies the rounding of sets of one or two values.
TOLERANCE = {torch.float64: 256.0, torch.float32: 8.0, torch.bfloat16: 1.0, torch.float16: 1.0}

# For tests with the traffic meter of kernels/traffic.py.
metered = pytest.mark.skipif(DEVICE != "cpu", reason="the meter reads the interpreter")


# A case takes ten times as long in the interpreter as elsewhere. If a test has more than FEW cases,
# one in SHARE runs there, chosen by its name so that every value of every factor occurs; the others
# are slow.
FEW, SHARE = 6, 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that do not depend on Triton's version (`make test-matrix` leaves them out), and
    cases that are too many for an interpreter."""
    interpreted: dict[str, list[pytest.Item]] = collections.defaultdict(list)
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        file = item.path.relative_to(TESTS).as_posix()
        elsewhere = file.startswith(NO_KERNELS) and "triton" not in item.name
        if elsewhere or parameters.get("backend", "triton") != "triton":
            item.add_marker("no_kernel")
        elif parameters and is_interpreted and item.get_closest_marker("slow") is None:
            interpreted[item.nodeid.partition("[")[0]].append(item)
    for cases in interpreted.values():
        for item in cases if len(cases) > FEW else ():
            if zlib.crc32(item.nodeid.encode()) % SHARE:
                item.add_marker("slow")


def slow_unless(quick: bool) -> Any:
    """The marks of a case that is slow without a GPU, as kernels are then interpreted."""
    return () if quick or DEVICE == "cuda" else pytest.mark.slow


def combinations(backends: Sequence[str], *factors: Any, quick: Callable[..., bool]) -> list[Any]:
    """Every backend with every combination of the factors, for `parametrize`.

    If factors do not interact, some of the combinations prove as much as all: under triton those
    with a false quick(*factors) are slow.
    """
    return [
        pytest.param(*values, marks=slow_unless(values[0] != "triton" or quick(*values[1:])))
        for values in itertools.product(backends, *factors)
    ]


@pytest.fixture
def device() -> str:
    """The device of every tensor in the test."""
    return DEVICE


def epsilon_term(dtype: torch.dtype, truth: torch.Tensor) -> float:
    """The absolute error the table allows for a result of `dtype` whose exact value is `truth`."""
    scale = truth.abs().max().item() if truth.numel() else 0.0
    return TOLERANCE[dtype] * torch.finfo(dtype).eps * max(scale, 1e-30)


def assert_close(
    actual: torch.Tensor, truth: torch.Tensor, what: str = "", slack: float = 0.0
) -> None:
    """|actual - truth| <= the table's term for actual's dtype + slack, element by element.

    Integers, as a state_dict has them, are equal.
    """
    assert actual.shape == truth.shape, f"{what}: shape {actual.shape}, expected {truth.shape}"
    if not truth.is_floating_point():
        assert torch.equal(actual, truth), f"{what}: {actual}, expected {truth}"
        return
    exact = truth.detach().double()
    bound = epsilon_term(actual.dtype, exact) + slack
    if exact.numel():
        error = (actual.detach().double() - exact).abs().max().item()
        assert error <= bound, f"{what}: error {error:.3e} exceeds {bound:.3e}"


def assert_no_worse(
    actual: torch.Tensor, torchs: torch.Tensor, truth: torch.Tensor, what: str = ""
) -> None:
    """THE rule of precision: our error <= 2 x torch's own at that dtype + the table's term."""
    torchs_error = (torchs.detach().double() - truth.detach().double()).abs().max().item()
    assert_close(actual, truth, f"{what}, torch's own error {torchs_error:.3e}", 2 * torchs_error)


def raised_by(function: Callable[[], Any]) -> Exception:
    """The exception that function() raises; the test fails if it raises none."""
    try:
        function()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def with_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of x (N, C, ...) in another layout; rank 2 has no channels_last of its own."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":  # every second row of a wider tensor: strides fit no memory format
        wide = x.new_full((x.shape[0], 2 * x.shape[1], *x.shape[2:]), float("nan"))
        wide[:, ::2] = x
        return wide[:, ::2]
    raise ValueError(f"unknown layout {layout!r}")


def make_input(
    shape: Sequence[int],
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float64,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
    requires_grad: bool = False,
) -> torch.Tensor:
    """A leaf of normal values, the same ones for every layout and device.

    `layout`: "contiguous", "channels_last" (rank 3 and 5 too), "sliced" (non-contiguous, with NaN
    between the values, so that a read of these shows), or "expanded" (for dy: one value, all
    strides 0).
    """
    generator = torch.Generator().manual_seed(seed)
    if layout == "expanded":
        one = torch.randn((), generator=generator, dtype=torch.float64) * std + mean
        return one.to(DEVICE, dtype).expand(tuple(shape))
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * std + mean
    return with_layout(x.to(DEVICE, dtype), layout).detach().requires_grad_(requires_grad)


@contextlib.contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """CUDA's autocast without a GPU, for fake tensors: torch.autocast would not switch it on."""
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def in_a_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, with only the given ones of fastnorm's environment variables."""
    from fastnorm.__main__ import VARIABLES

    env = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    env |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | environment
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=280
    )


@contextlib.contextmanager
def running(backend: str, *, launches: bool = True) -> Iterator[list[str]]:
    """Run the body under `backend` and check that only that backend computes.

    Triton's kernels and the engine in C must run under their own names (unless `launches` is False:
    nothing to do for an empty tensor) and under no others. If another backend computed the result,
    every other assertion would mean nothing.
    """
    import fastnorm
    from fastnorm.kernels import launch
    from fastnorm.kernels.cpu import calls

    with fastnorm.use_backend(backend), launch.record() as launched, calls.record() as called:
        yield launched
    for name, ran in (("triton", launched), ("cpu", called)):
        if backend != name:
            assert not ran, f"backend {backend!r} called {ran} of {name!r}"
        elif launches:
            assert ran, f"backend {name!r} ran nothing of its own"
