"""The modules as drop-ins for torch.nn's: repr, checkpoints, buffers, training in step."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

import fastnorm
import fastnorm.functional as F
from tests.conftest import BACKENDS, DEVICE, NO_BIAS, assert_close, make_input, running
from tests.modules.cases import SHAPES, C

# class name, arguments, rank of the spatial part
DIMENSIONAL = [
    (f"{kind}{d}d", (C,), d) for kind in ("BatchNorm", "InstanceNorm") for d in (1, 2, 3)
]
ROWS = [(name, ((C, 4, 3),), 2) for name in ("LayerNorm", "RMSNorm")]
CASES = [*DIMENSIONAL, *ROWS, ("GroupNorm", (2, C), 2)]
BIN = [(f"BatchInstanceNorm{d}d", (C,), d) for d in (1, 2, 3)]
KWARGS = {
    "BatchNorm": [{}, {"affine": False}, NO_BIAS, {"momentum": None, "eps": 1e-3},
                  {"track_running_stats": False}],
    "InstanceNorm": [{}, {"affine": True}, {"affine": True, **NO_BIAS},
                     {"track_running_stats": True, "momentum": 0.3}],
    "LayerNorm": [{}, {"elementwise_affine": False}, {"bias": False}, {"eps": 1e-3}],
    "RMSNorm": [{}, {"elementwise_affine": False}, {"eps": 1e-3}],
    "GroupNorm": [{}, {"affine": False}, NO_BIAS, {"eps": 1e-3}],
}  # fmt: skip
VARIANTS = [
    pytest.param(name, args, kwargs, d, id=f"{name}-{kwargs}")
    for name, args, d in CASES
    for kwargs in KWARGS[name.removesuffix(f"{d}d")]
]


def filled(module):
    """The module with random parameters."""
    for i, p in enumerate(module.parameters()):
        p.data.copy_(make_input(p.shape, seed=i) * 0.3 + 1)
    return module


def pair(name, args, dtype=torch.float64, **kwargs):
    """Our module and torch's with the same, random, parameters."""
    kwargs = {"device": DEVICE, "dtype": dtype, **kwargs}
    ours, theirs = getattr(fastnorm, name)(*args, **kwargs), getattr(nn, name)(*args, **kwargs)
    ours.load_state_dict(filled(theirs).state_dict())
    return ours, theirs


def bin_module(**kwargs):
    return fastnorm.BatchInstanceNorm2d(C, device=DEVICE, dtype=torch.float64, **kwargs)


@pytest.mark.parametrize(("name", "args", "kwargs", "d"), VARIANTS)
def test_drop_in(name, args, kwargs, d):
    """A subclass with torch's constructor, repr, parameters, buffers and checkpoint, both ways."""
    ours, theirs = pair(name, args, **kwargs)
    assert isinstance(ours, getattr(nn, name))
    assert repr(ours) == repr(theirs)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[k], expected[k]) for k in state)
    theirs.load_state_dict(state)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


ROWS = ("LayerNorm", "RMSNorm")


@pytest.mark.parametrize(("name", "args", "d"), [*CASES, *BIN])
def test_signature(name, args, d):
    """torch's arguments in torch's order, ours keyword-only; torch's initial values."""
    ours = inspect.signature(getattr(fastnorm, name)).parameters
    parent = name.replace("BatchInstance", "Batch")
    theirs = inspect.signature(getattr(nn, parent)).parameters
    extras = {"activation": None} | ({"zero_centered": False} if name in ROWS else {})
    if "bias" in ours and "bias" not in theirs:  # an older torch
        extras["bias"] = True
    assert [n for n in ours if n not in extras] == list(theirs)
    for key, parameter in theirs.items():
        assert (ours[key].default, ours[key].kind) == (parameter.default, parameter.kind), key
    for key, default in extras.items():
        assert ours[key].kind is inspect.Parameter.KEYWORD_ONLY
        assert ours[key].default is default
    module = getattr(fastnorm, name)(*args)
    if getattr(module, "weight", None) is not None:
        assert (module.weight == 1).all() and (name == "RMSNorm" or (module.bias == 0).all())


@pytest.mark.parametrize(("name", "args", "d"), [*CASES, *BIN])
def test_repr_shows_the_activation(name, args, d):
    cls = getattr(fastnorm, name)
    assert "activation" not in repr(cls(*args))
    assert "relu" in repr(cls(*args, activation="relu")) and name in repr(cls(*args))


