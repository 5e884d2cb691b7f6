"""torch.func's transforms against torch's own norms in float64, and which of ours ran."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastnorm
import fastnorm.functional as F
from fastnorm.kernels import launch
from tests.conftest import BACKENDS, assert_close, make_input, running
from tests.norms import GRADS, NORMS, OF_ROWS, STATS, Torch, call, make_params

SHAPE = (4, 6, 5)
B = 3
FUSED = {"activation": "silu"}


def tensors_of(norm, batched=()):
    """x, weight, bias and rho (where the norm has one), those in `batched` B times."""
    params = make_params(norm, SHAPE)
    params = {k: v for k, v in params.items() if k in GRADS and v is not None}
    shapes = {"x": SHAPE, **{name: tuple(p.shape) for name, p in params.items()}}
    return {
        name: make_input((B, *shape) if name in batched else shape, seed=seed) * 0.3 + 0.8
        for seed, (name, shape) in enumerate(shapes.items())
    }


def loss_of(functional, norm):
    """A scalar function of tensors_of's, statistics constants where the norm has them."""
    constants = make_params(norm, SHAPE)
    stats = {k: constants[k] for k in STATS}
    if norm in ("bn_train", "bin_train", "mean_train"):  # batched inputs may not write: see below
        stats = dict.fromkeys(stats)

    names = list(tensors_of(norm))[1:]

    def loss(x, *parameters):
        given = dict(zip(names, parameters, strict=True))
        p = {**dict.fromkeys(GRADS), **given, **stats}
        return call(functional, norm, x, p, **FUSED).square().mean()

    return loss


def compare(ours, truth, what=""):
    ours, truth = (torch.utils._pytree.tree_leaves(t) for t in (ours, truth))
    for i, (a, b) in enumerate(zip(ours, truth, strict=True)):
        # several chained passes: an order of magnitude of rounding above one
        assert_close(a, b, f"{what} {i}", slack=1e-12 * b.abs().max().item())


