"""State: copies, checkpoints, devices, parametrizations and hooks, beside torch.nn's modules."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastnorm
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running

C = 4
SHAPES = {1: (3, C, 5), 2: (3, C, 4, 3), 3: (2, C, 3, 2, 2)}
KINDS = ("BatchNorm", "InstanceNorm", "BatchInstanceNorm")
# name: (positional arguments, rank of the spatial part)
ARGUMENTS = {
    **{f"{kind}{d}d": ((C, 1e-5, 0.1, True, True), d) for kind in KINDS for d in (1, 2, 3)},
    "SyncBatchNorm": ((C,), 2),
    "LayerNorm": (((C, 4, 3),), 2),
    "RMSNorm": (((C, 4, 3),), 2),
    "GroupNorm": ((2, C), 2),
}
MODULES = tuple(ARGUMENTS)
TWINS = tuple(name for name in MODULES if not name.startswith("BatchInstance"))  # torch.nn's too
TWINS_2D = ("BatchNorm2d", "InstanceNorm2d", "LayerNorm", "RMSNorm", "GroupNorm")
BIN = tuple(name for name in MODULES if name.startswith("BatchInstance"))


def make(name, package=fastnorm, **kwargs):
    kwargs = {"device": DEVICE, "dtype": torch.float64} | kwargs
    return getattr(package, name)(*ARGUMENTS[name][0], **kwargs)


def shape_of(name):
    return SHAPES[ARGUMENTS[name][1]]


def randomised(module):
    """The module with parameters and floating-point buffers that no constructor would make."""
    for i, tensor in enumerate(module.state_dict().values()):
        if tensor.is_floating_point():
            tensor.copy_(make_input(tensor.shape, seed=i).abs().clamp(max=4) / 8 + 0.25)
        else:
            tensor.fill_(5)
    return module


def assert_same_state(module, expected):
    state = module.state_dict()
    assert list(state) == list(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key


class Affine(nn.Module):
    """A parametrization that is neither the identity nor linear in its argument."""

    def forward(self, x):
        return 2 * torch.tanh(x)


class Gate(nn.Module):
    """The one that keeps rho in [0, 1] by itself."""

    def forward(self, x):
        return torch.sigmoid(x)


# --- copies and checkpoints ---


@pytest.mark.parametrize("name", MODULES)
def test_a_saved_module_comes_back(name):
    """torch.save of the module and of its state_dict, the latter read with weights_only."""
    module = randomised(make(name, activation="silu"))
    whole, state = io.BytesIO(), io.BytesIO()
    torch.save(module, whole), torch.save(module.state_dict(), state)
    whole.seek(0), state.seek(0)
    twin = torch.load(whole, weights_only=False)
    assert type(twin) is type(module) and repr(twin) == repr(module)
    assert_same_state(twin, module.state_dict())
    other = make(name, activation="silu")
    other.load_state_dict(torch.load(state, weights_only=True))
    assert_same_state(other, module.state_dict())
    x = make_input(shape_of(name))
    assert torch.equal(twin.eval()(x), module.eval()(x))


def test_deepcopy_of_a_sync_batch_norm():
    module = randomised(fastnorm.SyncBatchNorm(C, activation="relu", device=DEVICE))
    twin = copy.deepcopy(module)
    assert twin.activation == "relu" and twin.process_group is None
    assert_same_state(twin, module.state_dict())
    assert twin.running_mean is not module.running_mean


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("assign", [False, True])
def test_checkpoints_are_torchs_in_both_directions(name, assign):
    """Strictly, nested in a model, with the buffers of either loaded into the other."""
    ours, theirs = (nn.Sequential(nn.Identity(), make(name, package)) for package in (fastnorm, nn))
    state = randomised(theirs).state_dict()
    ours.load_state_dict(state, assign=assign)
    assert_same_state(ours, state)
    back = nn.Sequential(nn.Identity(), make(name, nn))
    back.load_state_dict(ours.state_dict(), assign=assign)
    assert_same_state(back, state)


@pytest.mark.parametrize("name", BIN)
def test_batch_instance_norm_reads_a_batch_norm(name):
    """A batch norm's checkpoint lacks rho alone; so does what it leaves unread."""
    theirs = randomised(make(name.replace("BatchInstance", "Batch"), nn))
    ours = make(name)
    found = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert found.missing_keys == ["rho"] and not found.unexpected_keys
    with pytest.raises(RuntimeError, match="rho"):
        ours.load_state_dict(theirs.state_dict())
    found = theirs.load_state_dict(randomised(ours).state_dict(), strict=False)
    assert found.unexpected_keys == ["rho"] and not found.missing_keys


def test_checkpoints_without_a_count_of_batches():
    """Version 1 of torch's format, from before num_batches_tracked."""
    for name in ("BatchNorm2d", "BatchInstanceNorm2d", "InstanceNorm2d", "SyncBatchNorm"):
        module = randomised(make(name))
        state = module.state_dict()
        del state["num_batches_tracked"]
        state._metadata[""]["version"] = 1
        module.load_state_dict(state)
        assert module.num_batches_tracked == 5


