"""Rounding errors at float32, bfloat16 and float16 against a float64 truth.

Rule: our error <= 2 x torch's own error at that dtype + the tolerance table's eps-term. The truth
sees the very values of the low-precision input, so it has no rounding of its own. Weights and
statistics are float32 as under autocast. If torch has no kernel for a combination on this device
(CUDA layer_norm and group_norm with float32 weights and half inputs), "torch's own" is its float32
computation rounded to the dtype. Batch-instance norm has no torch operator: it is composed of
batch_norm and instance_norm.

relu is left out: near its kink one rounding flips a mask, and the comparison says nothing.

For the kernels, 16-bit inputs are slow if float32 ones test the same: they are float32 once they
are loaded, and every test has some quick cases of each dtype.
"""

import pytest
import torch

import fastnorm.functional as F
from tests.conftest import (
    BACKENDS,
    DEVICE,
    LAYOUTS,
    assert_no_worse,
    combinations,
    make_input,
    running,
)
from tests.norms import (
    EPS,
    GRADS,
    NORMS,
    OF_ROWS,
    STATS,
    Params,
    Torch,
    double,
    forward_backward,
    make_params,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRAINING = ("bn_train", "in", "bin_train", "ln", "rms", "gn")
SHAPE = (2, 6, 8, 5)


def copy_params(p: Params, dtype: torch.dtype | None = None) -> Params:
    copied = {k: None if v is None else v.detach().clone() for k, v in p.items()}
    for name in GRADS:
        if copied[name] is not None:
            copied[name] = copied[name].to(dtype or copied[name].dtype).requires_grad_()
    return copied


def results(functional, norm, x, p, dy, **kwargs):
    """y, all gradients and the running statistics after the call."""
    x = x.detach().requires_grad_()
    found = forward_backward(functional, norm, x, p, dy, **kwargs)
    return found | {name: p[name] for name in STATS if p[name] is not None}


def torch_results(norm, x, p, dy, **kwargs):
    try:
        return results(Torch, norm, x, copy_params(p), dy, **kwargs)
    except RuntimeError:  # no such dtype combination on this device
        residual = kwargs.pop("residual", None)
        if residual is not None:
            kwargs["residual"] = residual.float()
        found = results(Torch, norm, x.float(), copy_params(p), dy.float(), **kwargs)
        return {k: v.to(x.dtype) if k in ("y", "x") else v for k, v in found.items()}


def check(backend, norm, x, dy, **kwargs):
    """Apply the rule to y, every gradient and the running statistics of one call."""
    p = make_params(norm, tuple(x.shape), torch.float32)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    truth = results(Torch, norm, x.double(), double(p, requires_grad=True), dy.double(), **wide)
    torchs = torch_results(norm, x, p, dy, **kwargs)
    with running(backend):
        ours = results(F, norm, x, copy_params(p), dy, **kwargs)
    for name, exact in truth.items():
        assert ours[name].dtype == (x.dtype if name in ("y", "x") else torch.float32), name
        assert_no_worse(ours[name], torchs[name], exact, name)


@pytest.mark.parametrize(
    ("backend", "norm", "dtype", "ratio"),
    combinations(
        BACKENDS, NORMS, DTYPES, [1.0, 1e2, 1e4],
        quick=lambda norm, dtype, ratio: (dtype, ratio) in (("fp32", 1e2), ("bf16", 1e4)),
    ),
)  # fmt: skip
def test_mean_over_std(backend, norm, dtype, ratio):
    """Means far above the deviation: E[x^2] - E[x]^2 has no digits left at 1e4."""
    x = make_input(SHAPE, dtype=DTYPES[dtype], mean=ratio)
    dy = make_input(SHAPE, dtype=DTYPES[dtype], seed=8)
    check(backend, norm, x, dy)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_sums_do_not_overflow(backend, norm, layout):
    """float16 values of 1e4: a sum of seven of them in float16 is already infinite."""
    x = make_input(SHAPE, layout, torch.float16, mean=1e4, std=4e3)
    assert x.isfinite().all() and x.sum(dtype=torch.float16).isinf()
    dy = make_input(SHAPE, layout, torch.float16, seed=8, std=30.0)
    check(backend, norm, x, dy)


LARGE = {
    "tiles": ((2, 3, 20011), "contiguous"),  # one (n, c) takes many
    "tiles_last": ((2, 5, 67, 71), "channels_last"),
    "instances": ((100, 4, 7), "contiguous"),  # many to merge
    "instances_last": ((50, 6, 3, 3), "channels_last"),
    "rank_2": ((4100, 3), "contiguous"),  # S = 1: nothing within an instance
}


@pytest.mark.parametrize(
    ("backend", "norm", "large", "dtype"),
    combinations(
        BACKENDS, TRAINING, LARGE, DTYPES,
        # Tiles and merges are every dtype's; many instances are many programs, and nothing to merge
        # but for batch norms.
        quick=lambda norm, large, dtype: (
            dtype == "fp32" and (norm == "bn_train" or large.startswith("tiles"))
        ),
    ),
)  # fmt: skip
def test_many_tiles(backend, norm, large, dtype):
    """Reduction sets that span chunks and programs, so that partial moments are merged."""
    shape, layout = LARGE[large]
    if len(shape) == 2 and norm != "bn_train":
        pytest.skip("instances and groups of few values: no merge, and thousands of programs")
    if norm in OF_ROWS and layout == "contiguous":
        pytest.skip("test_rows")
    x = make_input(shape, layout, DTYPES[dtype], mean=3.0, std=2.0)
    dy = make_input(shape, layout, DTYPES[dtype], seed=8, mean=0.2)
    check(backend, norm, x, dy)


@pytest.mark.parametrize(
    ("backend", "norm", "ratio"),
    combinations(BACKENDS, TRAINING, [1e2, 1e4], quick=lambda norm, ratio: ratio == 1e4),
)
def test_many_tiles_with_far_mean(backend, norm, ratio):
    x = make_input((3, 2, 9001), dtype=torch.float32, mean=ratio)
    check(backend, norm, x, make_input(x.shape, dtype=torch.float32, seed=8))


@pytest.mark.parametrize(
    ("backend", "norm", "shape", "dtype"),
    combinations(
        BACKENDS, OF_ROWS, [(3, 4097), (2, 20011), (700, 33)], DTYPES,
        quick=lambda norm, shape, dtype: dtype == ("bf16" if norm == "rms" else "fp32"),
    ),
)  # fmt: skip
def test_rows(backend, norm, shape, dtype):
    """Rows longer than any program holds, and many rows for dweight to sum over."""
    x = make_input(shape, dtype=DTYPES[dtype], mean=3.0, std=2.0)
    check(backend, norm, x, make_input(shape, dtype=DTYPES[dtype], seed=8, mean=0.2))


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", TRAINING)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fused(backend, norm, dtype, activation):
    """Residual and activation inside the kernel round once where torch rounds at every step."""
    x, residual, dy = (
        make_input(SHAPE, dtype=DTYPES[dtype], seed=seed, mean=0.5) for seed in (0, 7, 8)
    )
    check(backend, norm, x, dy, activation=activation, residual=residual)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e15])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_extremes(backend, norm, scale):
    """Tiny variances vanish beside eps; 1e15 squared still fits float32."""
    x = make_input(SHAPE, dtype=torch.float32, std=scale)
    check(backend, norm, x, make_input(x.shape, dtype=torch.float32, seed=8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [norm for norm in TRAINING if norm != "rms"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_input_is_centred(backend, norm, dtype):
    """All values equal: what is left of x - mean is one float32 rounding of the mean at most."""
    x = torch.full(SHAPE, 3.0, dtype=DTYPES[dtype], device=DEVICE)
    p = make_params(norm, tuple(x.shape), torch.float32, affine="none")
    with running(backend):
        y = forward_backward(F, norm, x.requires_grad_(), p, torch.ones_like(x))["y"]
    assert y.abs().max() <= 3.0 * torch.finfo(torch.float32).eps / EPS**0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_inf_spread_as_in_torch(backend, norm, bad):
    """One bad value spoils exactly the entries and running statistics it spoils in torch."""
    x = make_input((3, 4, 5), dtype=torch.float32)
    x[1, 2, 3] = bad
    p = make_params(norm, (3, 4, 5), torch.float32)
    dy = make_input(x.shape, dtype=torch.float32, seed=8)
    theirs = results(Torch, norm, x, copy_params(p), dy)
    with running(backend):
        ours = results(F, norm, x, copy_params(p), dy)
    for name in ("y", *(s for s in STATS if s in theirs)):
        assert torch.equal(ours[name].isfinite(), theirs[name].isfinite()), name
