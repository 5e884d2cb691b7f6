"""torch.autocast: the dtypes of torch's own norms inside and outside, and the refusals."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastnorm
import fastnorm.functional as F
from tests.conftest import (
    BACKENDS,
    DEVICE,
    OLD_TORCH,
    assert_close,
    autocast_of_cuda,
    make_input,
    running,
)
from tests.norms import NORMS, OF_ROWS, Torch, call, make_params

SHAPE = (4, 6, 5, 3)
HALF = (torch.float16, torch.bfloat16)
LIKE = {"bin_train": "bn_train", "bin_eval": "bn_eval"}  # torch has no batch-instance norm


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_are_torchs(backend, norm, dtype):
    """On this device, float32 parameters beside x of each dtype, forward and backward."""
    x = make_input(SHAPE, dtype=dtype, requires_grad=True)
    p = make_params(norm, SHAPE, torch.float32, requires_grad=True)
    like = make_params(LIKE.get(norm, norm), SHAPE, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        try:
            expected = call(Torch, LIKE.get(norm, norm), x.detach(), like).dtype
        except RuntimeError:  # torch wants float64 parameters for float64 x; ours may be any
            expected = dtype
        with running(backend):
            y = call(F, norm, x, p)
    assert y.dtype == expected
    y.float().square().sum().backward()
    assert x.grad.dtype == dtype
    assert {p[k].grad.dtype for k in ("weight", "bias") if p[k] is not None} == {torch.float32}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("norm", ["bn_train", "in", "bin_train", "ln", "rms", "gn"])
def test_cuda_rules(norm, dtype):
    """CUDA's lists on any machine: shapes and dtypes are all that a fake tensor has."""
    p = make_params(norm, SHAPE, torch.float32)
    with FakeTensorMode():
        x = torch.empty(SHAPE, dtype=dtype, device="cuda")
        p = {k: None if t is None else torch.empty(t.shape, device="cuda") for k, t in p.items()}
        with autocast_of_cuda():
            with fastnorm.use_backend("auto"):
                y = call(F, norm, x, p, residual=x)
            # torch's own fake batch norm cannot update running statistics on a missing GPU.
            p.update(running_mean=None, running_var=None)
            expected = call(Torch, norm, x, p, residual=x) if norm[:3] != "bin" else x
    if not (OLD_TORCH and norm == "rms"):  # autocast of torch 2.11 does not know it
        assert y.dtype == expected.dtype
    assert (y.dtype == torch.float32) == (norm in (*OF_ROWS, "gn"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_residual_of_another_dtype_promotes(backend):
    """As relu(norm(x) + residual) does; without autocast it is refused."""
    x, residual = make_input(SHAPE, dtype=torch.bfloat16), make_input(SHAPE, dtype=torch.float32)
    exact = (Torch.group_norm(x.double(), 2) + residual.double()).relu()
    with torch.autocast(DEVICE, torch.bfloat16), running(backend):
        y = F.group_norm(x, 2, residual=residual, activation="relu")
    assert y.dtype == torch.float32
    assert_close(y, exact)
    with running(backend, launches=False), pytest.raises(RuntimeError, match="residual"):
        F.group_norm(x, 2, residual=residual)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_of_another_device_or_none_changes_nothing(backend):
    x = make_input(SHAPE, dtype=torch.bfloat16)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=False), running(backend):
        assert F.group_norm(x, 2).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_refused_dtypes(backend, norm, dtype):
    x = torch.ones(SHAPE, device=DEVICE).to(dtype)
    p = make_params(norm, SHAPE, torch.float32)
    stats = {k: v.clone() for k, v in p.items() if k.startswith("running") and v is not None}
    for enabled in (False, True):
        with (
            torch.autocast(DEVICE, torch.bfloat16, enabled=enabled),
            running(backend, launches=False),
            pytest.raises((NotImplementedError, RuntimeError)),
        ):
            call(F, norm, x, p)
    assert all(torch.equal(p[k], v) for k, v in stats.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_under_autocast(backend):
    """conv, norm, residual: float32 parameters move, whatever dtype flows between the layers."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), fastnorm.BatchNorm2d(6, activation="relu"),
        torch.nn.Conv2d(6, 6, 3), fastnorm.GroupNorm(2, 6, activation="silu"),
        torch.nn.Flatten(), torch.nn.LazyLinear(2),
    ).to(DEVICE)  # fmt: skip
    x = torch.randn(4, 3, 7, 7, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16), running(backend):
        loss = model(x).square().mean()
        loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32, name
