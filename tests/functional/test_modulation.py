"""scale and shift of each sample, against the norm, the factor and the sum one after another."""

import pytest
import torch

import fastnorm
import fastnorm.functional as F
from fastnorm import reference
from tests.conftest import (
    BACKENDS,
    assert_close,
    assert_no_worse,
    make_input,
    running,
)
from tests.norms import (
    GRADS,
    NORMS,
    OF_ROWS,
    Params,
    Torch,
    call,
    grad_targets,
    make_params,
    numpy_norm,
)

GIVEN = (("scale", "shift"), ("scale",), ("shift",))
WAYS = (  # affine, layout, activation, residual
    ("full", "contiguous", None, False),
    ("none", "channels_last", "silu", False),
    ("full", "channels_last", "relu", True),
    ("none", "contiguous", "gelu", True),
)


def modulation(norm: str, shape: tuple[int, ...], given=GIVEN[0], **options) -> Params:
    """scale and shift (N, C), of rows (N, 1, ..., L), None where not given."""
    sizes = shape if norm in OF_ROWS else shape[:2]
    return {
        name: make_input(sizes, seed=200 + i, **options) * 0.5 if name in given else None
        for i, name in enumerate(("scale", "shift"))
    }


def composed(norm, x, p, m, activation=None, residual=None) -> torch.Tensor:
    """The truth, in x's dtype: torch's norm, then the modulation."""
    y = call(Torch, norm, x, p)
    scale, shift = (
        None if t is None else t if norm in OF_ROWS else t.view(*t.shape, *[1] * (x.dim() - 2))
        for t in (m["scale"], m["shift"])
    )
    y = y if scale is None else y * (1 + scale)
    y = y if shift is None else y + shift
    return Torch.finish(y, activation, residual)


@pytest.mark.parametrize("given", GIVEN, ids="+".join)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values(backend, norm, given):
    with running(backend):
        _holds_to_the_definition(F, norm, given)


@pytest.mark.parametrize("given", GIVEN, ids="+".join)
@pytest.mark.parametrize("norm", NORMS)
def test_values_of_the_reference(norm, given):
    _holds_to_the_definition(reference, norm, given)


def _holds_to_the_definition(functions, norm, given) -> None:
    """That in numpy."""
    shape = (3, 6, 5, 2)
    x, p, m = make_input(shape), make_params(norm, shape), modulation(norm, shape, given)
    y = call(functions, norm, x, p, **m)
    before = numpy_norm(norm, x, p)
    by_sample = [
        0.0 if t is None else t if norm in OF_ROWS else t[:, :, None, None] for t in m.values()
    ]
    assert_close(y, before * (1 + by_sample[0]) + by_sample[1])


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend, norm, way):
    """Of x, of scale and shift, of the norm's own parameters and of the residual."""
    shape = (3, 6, 5, 3)
    affine, layout, activation, has_residual = way
    x = make_input(shape, layout, requires_grad=True)
    p = make_params(norm, shape, affine=affine, requires_grad=True)
    m = {k: t.requires_grad_() for k, t in modulation(norm, shape).items()}
    residual = make_input(shape, layout, seed=7, requires_grad=True) if has_residual else None
    dy = make_input(shape, seed=8)
    fused = {"activation": activation, "residual": residual}
    targets = {**grad_targets(x, p), **m}
    if has_residual:
        targets["residual"] = residual
    y = composed(norm, x, {**p, **_statistics(p)}, m, **fused)
    truth = torch.autograd.grad(y, list(targets.values()), dy)
    with running(backend):
        found = call(F, norm, x, {**p, **_statistics(p)}, **m, **fused)
        grads = torch.autograd.grad(found, list(targets.values()), dy)
    assert_close(found, y.detach())
    for name, grad, true in zip(targets, grads, truth, strict=True):
        assert grad.shape == true.shape and grad.dtype == targets[name].dtype
        assert_close(grad, true, name)


