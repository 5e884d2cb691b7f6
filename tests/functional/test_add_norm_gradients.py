"""Derivatives of add_layer_norm and add_rms_norm: both outputs', and their transforms."""

import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

import fastnorm.functional as F
from tests.conftest import (
    assert_close,
    make_input,
    running,
)
from tests.functional.sums import (
    NAMES,
    SHAPE,
    Steps,
    call,
    cotangents,
    doubled,
    each_backend,
    each_norm,
    make,
    results,
)


@each_norm
@each_backend
def test_derivatives(backend, norm):
    leaves = make(norm, (2, 3))

    def function(*tensors):
        return call(F, norm, tensors)

    with running(backend):
        assert gradcheck(function, leaves)
        assert gradgradcheck(function, leaves, fast_mode=True)


@each_norm
@each_backend
def test_gradient_penalty(backend, norm):
    """The gradients of |dx|^2, dx of both outputs, against torch's: gradcheck takes dx as it is."""

    def penalty(functional):
        y, total = call(functional, norm, leaves)
        (dx,) = torch.autograd.grad((y**3 + total**2).sum(), leaves[0], create_graph=True)
        return [dx, *torch.autograd.grad((dx**2).sum(), leaves[:3])]

    leaves = make(norm)
    exact = penalty(Steps)
    with running(backend):
        ours = penalty(F)
    for mine, value in zip(ours, exact, strict=True):
        assert_close(mine, value, slack=1e-12 * value.abs().max().item())


@each_norm
@each_backend
def test_who_requires_a_gradient(backend, norm):
    """Any single one; frozen tensors get none. Without any there is no graph."""
    leaves = make(norm)
    exact = results(Steps, norm, doubled(leaves))
    for i in range(len(leaves)):
        given = [t.detach().requires_grad_(i == j) for j, t in enumerate(leaves)]
        with running(backend):
            y, total = call(F, norm, given)
            assert total.requires_grad == (i < 2)
            used = slice(2 if i < 2 else 1)
            torch.autograd.backward((y, total)[used], cotangents(leaves[0])[used])
        assert_close(given[i].grad, exact[NAMES[i]], NAMES[i])
        assert [t.grad is None for t in given] == [i != j for j in range(len(leaves))]
    with running(backend), torch.no_grad():
        assert not any(out.requires_grad for out in call(F, norm, leaves))


@each_norm
@each_backend
def test_a_chain_of_blocks(backend, norm):
    """The residual stream: the sum of one block is the residual of the next, x its own residual."""

    def stream(functional, leaves):
        x, _, *parameters = leaves
        y, total = call(functional, norm, [x, x, *parameters])
        for _ in range(3):
            y, total = call(functional, norm, [torch.sin(y), total, *parameters])
        return (y * total).sum()

    leaves = make(norm)
    wanted = [leaves[0], *leaves[2:]]
    exact = torch.autograd.grad(stream(Steps, leaves), wanted)
    with running(backend):
        ours = torch.autograd.grad(stream(F, leaves), wanted)
    for mine, value in zip(ours, exact, strict=True):
        assert_close(mine, value, slack=1e-12 * value.abs().max().item())


@each_norm
@each_backend
def test_transforms(backend, norm):
    leaves = [t.detach() for t in make(norm)]
    tangents = tuple(make_input(t.shape, seed=20 + i) for i, t in enumerate(leaves))

    def loss_of(functional):
        def loss(*tensors):
            y, total = call(functional, norm, tensors)
            return (y * total).square().mean()

        return loss

    def everything(functional):
        indices = tuple(range(len(leaves)))
        dims = (0, 0, *[None] * (len(leaves) - 2))
        loss = loss_of(functional)
        return [
            *grad(loss, indices)(*leaves), vmap(loss, dims)(*leaves),
            *vmap(grad(loss, indices), dims)(*leaves), *jvp(loss, tuple(leaves), tangents),
        ]  # fmt: skip

    exact = everything(Steps)
    with running(backend):
        ours = everything(F)
    for mine, value in zip(ours, exact, strict=True):
        assert_close(mine, value, slack=1e-12 * value.abs().max().item())


@each_norm
@each_backend
def test_batched_cotangents(backend, norm):
    leaves = make(norm)
    dys = [make_input((2, *SHAPE), seed=s) for s in (30, 31)]
    exact = torch.autograd.grad(call(Steps, norm, leaves), leaves, dys, is_grads_batched=True)
    with running(backend):
        outputs = call(F, norm, leaves)
        ours = torch.autograd.grad(outputs, leaves, dys, is_grads_batched=True)
    for name, mine, value in zip(NAMES, ours, exact, strict=False):
        assert_close(mine, value, name, slack=1e-12 * value.abs().max().item())
