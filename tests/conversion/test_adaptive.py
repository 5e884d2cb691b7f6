"""convert of diffusers' adaptive norms: modulation inside the norm's call."""

import copy

import pytest
import torch
from torch import nn

import fastnorm
from fastnorm.conversion import adaptive
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running
from tests.conversion import library_classes as libraries

N, D = 3, 8
ROWS = (N, 5, D)


def tensors(*shapes):
    return [make_input(shape, dtype=torch.float32, seed=i) for i, shape in enumerate(shapes)]


def steps(count):
    return torch.arange(count, device=DEVICE)


# The library's module, our class, how many norms are converted, and what it is called with.
TAKEN = {
    "group": (
        libraries.DiffusersAdaGroupNorm, "AdaGroupNorm", 1, lambda: tensors((N, 8, 4, 4), (N, 6))
    ),
    "group_act": (
        lambda: libraries.DiffusersAdaGroupNorm(act=nn.SiLU()), "AdaGroupNorm", 1,
        lambda: tensors((N, 8, 4, 4), (N, 6)),
    ),
    "layer": (
        lambda: libraries.DiffusersAdaLayerNorm(chunk_dim=1), "AdaLayerNorm", 2,
        lambda: [tensors(ROWS)[0], None, tensors((N, D))[0]],
    ),
    "layer_vector": (
        libraries.DiffusersAdaLayerNorm, "AdaLayerNorm", 2,
        lambda: [tensors(ROWS)[0], None, tensors((D,))[0]],
    ),
    "layer_step": (
        lambda: libraries.DiffusersAdaLayerNorm(embeddings=2), "AdaLayerNorm", 2,
        lambda: [tensors(ROWS)[0], steps(2)[1]],
    ),
    "zero": (
        libraries.DiffusersAdaLayerNormZero, "AdaLayerNormZero", 2,
        lambda: [tensors(ROWS)[0], None, None, None, tensors((N, D))[0]],
    ),
    "zero_fp32": (
        lambda: libraries.DiffusersAdaLayerNormZero(norm=libraries.DiffusersFP32LayerNorm(D)),
        "AdaLayerNormZero", 2,
        lambda: [tensors(ROWS)[0], None, None, None, tensors((N, D))[0]],
    ),
    "zero_embedded": (
        lambda: libraries.DiffusersAdaLayerNormZero(embeddings=4), "AdaLayerNormZero", 2,
        lambda: [tensors(ROWS)[0], steps(N), steps(N) % 2, torch.float32],
    ),
    "single": (
        libraries.DiffusersAdaLayerNormZeroSingle, "AdaLayerNormZeroSingle", 2,
        lambda: tensors(ROWS, (N, D)),
    ),
    "continuous": (
        libraries.DiffusersAdaLayerNormContinuous, "AdaLayerNormContinuous", 2,
        lambda: tensors(ROWS, (N, 6)),
    ),
    "continuous_rms": (
        lambda: libraries.DiffusersAdaLayerNormContinuous(norm=libraries.DiffusersRMSNorm(D)),
        "AdaLayerNormContinuous", 2, lambda: tensors(ROWS, (N, 6)),
    ),
}  # fmt: skip
WITH_STEPS = ("layer_step", "zero_embedded")  # called with integers too


def made(name):
    torch.manual_seed(0)
    return TAKEN[name][0]().to(DEVICE)