@pytest.mark.parametrize(("name", "args", "kwargs", "d"), VARIANTS)
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_training_in_step(backend, name, args, kwargs, d):
    """Three SGD steps beside torch's module, then evaluation: same outputs, parameters, buffers."""
    ours, theirs = pair(name, args, **kwargs)
    parameters = [list(m.parameters()) for m in (ours, theirs)]
    optimizers = [torch.optim.SGD(p, lr=0.05, momentum=0.9) for p in parameters if p]
    for step in range(3):
        x = make_input(SHAPES[d], seed=step, mean=step)
        with running(backend):
            y = ours(x)
            if y.requires_grad:
                (y**3).mean().backward()
        expected = theirs(x)
        assert_close(y, expected, f"step {step}", slack=1e-13 * expected.abs().max().item())
        if expected.requires_grad:
            (expected**3).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for (key, mine), exact in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert_close(mine, exact, key, slack=1e-13)
    x = make_input(SHAPES[d], seed=9)
    with running(backend):
        y = ours.eval()(x)
    assert_close(y, theirs.eval()(x), "evaluation", slack=1e-13)


@pytest.mark.parametrize(("name", "args", "d"), [*CASES, *BIN])
@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_and_residual(backend, name, args, d):
    """module(x, residual) is act(norm(x) + residual); the activation is the module's."""
    kwargs = {"device": DEVICE, "dtype": torch.float64}
    plain = getattr(fastnorm, name)(*args, **kwargs)
    fused = getattr(fastnorm, name)(*args, **kwargs, activation="relu")
    x, residual = make_input(SHAPES[d]), make_input(SHAPES[d], seed=7)
    with running("cpu"):
        before = plain(x)
    with running(backend):
        assert_close(fused(x), before.clamp(min=0))
        assert_close(fused(x, residual), (before + residual).clamp(min=0))
        assert_close(plain(x, residual=residual), before + residual)


@pytest.mark.parametrize(("name", "args", "d"), [*CASES, *BIN])
def test_unknown_activation_is_refused_at_construction(name, args, d):
    with pytest.raises(ValueError, match=f"{name} got activation='swoosh'"):
        getattr(fastnorm, name)(*args, activation="swoosh")