def everything(f, count):
    return grad(f, argnums=tuple(range(count)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_grad(backend, norm):
    tensors = tensors_of(norm).values()
    truth = everything(loss_of(Torch, norm), len(tensors))(*tensors)
    with running(backend) as launched:
        compare(everything(loss_of(F, norm), len(tensors))(*tensors), truth)
    if backend == "triton":
        assert any("backward" in name or "sums" in name for name in launched)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_and_per_sample_gradients(backend, norm):
    """The inputs, the parameters or both batched."""
    names = list(tensors_of(norm))
    for batched in (["x"], names[1:], names):
        tensors = tensors_of(norm, batched)
        dims = tuple(0 if name in batched else None for name in tensors)
        ours, torchs = loss_of(F, norm), loss_of(Torch, norm)
        truth = vmap(torchs, dims)(*tensors.values())
        grads = vmap(everything(torchs, len(names)), dims)(*tensors.values())
        # rows with parameters of each its own is the formula's: see fastnorm.batching
        with running(backend, launches=norm not in OF_ROWS or batched == ["x"]):
            compare(vmap(ours, dims)(*tensors.values()), truth, f"{batched}")
            found = vmap(everything(ours, len(names)), dims)(*tensors.values())
            compare(found, grads, f"gradients of {batched}")


@pytest.mark.parametrize("norm", ["bn_eval", "in", "ln", "rms"])
def test_vmap_over_other_dimensions(norm):
    """The batch may lie anywhere, the output's too."""
    tensors = tensors_of(norm, ("x",))
    p = {**make_params(norm, SHAPE), "weight": tensors["weight"], "bias": tensors.get("bias")}
    x = tensors["x"].movedim(0, 2)
    truth = torch.stack([call(Torch, norm, image, p) for image in tensors["x"]], 1)
    with running("triton"):
        ours = vmap(lambda x: call(F, norm, x, p), 2, 1)(x)
    assert_close(ours, truth)


@pytest.mark.parametrize("norm", ["bn_train", "bin_train", "ln", "rms", "gn"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nested_vmap_and_grad_of_vmap(backend, norm):
    tensors = tensors_of(norm, ("x",))
    x = torch.stack([tensors.pop("x"), make_input((B, *SHAPE), seed=9)])
    rest = tuple(tensors.values())

    def total(f):
        def of(*rest):
            inner = vmap(f, (0, *[None] * len(rest)))
            return vmap(inner, (0, *[None] * len(rest)))(x, *rest).sum()

        return everything(of, len(rest))(*rest)

    truth = total(loss_of(Torch, norm))
    with running(backend):
        compare(total(loss_of(F, norm)), truth)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend, norm):
    tensors = tuple(tensors_of(norm).values())

    def penalty(f):
        def of(*args):
            return sum(g.square().sum() for g in everything(f, len(args))(*args))

        return everything(of, len(tensors))(*tensors)

    ours, torchs = loss_of(F, norm), loss_of(Torch, norm)
    truth = penalty(torchs)
    with running(backend):
        compare(penalty(ours), truth, "gradient of a gradient")
    if norm in ("bn_train", "ln"):
        exact = hessian(torchs, argnums=1)(*tensors)
        with fastnorm.use_backend(backend):
            compare(hessian(ours, argnums=1)(*tensors), exact, "hessian")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode(backend, norm):
    tensors = tuple(tensors_of(norm).values())
    tangents = tuple(make_input(t.shape, seed=20 + i) for i, t in enumerate(tensors))
    ours, torchs = loss_of(F, norm), loss_of(Torch, norm)
    with fastnorm.use_backend(backend):
        compare(jvp(ours, tensors, tangents), jvp(torchs, tensors, tangents), "jvp")
        compare(jacfwd(ours)(*tensors), jacrev(torchs)(*tensors), "jacfwd")
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, v) for t, v in zip(tensors, tangents, strict=True)]
            _, tangent = forward_ad.unpack_dual(ours(*duals))
    compare(tangent, jvp(torchs, tensors, tangents)[1], "dual numbers")


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode_leaves_no_tangent_in_running_statistics(backend):
    x, mean, var = make_input(SHAPE), *(torch.zeros(6, dtype=torch.float64) for _ in range(2))
    expected = [t.to(x.device) for t in (mean.clone(), var.clone())]
    mean, var = mean.to(x.device), var.to(x.device)
    torch.nn.functional.batch_norm(x, *expected, training=True)
    with fastnorm.use_backend(backend), forward_ad.dual_level():
        F.batch_norm(forward_ad.make_dual(x, x), mean, var, training=True)
        assert forward_ad.unpack_dual(mean).tangent is None
    assert_close(mean, expected[0])
    assert_close(var, expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_pullback_outlives_its_transform(backend):
    """vjp's function is called when the transform that made it has ended."""
    x, weight, bias = tensors_of("gn").values()
    with running(backend):
        y, pull_back = vjp(lambda x: F.group_norm(x, 2, weight, bias), x)
        with torch.no_grad():
            (dx,) = pull_back(torch.ones_like(y))
        (again,) = vmap(pull_back)(torch.ones_like(y).expand(2, *y.shape).clone())
    _, exact = vjp(lambda x: torch.nn.functional.group_norm(x, 2, weight, bias), x)
    assert_close(dx, exact(torch.ones_like(y))[0], slack=1e-12)
    assert_close(again[1], exact(torch.ones_like(y))[0], slack=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batched_cotangents(backend):
    """is_grads_batched runs an ordinary graph's backward under vmap."""
    x, weight, bias = (t.requires_grad_() for t in tensors_of("bn_train").values())
    dys = make_input((B, *SHAPE), seed=30)

    def jacobian(functional):
        y = functional.batch_norm(x, None, None, weight, bias, True, activation="relu")
        return torch.autograd.grad(y, [x, weight, bias], dys, is_grads_batched=True)

    with running(backend):
        compare(jacobian(F), jacobian(Torch))


def test_functional_call_runs_the_kernels():
    module = fastnorm.BatchInstanceNorm2d(6, activation="relu").double()
    x = make_input((4, 6, 3, 3))
    module.to(x.device)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    weight = state["weight"] * 2
    with running("triton"):
        y = functional_call(module, {**state, "weight": weight, "rho": state["rho"] * 1.5}, (x,))
    plain = torch.nn.functional.batch_norm(x, None, None, weight, training=True).relu()
    assert_close(y, plain)  # rho beyond 1 is taken as 1
    assert state["running_mean"].abs().max() > 0, "the buffers that were given are updated"
    assert module.running_mean.abs().max() == 0, "the module's own are not"


@pytest.mark.parametrize("norm", ["bn_train", "in_tracked", "bin_train"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_under_vmap(backend, norm):
    """Batched ones are updated, each by its inputs; a batch of inputs for one buffer is refused."""
    xs = make_input((B, *SHAPE))
    mean, var = (torch.zeros(B, 6, dtype=xs.dtype, device=xs.device) for _ in range(2))
    rho = torch.full((6,), 0.5, dtype=xs.dtype, device=xs.device)

    def of(functional, x, mean, var):
        if norm == "in_tracked":
            return functional.instance_norm(x, mean, var)
        if norm == "bin_train":
            return functional.batch_instance_norm(x, mean, var, rho, training=True)
        return functional.batch_norm(x, mean, var, training=True)

    expected = [torch.zeros_like(mean), torch.zeros_like(var)]
    for i in range(B):
        of(Torch, xs[i], expected[0][i], expected[1][i])
    with running(backend):
        vmap(lambda *args: of(F, *args))(xs, mean, var)
    assert_close(mean, expected[0], "running mean")
    assert_close(var, expected[1], "running variance")
    one = mean[0].clone()
    before = one.clone()
    with running(backend, launches=False), pytest.raises(RuntimeError):
        vmap(lambda x: of(F, x, one, one))(xs)
    assert torch.equal(one, before)


def test_transforms_use_the_kernels():
    """Forward and backward of grad, and one launch, not B, for a batch."""
    x, weight, bias = tensors_of("bn_train", ("x",)).values()
    with fastnorm.use_backend("triton"), launch.record() as launched:
        vmap(lambda x: F.batch_norm(x, None, None, weight, bias, True))(x)
    assert len(launched) == 1