def results(module, arguments):
    module.zero_grad()
    torch.manual_seed(1)  # of dropped classes
    arguments = [
        a.clone().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a
        for a in arguments
    ]
    y = module(*arguments)
    outputs = y if isinstance(y, tuple) else (y,)
    dys = tensors(*(part.shape for part in outputs))
    torch.autograd.backward(outputs, dys)
    leaves = {str(i): a for i, a in enumerate(arguments) if getattr(a, "requires_grad", False)}
    leaves |= dict(module.named_parameters())
    return {f"y{i}": part for i, part in enumerate(outputs)} | {
        k: v.grad for k, v in leaves.items()
    }


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_modulation_goes_into_the_norm(backend, name):
    """Values and gradients as before; the norm is called once, with scale and shift."""
    _, kind, count, arguments = TAKEN[name]
    twin, module = made(name), made(name)
    library, keys = type(module), list(module.state_dict())
    report = fastnorm.convert(module)
    assert len(report.changed) == count and not report.kept, report
    assert report.changed[0].new == f"fastnorm.conversion.adaptive.{kind}"
    assert type(module) is getattr(adaptive, kind) and list(module.state_dict()) == keys
    with running(backend):
        found = results(module, arguments())
    for key, exact in results(twin, arguments()).items():
        assert_close(found[key], exact, key, slack=2e-6 * max(1.0, exact.abs().max().item()))
    fastnorm.revert(module)
    assert type(module) is library and repr(module) == repr(twin)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [n for n in TAKEN if n not in WITH_STEPS])
def test_half_precision_is_closer_than_before(name, dtype):
    """Scale and shift are applied before rounding, so the first output is no farther from exact."""
    arguments = [a if a is None else a.to(dtype) for a in TAKEN[name][3]()]
    module = made(name).to(dtype)
    twin, exact = copy.deepcopy(module), copy.deepcopy(module).double()
    report = fastnorm.convert(module)
    assert not report.kept, report
    truth = exact(*(a if a is None else a.double() for a in arguments))
    first = [m(*arguments) for m in (twin, module)] + [truth]
    before, after, truth = (y[0] if isinstance(y, tuple) else y for y in first)
    assert (after.double() - truth).norm() < 1.02 * (before.double() - truth).norm()


class Swapped(libraries.DiffusersAdaLayerNormZero):
    """Another order of the parts, as a library has changed it before."""

    def forward(self, x, timestep=None, class_labels=None, hidden_dtype=None, emb=None):
        scale, shift, *rest = self.linear(self.silu(emb)).chunk(6, dim=1)
        return self.norm(x) * (1 + scale[:, None]) + shift[:, None], *rest


def test_what_computes_something_else_is_kept():
    library = libraries.DiffusersAdaLayerNormZero
    libraries.named(f"{library.__module__}.{library.__qualname__}")(Swapped)
    report = fastnorm.convert(Swapped())
    assert [change.name for change in report.changed] == ["norm"]
    assert "computes something else" in report.kept[0].reason


def test_a_norm_that_something_sees_is_not_modulated():
    """A hook of the inner norm would see another output than before."""
    module = libraries.DiffusersAdaLayerNormZero()
    module.norm.register_forward_hook(lambda *_: None)
    report = fastnorm.convert(module)
    assert report.kept[0].reason == "its norm has hooks or another forward"
    other = libraries.DiffusersAdaLayerNormZero(norm=nn.GroupNorm(1, D))
    assert "its norm is kept: torch.nn.GroupNorm" in fastnorm.convert(other).kept[0].reason


class Block(nn.Module):
    """A block as it calls its modulated norm; an activation follows another norm."""

    def __init__(self):
        super().__init__()
        self.modulated, self.norm = libraries.DiffusersAdaLayerNormZero(D), libraries.T5(D)
        self.plain, self.act = nn.LayerNorm(D), nn.SiLU()

    def forward(self, x, emb):
        y, gate, _, _, _ = self.modulated(x, None, None, None, emb)
        return self.act(self.plain(self.norm(gate[:, None] * y)))


def test_what_holds_it_is_traced_and_compiled():
    """torch.fx looks into it, as into the library's class; torch.compile sees one graph."""
    torch.manual_seed(0)
    model, inputs = Block().to(DEVICE).eval(), tensors(ROWS, (N, D))
    expected = model(*inputs)
    assert len(fastnorm.convert(model).changed) == 4
    report = fastnorm.fuse(model, tuple(inputs))
    assert [change.name for change in report.changed] == ["plain"], report
    for answering in (report.model, torch.compile(model, fullgraph=True, backend="eager")):
        assert_close(answering(*inputs), expected, slack=1e-5)