@pytest.mark.parametrize(("name", "args", "d"), [c for c in DIMENSIONAL if "Instance" in c[0]])
@pytest.mark.parametrize("kwargs", [{}, {"affine": True, "track_running_stats": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_unbatched_instance_norm(backend, name, args, d, kwargs):
    """(C, ...) without the batch, with a residual of the same shape, in training and evaluation."""
    ours, theirs = pair(name, args, **kwargs)
    x, residual = make_input(SHAPES[d][1:]), make_input(SHAPES[d][1:], seed=7)
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        with running(backend):
            y = ours(x)
            assert y.shape == x.shape
            assert_close(y, theirs(x))
            y = ours(x, residual)
        assert_close(y, theirs(x) + residual)
    for key, exact in theirs.state_dict().items():
        assert_close(ours.state_dict()[key], exact, key)


def test_rank_2_batch_norm():
    """BatchNorm1d takes (N, C) too."""
    ours, theirs = pair("BatchNorm1d", (C,))
    x = make_input((6, C))
    assert_close(ours(x), theirs(x))
    assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(("name", "d"), [("BatchNorm2d", 2), ("BatchInstanceNorm2d", 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_num_batches_tracked_in_place(backend, name, d, momentum):
    """Counted in place (a CUDA graph keeps the address), in training only."""
    module = getattr(fastnorm, name)(C, momentum=momentum, device=DEVICE)
    buffers = {k: v.data_ptr() for k, v in module.named_buffers()}
    x = make_input(SHAPES[d], dtype=torch.float32)
    with running(backend):
        module(x), module(x), module.eval()(x)
    assert module.num_batches_tracked.item() == 2
    assert {k: v.data_ptr() for k, v in module.named_buffers()} == buffers
    if momentum is None:  # the cumulative average of one and the same batch is that batch's mean
        assert_close(module.running_mean, x.double().mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_size_batch(backend, momentum):
    """An empty batch keeps the statistics and counts, as torch's module does."""
    ours, theirs = pair("BatchNorm2d", (C,), momentum=momentum)
    first, empty = make_input((3, C, 2, 2)), make_input((0, C, 2, 2), requires_grad=True)
    with running(backend):
        ours(first)
    theirs(first)
    with running(backend, launches=False):
        y = ours(empty)
    assert y.shape == theirs(empty).shape
    y.sum().backward()
    assert (ours.weight.grad == 0).all() and empty.grad.shape == empty.shape
    for key, exact in theirs.state_dict().items():
        assert_close(ours.state_dict()[key], exact, key)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize(("name", "args", "d"), [*CASES, *BIN])
def test_copies(name, args, d, how):
    """A copy after training steps gives the same output and shares no tensor with the original."""
    module = getattr(fastnorm, name)(*args, device=DEVICE, dtype=torch.float64, activation="silu")
    x = make_input(SHAPES[d], requires_grad=True)
    module(x).sum().backward()
    twin = copy.deepcopy(module) if how == "deepcopy" else pickle.loads(pickle.dumps(module))
    assert type(twin) is type(module) and repr(twin) == repr(module)
    assert torch.equal(twin.eval()(x), module.eval()(x))
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.add_(1)
    for key, tensor in module.state_dict().items():
        assert not torch.equal(tensor, twin.state_dict()[key]) or key == "rho"
    if "BatchInstance" in name:
        twin.rho.data.fill_(0.25)
        assert (module.rho == 1).all()


@pytest.mark.parametrize("kwargs", [{}, {"affine": False}, NO_BIAS, {"momentum": None},
                                    {"track_running_stats": False}], ids=str)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_instance_norm_equals_functional(backend, training, kwargs):
    """The module hands its parameters, buffers, momentum and mode over."""
    module = bin_module(**kwargs).train(training)
    module.rho.data.copy_(torch.tensor([0.0, 0.2, 0.7, 1.0]))
    theirs = nn.BatchNorm2d(
        C, device=DEVICE, dtype=torch.float64, **{**kwargs, "affine": False}
    ).train(training)
    x = make_input(SHAPES[2], mean=1.0)
    mix = module.rho.detach().view(1, C, 1, 1)
    expected = mix * theirs(x) + (1 - mix) * nn.functional.instance_norm(x)
    with running(backend):
        y = module(x)
    assert_close(y, expected)
    if module.running_mean is not None:
        assert_close(module.running_mean, theirs.running_mean)
        assert_close(module.running_var, theirs.running_var)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_batch_instance_norm_is_no_batch_norm(d):
    """What torch looks for when it replaces, folds or synchronises batch norms."""
    module = getattr(fastnorm, f"BatchInstanceNorm{d}d")(C)
    assert not isinstance(module, nn.modules.batchnorm._BatchNorm)
    assert isinstance(module, nn.modules.batchnorm._NormBase)
    theirs = getattr(nn, f"BatchNorm{d}d")(C)
    mine, exact = repr(module), repr(theirs)
    assert mine.removeprefix("BatchInstanceNorm") == exact.removeprefix("BatchNorm")
    for rank in range(1, 7):
        x = torch.zeros((2,) * rank)
        refusals = []
        for each in (module, theirs):
            try:
                each._check_input_dim(x)
                refusals.append(None)
            except ValueError as error:
                refusals.append(str(error))
        assert refusals[0] == refusals[1], rank


def test_functional_and_module_agree_on_defaults():
    x = make_input(SHAPES[2])
    assert torch.equal(fastnorm.InstanceNorm2d(C)(x), F.instance_norm(x))
    assert torch.equal(fastnorm.GroupNorm(2, C, affine=False)(x), F.group_norm(x, 2))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_of_a_sum(backend, name):
    """torch.nn's parameters, repr aside the name, and checkpoints, both ways."""
    theirs = filled(getattr(nn, name)(5, device=DEVICE, dtype=torch.float64))
    ours = getattr(fastnorm, f"Add{name}")(5, device=DEVICE, dtype=torch.float64)
    assert isinstance(ours, type(theirs)) and repr(ours) == f"Add{theirs!r}"
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x, residual = (make_input((3, 4, 5), seed=s) for s in (0, 7))
    with running(backend):
        y, total = ours(x, residual)
    assert_close(y, theirs(x + residual))
    assert_close(total, x + residual)
