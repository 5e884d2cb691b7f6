"""Running statistics: momentum, unbiased variance, instance norm's average, no write in evaluation.

Truth: torch.nn.functional in float64 with its own buffers, and numpy where torch has no operator.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as TF

import fastnorm.functional as F
from tests.conftest import BACKENDS, DEVICE, LAYOUTS, assert_close, make_input, running

WRITERS = ("batch_norm", "instance_norm", "batch_instance_norm")
SHAPE = (3, 5, 4, 2)


def fresh(channels, dtype=torch.float64):
    return (
        make_input((channels,), dtype=dtype, seed=4),
        make_input((channels,), dtype=dtype, seed=5).abs() + 0.5,
    )


def write(functional, op, x, mean, var, **kwargs):
    """One training call of `op` that updates mean and var."""
    if op == "batch_norm":
        return functional.batch_norm(x, mean, var, training=True, **kwargs)
    if op == "instance_norm":
        return functional.instance_norm(x, mean, var, use_input_stats=True, **kwargs)
    if functional is TF:  # its running statistics are those of its batch-norm part
        return functional.batch_norm(x, mean, var, training=True, **kwargs)
    rho = torch.full((x.shape[1],), 0.3, dtype=mean.dtype, device=DEVICE)
    return functional.batch_instance_norm(x, mean, var, rho, training=True, **kwargs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, True, torch.tensor(0.25)], ids=str)
@pytest.mark.parametrize("op", WRITERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_update_equals_torch(backend, op, momentum, layout):
    x = make_input(SHAPE, layout, mean=2.0, std=3.0)
    ours, theirs = fresh(5), fresh(5)
    write(TF, op, x, *theirs, momentum=momentum)
    with running(backend):
        write(F, op, x, *ours, momentum=momentum)
    for mine, exact, before in zip(ours, theirs, fresh(5), strict=True):
        assert_close(mine, exact)
        if momentum == 0.0:
            assert torch.equal(mine, before), "momentum 0 keeps the statistics"


@pytest.mark.parametrize(
    "shape", [(7, 3), (2, 3, 1), (1, 3, 2), (2, 1, 9), (2, 129, 3), (2, 3, 3, 3, 2)], ids=str
)
@pytest.mark.parametrize("op", WRITERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_update_by_hand(backend, op, shape):
    """momentum * (mean, M2 / (count - 1)) + (1 - momentum) * old; count is N*S, for instances S."""
    x = make_input(shape, mean=2.0)
    flat = x.cpu().numpy().reshape(shape[0], shape[1], -1)
    if op != "batch_norm" and flat.shape[2] == 1:
        pytest.skip("an error: test_errors")
    if op == "instance_norm":
        mean, var = flat.mean(axis=(0, 2)), flat.var(axis=2, ddof=1).mean(axis=0)
    else:
        mean, var = flat.mean(axis=(0, 2)), flat.var(axis=(0, 2), ddof=1)
    ours, old = fresh(shape[1]), [t.cpu().numpy() for t in fresh(shape[1])]
    with running(backend):
        write(F, op, x, *ours, momentum=0.25)
    for mine, before, batch in zip(ours, old, (mean, var), strict=True):
        assert_close(mine, torch.from_numpy(np.asarray(0.25 * batch + 0.75 * before)).to(DEVICE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("op", WRITERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_input_float_statistics(backend, op, dtype):
    """The statistics of a half tensor are those of its values, in float32, never in half, as
    torch's own on the CPU are (errors of 3e-4)."""
    x = make_input(SHAPE, dtype=dtype, mean=2.0)
    ours, exact = fresh(5, torch.float32), fresh(5, torch.float32)
    exact = tuple(t.double() for t in exact)
    write(TF, op, x.double(), *exact)
    with running(backend):
        write(F, op, x, *ours)
    for mine, truth in zip(ours, exact, strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine, truth)


@pytest.mark.parametrize("op", WRITERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_updated_once_and_in_place(backend, op):
    """The buffers are written where they lie; backward does not write them a second time."""
    x = make_input(SHAPE, requires_grad=True)
    ours, theirs = fresh(5), fresh(5)
    addresses = [t.data_ptr() for t in ours]
    write(TF, op, x.detach(), *theirs)
    with running(backend):
        write(F, op, x, *ours).sum().backward()
    assert [t.data_ptr() for t in ours] == addresses
    for mine, exact in zip(ours, theirs, strict=True):
        assert_close(mine, exact)
        assert not mine.requires_grad and mine.grad_fn is None


@pytest.mark.parametrize("op", WRITERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_buffers(backend, op):
    """Buffers that are a column of a table are written there, and nothing beside them."""
    x, theirs = make_input(SHAPE), fresh(5)
    table = torch.full((5, 4), 9.0, dtype=torch.float64, device=DEVICE)
    table[:, 0], table[:, 2] = fresh(5)
    write(TF, op, x, *theirs)
    with running(backend):
        write(F, op, x, table[:, 0], table[:, 2])
    assert_close(table[:, 0], theirs[0])
    assert_close(table[:, 2], theirs[1])
    assert (table[:, 1::2] == 9.0).all()


@pytest.mark.parametrize("op", WRITERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_writes_nothing(backend, op):
    x, (mean, var) = make_input(SHAPE), fresh(5)
    with running(backend):
        if op == "batch_norm":
            F.batch_norm(x, mean, var, training=False)
        elif op == "instance_norm":
            F.instance_norm(x, mean, var, use_input_stats=False)
        else:
            F.batch_instance_norm(x, mean, var, torch.full_like(mean, 0.5), training=False)
    for now, before in zip((mean, var), fresh(5), strict=True):
        assert torch.equal(now, before)