# --- dtypes and devices ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_to_a_dtype(name, dtype):
    """Parameters and statistics follow, the count of batches stays an integer."""
    module = randomised(make(name, dtype=torch.float32, activation="relu")).to(dtype)
    for key, tensor in module.state_dict().items():
        wanted = torch.int64 if key == "num_batches_tracked" else dtype
        assert tensor.dtype == wanted, key
    y = module(make_input(shape_of(name), dtype=dtype))
    assert y.dtype == dtype and (y >= 0).all()


@pytest.mark.parametrize("how", ["argument", "context", "to"])
@pytest.mark.parametrize("name", MODULES)
def test_meta_device(name, how):
    """Built or moved there, made real by to_empty and reset_parameters: as if built here."""
    if how == "context":
        with torch.device("meta"):
            module = make(name, device=None)
    else:
        module = make(name, device="meta") if how == "argument" else make(name).to("meta")
    assert {t.device.type for t in module.state_dict().values()} == {"meta"}
    module.to_empty(device=DEVICE)
    for tensor in (*module.parameters(), *module.buffers()):  # what empty memory may hold
        tensor.data.fill_(-3)
    module.reset_parameters()
    assert_same_state(module, make(name).state_dict())


@pytest.mark.parametrize("name", MODULES)
def test_skip_init(name):
    module = nn.utils.skip_init(
        getattr(fastnorm, name), *ARGUMENTS[name][0], dtype=torch.float64, device=DEVICE
    )
    state = randomised(make(name)).state_dict()
    module.load_state_dict(state)
    assert_same_state(module, state)


@pytest.mark.parametrize("name", MODULES)
def test_a_checkpoint_assigned_to_a_meta_module(name):
    state = randomised(make(name)).state_dict()
    module = make(name, device="meta")
    module.load_state_dict(state, assign=True)
    assert_same_state(module, state)
    assert module(make_input(shape_of(name))).isfinite().all()


# --- parametrizations ---

PARAMETRIZATIONS = {
    "own": lambda m: parametrize.register_parametrization(m, "weight", Affine()),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight"),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight", dim=0),
}