def _statistics(p: Params) -> Params:
    return {k: None if p[k] is None else p[k].clone() for k in ("running_mean", "running_var")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(backend, norm, dtype):
    """scale and shift in half precision lose nothing: their factor is made in float32."""
    shape = (4, 6, 7, 3)
    x = make_input(shape, dtype=dtype, requires_grad=True)
    dy = make_input(shape, dtype=dtype, seed=8)
    p = make_params(norm, shape, dtype=torch.float32, requires_grad=True)
    m = {k: t.detach().requires_grad_() for k, t in modulation(norm, shape, dtype=dtype).items()}
    targets = {**grad_targets(x, p), **m}
    truth, torchs = (
        _composed_gradients(norm, p, m, targets, dy, wide)
        for wide in (torch.float64, torch.float32)
    )
    with running(backend):
        found = call(F, norm, x, p, **m)
        grads = torch.autograd.grad(found, list(targets.values()), dy)
    assert found.dtype == dtype
    assert_no_worse(found, torchs["y"], truth["y"])
    for (name, target), grad in zip(targets.items(), grads, strict=True):
        assert grad.dtype == target.dtype
        assert_no_worse(grad, torchs[name], truth[name], name)


def _composed_gradients(norm, p, m, targets, dy, dtype) -> dict[str, torch.Tensor]:
    """y and the gradients of the targets as torch computes them in another dtype."""
    wide = {k: t.detach().to(dtype).requires_grad_() for k, t in targets.items()}
    params = {k: None if t is None else t.detach().to(dtype) for k, t in p.items()}
    params |= {k: wide[k] for k in GRADS if k in wide}
    y = composed(norm, wide["x"], params, {k: wide[k] for k in m})
    grads = torch.autograd.grad(y, list(wide.values()), dy.to(dtype))
    return {"y": y.detach(), **dict(zip(wide, grads, strict=True))}


ROWS = (  # the shapes of scale and of shift for an x of (3, 4, 5, 6) and rows of 6
    ((3, 1, 1, 6), (3, 1, 1, 6)),  # DiT's: one for a sample
    ((3, 1, 1, 6), (6,)),
    ((3, 1, 1, 1), (1, 4, 1, 6)),  # numbers for a sample, and rows of others
    ((4, 1, 6), (4, 5, 1)),
    ((1, 1, 5, 6), (5, 6)),
    ((3, 1, 5, 6), None),
    ((3, 4, 5, 6), (1,)),
    (None, (1, 1, 1, 6)),
)


@pytest.mark.parametrize("shapes", ROWS, ids=str)
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_any_broadcast(backend, norm, shapes):
    shape, plain = (3, 4, 5, 6), norm.removeprefix("add_")
    x, other = (make_input(shape, seed=i, requires_grad=True) for i in (1, 2))
    parameters = [make_input((6,), seed=3, requires_grad=True)]
    if "layer" in norm:
        parameters.append(make_input((6,), seed=4, requires_grad=True))
    scale, shift = (
        None if s is None else make_input(s, seed=5 + i, requires_grad=True)
        for i, s in enumerate(shapes)
    )
    numbers = {"eps": 1e-5}
    total = x + other if norm.startswith("add") else x
    y = getattr(torch.nn.functional, plain)(total, (6,), *parameters, **numbers)
    y = y if scale is None else y * (1 + scale)
    y = y if shift is None else y + shift
    dy = make_input(shape, seed=8)
    targets = [x, *([other] if total is not x else []), *parameters]
    targets += [t for t in (scale, shift) if t is not None]
    truth = torch.autograd.grad(y, targets, dy)
    with running(backend):
        streams = (x, other) if total is not x else (x,)
        found = getattr(F, norm)(*streams, (6,), *parameters, **numbers, scale=scale, shift=shift)
        found = found[0] if total is not x else found
        grads = torch.autograd.grad(found, targets, dy)
    assert_close(found, y.detach())
    for grad, true in zip(grads, truth, strict=True):
        assert grad.shape == true.shape
        assert_close(grad, true)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend, norm):
    shape = (2, 4, 3)
    x = make_input(shape, requires_grad=True)
    p = make_params(norm, shape, requires_grad=True)
    m = {k: t.requires_grad_() for k, t in modulation(norm, shape).items()}
    targets = [*grad_targets(x, p).values(), *m.values()]

    def grads_of(functional, compute):
        y = compute(functional)
        dy = make_input(shape, seed=8).requires_grad_()
        first = torch.autograd.grad(y, targets, dy, create_graph=True)
        directions = [make_input(g.shape, seed=20 + i) for i, g in enumerate(first)]
        return torch.autograd.grad(first, [*targets, dy], directions, allow_unused=True)

    def own(functional):
        return call(functional, norm, x, {**p, **_statistics(p)}, activation="silu", **m)

    def true(functional):
        return composed(norm, x, {**p, **_statistics(p)}, m, "silu")

    with running(backend, launches=False):
        found = grads_of(F, own)
    for a, b in zip(found, grads_of(Torch, true), strict=True):
        assert_close(torch.zeros_like(b) if a is None else a, b)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_transforms(backend, norm):
    """vmap over x, and over scale and shift alone; forward-mode derivatives."""
    shape = (3, 4, 5)
    x, p = make_input((2, *shape)), make_params(norm, shape)
    if norm in ("bn_train", "bin_train", "mean_train"):
        p["running_mean"] = p["running_var"] = None  # which a batch cannot update
    many = {k: torch.stack([t, 2 * t]) for k, t in modulation(norm, shape).items()}
    one = modulation(norm, shape)

    def each(x, scale, shift):
        return call(F, norm, x, p, scale=scale, shift=shift)

    with running(backend, launches=False):
        both = torch.vmap(each)(x, many["scale"], many["shift"])
        shared = torch.vmap(each, (0, None, None))(x, one["scale"], one["shift"])
        own = torch.vmap(each, (None, 0, 0))(x[0], many["scale"], many["shift"])
        tangent = torch.func.jvp(
            lambda s: each(x[0], s, one["shift"]), (one["scale"],), (one["scale"],)
        )[1]
        grads = torch.vmap(torch.func.grad(lambda *a: each(*a).sin().sum(), (0, 1, 2)))(
            x, many["scale"], many["shift"]
        )
    for i in range(2):
        m = {k: t[i].clone().requires_grad_() for k, t in many.items()}
        xi = x[i].clone().requires_grad_()
        y = composed(norm, xi, p, m)
        assert_close(both[i], y.detach())
        truth = torch.autograd.grad(y.sin().sum(), [xi, m["scale"], m["shift"]])
        for grad, true in zip(grads, truth, strict=True):
            assert_close(grad[i], true)
        assert_close(shared[i], composed(norm, x[i], p, one))
        assert_close(own[i], composed(norm, x[0], p, {k: t[i] for k, t in many.items()}))
    none = {"scale": None, "shift": None}
    by_scale = composed(norm, x[0], p, none) * (
        one["scale"] if norm in OF_ROWS else one["scale"][:, :, None]
    )
    assert_close(tangent, by_scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_are_those_without(backend):
    shape = (3, 4, 5)
    x, p = make_input(shape), make_params("bn_train", shape)
    plain = {**p, **_statistics(p)}
    with running(backend):
        call(F, "bn_train", x, p, **modulation("bn_train", shape))
        call(F, "bn_train", x, plain)
    for name in ("running_mean", "running_var"):
        assert_close(p[name], plain[name])  # of other tiles, so in another order of sums


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty(backend, shape):
    m = {k: t.requires_grad_() for k, t in modulation("gn", shape).items()}
    x = make_input(shape, requires_grad=True)
    with running(backend, launches=False):
        y = F.instance_norm(x, **m)
        grads = torch.autograd.grad(y.sum(), [x, *m.values()])
    assert y.shape == shape
    assert [g.shape for g in grads] == [x.shape, shape[:2], shape[:2]]
    assert all((g == 0).all() for g in grads)


WRONG = (
    (torch.zeros(3, 5), "needs one element for each sample and channel"),
    (torch.zeros(4), "needs one element for each sample and channel"),
    (torch.zeros(3, 4, dtype=torch.long), "has to be floating-point"),
)


@pytest.mark.parametrize(("wrong", "message"), WRONG)
@pytest.mark.parametrize("name", ["scale", "shift"])
def test_wrong_ones_of_channels(name, wrong, message):
    x, mean, var = torch.randn(3, 4, 5), torch.zeros(4), torch.ones(4)
    with pytest.raises(RuntimeError, match=f"got {name} of .*{message}"):
        F.batch_norm(x, mean, var, training=True, **{name: wrong})
    assert not mean.any() and (var == 1).all()
    with pytest.raises(RuntimeError, match=f"got {name} of .*{message}"):
        F.moment_norm(x, lambda mean, var, count: (1.0, mean, 0.0), **{name: wrong})


def test_wrong_ones_of_rows():
    x = torch.randn(3, 4, 5)
    for wrong in (torch.zeros(2, 1, 5), torch.zeros(4), torch.zeros(1, 3, 4, 5)):
        with pytest.raises(RuntimeError, match="which does not broadcast to the input's"):
            F.layer_norm(x, (5,), scale=wrong)
    with pytest.raises(RuntimeError, match="has to be floating-point"):
        F.rms_norm(x, (5,), shift=torch.zeros(5, dtype=torch.long))
    nested = torch.nested.nested_tensor([torch.randn(2, 5)], layout=torch.jagged)
    with pytest.raises(RuntimeError, match="no nested tensor"):
        F.layer_norm(nested, (5,), scale=torch.zeros(5))


def test_a_weight_of_samples_is_no_weight():
    """The functionals' own weight stays one of channels: (N, C) is an error, as it was."""
    with pytest.raises(RuntimeError, match="needs one element for each of the 4 channels"):
        F.group_norm(torch.randn(3, 4, 5), 2, torch.ones(3, 4))


MODULES = {
    "bn": lambda: fastnorm.BatchNorm2d(6),
    "in": lambda: fastnorm.InstanceNorm2d(6, affine=True),
    "gn": lambda: fastnorm.GroupNorm(3, 6),
    "bin": lambda: fastnorm.BatchInstanceNorm2d(6),
    "mean": lambda: fastnorm.MeanOnlyBatchNorm2d(6),
    "switchable": lambda: fastnorm.SwitchableNorm2d(6),
    "sync": lambda: fastnorm.SyncBatchNorm(6),
    "ln": lambda: fastnorm.LayerNorm(4),
    "rms": lambda: fastnorm.RMSNorm(4),
    "add_ln": lambda: fastnorm.AddLayerNorm(4),
    "add_rms": lambda: fastnorm.AddRMSNorm(4),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_modules(backend, name, training):
    module = MODULES[name]().double().train(training)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.1 * make_input(parameter.shape, seed=30 + i).abs())
    x, other = make_input((3, 6, 5, 4), requires_grad=True), make_input((3, 6, 5, 4), seed=2)
    rows = name in ("ln", "rms", "add_ln", "add_rms")
    scale, shift = (
        make_input((3, 1, 1, 4) if rows else (3, 6), seed=i, requires_grad=True) for i in (3, 4)
    )
    after = (scale, shift) if rows else (scale[:, :, None, None], shift[:, :, None, None])
    adds = (other,) if name.startswith("add") else ()
    with running("reference"):
        plain = MODULES[name]().double().train(training)
        plain.load_state_dict(module.state_dict())
        y = plain(x, *adds)
        y = (y[0] if adds else y) * (1 + after[0]) + after[1]
    truth = torch.autograd.grad(y.sin().sum(), [x, scale, shift, *plain.parameters()])
    with running(backend):
        found = module(x, *adds, scale=scale, shift=shift)
        found = found[0] if adds else found
        grads = torch.autograd.grad(found.sin().sum(), [x, scale, shift, *module.parameters()])
    assert_close(found, y.detach())
    for grad, true in zip(grads, truth, strict=True):
        assert_close(grad, true)


def test_an_instance_without_a_batch_dimension():
    norm = fastnorm.InstanceNorm2d(6)
    x, scale, shift = torch.randn(6, 5, 4), torch.randn(6), torch.randn(6)
    many = norm(x[None], scale=scale[None], shift=shift[None])
    assert torch.equal(norm(x, scale=scale, shift=shift), many[0])


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 7)])
def test_a_mask_beside_modulation(shape):
    norm = fastnorm.BatchNorm1d(4).double()
    x, (scale, shift) = make_input(shape), (make_input(shape[:2], seed=i) for i in (1, 2))
    mask = make_input(shape[:1] + shape[2:], seed=3) > -0.5
    y = norm(x, mask=mask, scale=scale, shift=shift)
    plain = norm(x, mask=mask)
    broad = (t.view(*shape[:2], *[1] * (len(shape) - 2)) for t in (scale, shift))
    factor, term = broad
    assert_close(y, (plain * (1 + factor) + term) * mask.unsqueeze(1))


@pytest.mark.parametrize("norm", ["bn_train", "in", "gn", "ln", "rms", "bin_train"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled(backend, norm):
    """torch.compile gives the values and gradients of the eager program."""
    shape = (3, 6, 5, 4)
    x = make_input(shape, dtype=torch.float32, requires_grad=True)
    p = make_params(norm, shape, dtype=torch.float32)
    m = modulation(norm, shape, dtype=torch.float32)
    m = {k: t.detach().requires_grad_() for k, t in m.items()}

    def step(x, scale, shift):
        return call(
            F, norm, x, {**p, **_statistics(p)}, activation="silu", scale=scale, shift=shift
        )

    torch.compiler.reset()  # else the cases before this one count as recompilations
    with running(backend, launches=False):
        program = torch.compile(step, backend="aot_eager", fullgraph=True)
        y = program(x, *m.values())
        grads = torch.autograd.grad(y.sin().sum(), [x, *m.values()])
        truth = step(x, *m.values())
        true_grads = torch.autograd.grad(truth.sin().sum(), [x, *m.values()])
    assert_close(y.detach(), truth.detach().double())
    for grad, true in zip(grads, true_grads, strict=True):
        assert_close(grad, true.double())
