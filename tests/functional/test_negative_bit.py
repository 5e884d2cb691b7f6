"""Tensors with torch's negative bit, which kernels cannot read: `z.conj().imag` is one.

torch's arithmetic negates their values on the way; here each case has the results of such a
tensor's plain copy.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastnorm
import fastnorm.functional as F
from tests.conftest import BACKENDS, make_input
from tests.norms import GRADS, NORMS, call, make_params

SHAPE = (2, 4, 3, 3)


def negated(x: Tensor) -> Tensor:
    """x's own values, as the negative view of their negation."""
    view = torch._neg_view(-x)
    assert view.is_neg() and torch.equal(view, x)
    return view


def results(call: Callable[..., Tensor], tensors: list[Tensor], dy: Tensor) -> list[Tensor]:
    y = call(*tensors)
    return [y, *torch.autograd.grad(y, tensors, dy)]


def check(call: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    """`call` with each of the tensors, and the output's gradient, as a negative view."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    dy = make_input(tuple(call(*leaves).shape), dtype=torch.float32, seed=9)
    expected = results(call, leaves, dy)
    for i in range(len(leaves)):
        mixed = [negated(t) if i == j else t for j, t in enumerate(leaves)]
        for found, right in zip(results(call, mixed, dy), expected, strict=True):
            torch.testing.assert_close(found, right)
    for found, right in zip(results(call, leaves, negated(dy)), expected, strict=True):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norm(backend: str, norm: str) -> None:
    p = make_params(norm, SHAPE, torch.float32)
    named = [name for name in GRADS if p[name] is not None]

    def of(x: Tensor, residual: Tensor, *parameters: Tensor) -> Tensor:
        kept = {k: None if v is None else v.clone() for k, v in p.items()}  # statistics move
        given = kept | dict(zip(named, parameters, strict=True))
        return call(F, norm, x, given, activation="relu", residual=residual)

    tensors = [make_input(SHAPE, dtype=torch.float32, seed=seed) for seed in (1, 2)]
    with fastnorm.use_backend(backend):
        check(of, [*tensors, *(p[name] for name in named)])


OTHERS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "add_layer_norm": (lambda x, r: sum(F.add_layer_norm(x, r, (4,))), ((3, 4), (3, 4))),
    "gated_rms_norm": (F.gated_rms_norm, ((3, 4), (3, 4), (4,))),
    "weight_norm": (F.weight_norm, ((3, 4), (3, 1))),
    "modulated": (
        lambda x, scale, shift: F.group_norm(x, 2, scale=scale, shift=shift),
        (SHAPE, (2, 4), (2, 4)),
    ),
    "moment_norm": (
        lambda x, r: F.moment_norm(x, lambda mean, var, n: (1 / (var + 1), mean, 0.0), residual=r),
        (SHAPE, SHAPE),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_function(backend: str, name: str) -> None:
    of, shapes = OTHERS[name]
    tensors = [make_input(s, dtype=torch.float32, seed=i) for i, s in enumerate(shapes)]
    with fastnorm.use_backend(backend):
        check(of, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics(backend: str) -> None:
    """They are read, and updated."""
    x = make_input(SHAPE, dtype=torch.float32)
    plain, views = ([make(torch.ones(4)) for _ in range(2)] for make in (torch.clone, negated))
    with fastnorm.use_backend(backend):
        expected, found = (F.batch_norm(x, *s, training=True) for s in (plain, views))
        torch.testing.assert_close(found, expected)
        assert all(map(torch.allclose, views, plain)) and not torch.equal(plain[0], torch.ones(4))