@pytest.mark.parametrize("how", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", TWINS_2D)
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_parametrized_weight(backend, name, how):
    """Output, the gradient of what the weight is made from, and the checkpoint are torch's."""
    ours, theirs = make(name), randomised(make(name, nn))
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(0)  # spectral_norm starts its power iteration from random vectors
    PARAMETRIZATIONS[how](ours)
    torch.manual_seed(0)
    PARAMETRIZATIONS[how](theirs)
    x = make_input(shape_of(name))
    with running(backend):
        y = ours(x)
        y.pow(3).mean().backward()
    expected = theirs(x)
    expected.pow(3).mean().backward()
    assert_close(y, expected)
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    for (key, mine), (_, exact) in pairs:
        assert mine.grad is not None
        assert_close(mine.grad, exact.grad, key, slack=1e-12)
    theirs.load_state_dict(ours.state_dict())
    parametrize.remove_parametrizations(ours, "weight")
    with running(backend):
        assert_close(ours(x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parametrized_rho(backend):
    """The parametrization's value is rho; its original trains freely, outside [0, 1] too."""
    module = make("BatchInstanceNorm2d")
    parametrize.register_parametrization(module, "rho", Gate())
    original = module.parametrizations.rho.original
    original.data.copy_(torch.tensor([-3.0, -0.5, 0.5, 3.0]))
    before = original.detach().clone()
    plain = make("BatchInstanceNorm2d")
    plain.rho.data.copy_(before.sigmoid())
    x = make_input(SHAPES[2])
    with running(backend):
        y, expected = module(x), plain(x)
        y.pow(3).mean().backward(), expected.pow(3).mean().backward()
    assert torch.equal(y, expected)
    slope = before.sigmoid() * (1 - before.sigmoid())
    assert_close(original.grad, plain.rho.grad * slope)
    assert "parametrizations.rho.original" in module.state_dict()
    assert torch.equal(original, before), "what the parametrization is made from was clamped"
    other = make("BatchInstanceNorm2d")
    parametrize.register_parametrization(other, "rho", Gate())
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.rho, module.rho)


def test_a_state_dict_does_not_run_rhos_parametrization():
    """A spectral norm would take a step of its power iteration at each."""
    calls = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x

    module = make("BatchInstanceNorm2d")
    parametrize.register_parametrization(module, "rho", Counted())
    calls.clear()
    module.state_dict()
    assert not calls


# --- rho that is not the module's parameter ---

OUTSIDE = [-2.0, 0.25, 0.75, 3.0]


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_functional_call_projects_rho_without_writing_to_it(backend, requires_grad):
    module, x = make("BatchInstanceNorm2d"), make_input(SHAPES[2])
    given = torch.tensor(OUTSIDE, dtype=torch.float64, device=DEVICE, requires_grad=requires_grad)
    expected = make("BatchInstanceNorm2d")
    expected.rho.data.copy_(given.detach().clamp(0, 1))
    with running(backend):
        y = torch.func.functional_call(module, {"rho": given}, (x,))
        assert torch.equal(y, expected(x))
    assert given.tolist() == OUTSIDE and (module.rho == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_computed_rho_is_not_frozen_outside(backend):
    """FSDP's views are such: their gradient is the one that the clamped parameter has."""
    module, x = make("BatchInstanceNorm2d"), make_input(SHAPES[2])
    raw = torch.tensor(OUTSIDE, dtype=torch.float64, device=DEVICE, requires_grad=True)
    with running(backend):
        y = torch.func.functional_call(module, {"rho": raw * 1}, (x,))
        y.pow(3).mean().backward()
        module.rho.data.copy_(raw.detach())
        module(x).pow(3).mean().backward()
    assert torch.equal(raw.grad, module.rho.grad) and (raw.grad != 0).all()


def test_rho_in_functional_transforms():
    """In evaluation: a transform refuses to update running statistics, torch's as well as ours."""
    module, x = make("BatchInstanceNorm2d").eval(), make_input(SHAPES[2])
    values = dict(module.named_parameters())

    def loss(values):
        return torch.func.functional_call(module, values, (x,)).pow(3).mean()

    with running("reference"):
        found = torch.func.grad(loss)({k: v.detach() for k, v in values.items()})
        loss(values).backward()
    for key, parameter in values.items():
        assert_close(found[key], parameter.grad, key)


# --- hooks ---


def observed(module, x, residual):
    """What every kind of hook is handed in one forward and backward, as text and tensors."""
    seen = []

    def note(what):
        def hook(module, *arguments):
            tensors = [t for a in arguments for t in (a if isinstance(a, tuple) else (a,))]
            seen.extend((what, t) for t in tensors if torch.is_tensor(t))

        return hook

    module.register_forward_pre_hook(note("forward pre"))
    module.register_forward_hook(note("forward"))
    module.register_full_backward_pre_hook(note("backward pre"))
    module.register_full_backward_hook(note("backward"))
    x = x.clone().requires_grad_()
    arguments = (x,) if residual is None else (x, residual.clone().requires_grad_())
    module(*arguments).pow(3).mean().backward()
    return [*seen, *(("gradient", a.grad) for a in arguments)]


class WithResidual(nn.Module):
    """relu(norm(x) + residual) by torch's modules, for the hooks of a call with two inputs."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, residual):
        return torch.relu(self.norm(x) + residual)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", TWINS_2D)
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_hooks_see_what_torchs_do(backend, name, fused):
    x = make_input(shape_of(name))
    residual = make_input(shape_of(name), seed=7) if fused else None
    ours = make(name, activation="relu" if fused else None)
    theirs = WithResidual(make(name, nn)) if fused else make(name, nn)
    expected = observed(theirs, x, residual)
    with running(backend):
        found = observed(ours, x, residual)
    assert [what for what, _ in found] == [what for what, _ in expected]
    assert {what for what, _ in found} >= {"forward pre", "forward", "backward pre", "backward"}
    for (what, mine), (_, exact) in zip(found, expected, strict=True):
        assert_close(mine, exact, what, slack=1e-12)


def test_a_forward_hook_may_replace_input_and_output():
    module = make("BatchInstanceNorm2d")
    x = make_input(SHAPES[2])
    expected = module(x * 2) + 1
    module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    module.register_forward_hook(lambda module, args, y: y + 1)
    assert_close(module(x), expected)


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_hooks(name):
    """They run once each, on saving after rho was projected, and may add to what is saved."""
    module, calls = make(name), []
    if name in BIN:
        module._parameters["rho"].data.fill_(3.0)

    def after(module, state, prefix, metadata):
        assert "rho" not in state or (state["rho"] == 1).all()
        state["extra"] = torch.zeros(1)

    module.register_state_dict_pre_hook(lambda *args: calls.append("before"))
    module.register_state_dict_post_hook(after)
    module.register_load_state_dict_pre_hook(lambda *args: calls.append("load"))
    module.register_load_state_dict_post_hook(lambda *args: calls.append("loaded"))
    state = module.state_dict()
    assert state.pop("extra").numel() == 1
    module.load_state_dict(state)
    assert calls == ["before", "load", "loaded"]


# --- torch's surgery ---


@pytest.mark.parametrize("name", BIN)
def test_batch_instance_norm_is_no_batch_norm(name):
    """What torch looks for when it replaces, folds or synchronises batch norms."""
    module, d = make(name), name[-2:]
    assert not isinstance(module, nn.modules.batchnorm._BatchNorm)
    assert isinstance(module, nn.modules.batchnorm._NormBase)
    theirs = make(f"BatchNorm{d}", nn)
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
