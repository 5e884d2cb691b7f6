"""torch.nn's norm modules on the inputs and error inputs of torch's `module_db`."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

import fastnorm
from tests.conftest import DEVICE, OLD_TORCH, make_input
from tests.torch_cases.comparison import (
    BACKENDS,
    LAYOUTS,
    Three,
    assert_follows_torch,
    forward_and_backward,
    laid_out,
    marks,
    strides,
)
from tests.torch_cases.database import (
    DTYPES,
    MODULES,
    NOT_OURS,
    module_cases,
    module_db,
    module_error_cases,
)

CASES = [
    (name, i, case)
    for name in MODULES
    for i, case in enumerate(module_cases(name, torch.float32, True))
]


def identifier(name, i, case):
    return f"{name}-{case.description or i}"


def layouts(name, x):
    """Channels last is a format of whole batches of images and of volumes."""
    rank = {"1d": None, "2d": 4, "3d": 5}.get(name[-2:], 4)
    return [layout for layout in LAYOUTS if layout != "channels_last" or x.dim() == rank]


def modes(name):
    """Training and eval mode, but, as in torch's tests, one where they do not differ."""
    return (True, False) if MODULES[name].train_and_eval_differ else (True,)


SAMPLES = [
    pytest.param(
        backend, name, i, layout, dtype, training,
        id=f"{backend}-{identifier(name, i, case)}-{layout}-{dtype}-"
        + ("train" if training else "eval"),
        marks=marks(backend, case.input, layout, dtype),
    )
    for name, i, case in CASES
    for backend, layout in product(BACKENDS, layouts(name, case.input))
    for dtype, training in product(DTYPES, modes(name))
]  # fmt: skip
ERRORS = [
    pytest.param(name, i, id=f"{name}-{i}")
    for name in MODULES
    for i in range(len(module_error_cases(name, torch.float32)))
]


def build(namespace, name, case, **kwargs):
    """The module, by the constructor's arguments alone where there are no `kwargs`."""
    return getattr(namespace, name)(*case.args, **case.kwargs, device=DEVICE, **kwargs)


def randomised(module):
    """Parameters and statistics other than the initial ones and zeros, which would hide errors."""
    with torch.no_grad():
        for seed, (name, t) in enumerate(module.state_dict().items()):
            if name == "num_batches_tracked":
                t.fill_(3)
            else:
                drawn = make_input(t.shape, dtype=torch.float64, seed=seed) * 0.3 + 1.1
                t.copy_(drawn.abs() if name == "running_var" else drawn)
    return module


def results(module, x, backend=None):
    """y, the gradients of the input and of every parameter, and the buffers afterwards."""
    targets = {"input": x, **dict(module.named_parameters())}
    found = forward_and_backward(lambda: module(x), x, targets, backend)
    return found | {f"{name} afterwards": b.detach() for name, b in module.named_buffers()}


@pytest.mark.parametrize(("backend", "name", "i", "layout", "dtype", "training"), SAMPLES)
def test_sample(backend, name, i, layout, dtype, training):
    case = module_cases(name, DTYPES[dtype], training)[i]
    theirs = randomised(build(nn, name, case, dtype=DTYPES[dtype])).train(training)
    ours = build(fastnorm, name, case, dtype=DTYPES[dtype]).train(training)
    ours.load_state_dict(theirs.state_dict())
    x, wide = laid_out(case.input, layout), copy.deepcopy(theirs).double()
    x_wide = laid_out(case.input.detach().double().requires_grad_(), layout)
    three = Three(results(ours, x, backend), results(theirs, x), results(wide, x_wide))
    # torch's instance norm, and its group norm on a GPU, answer contiguously; ours keep the format.
    # Ours of rows answer contiguously, as torch's layer norm does and its RMS norm does not.
    form = x.contiguous() if name == "RMSNorm" else x
    other = layout == "channels_last" and name != "LayerNorm"
    assert_follows_torch(three, expected_strides=strides(form) if other else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "i"), [pytest.param(name, i, id=identifier(name, i, c)) for name, i, c in CASES]
)
def test_built_as_torchs(name, i, dtype):
    """From the same constructor input: repr, a checkpoint of equal names, order and values."""
    case = module_cases(name, DTYPES[dtype], True)[i]
    ours, theirs = (build(space, name, case, dtype=DTYPES[dtype]) for space in (fastnorm, nn))
    assert repr(ours) == repr(theirs)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected) and state._metadata == expected._metadata
    for key, value in expected.items():
        assert state[key].dtype == value.dtype and torch.equal(state[key], value), key
    randomised(theirs)
    ours.load_state_dict(theirs.state_dict())
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    build(nn, name, case, dtype=DTYPES[dtype]).load_state_dict(ours.state_dict())


def attempt(namespace, name, case, training):
    """The class of the exception that building and calling raise, where, and the buffers then."""
    where, module = "construction", None
    try:
        module = build(namespace, name, case.arguments).train(training)
        where = "forward"
        module(case.arguments.input)
    except Exception as error:
        return type(error), where, dict(module.named_buffers()) if module is not None else {}
    return None, "", {}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("name", "i"), ERRORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_error_input(backend, name, i, training):
    """The class that module_db names, for training, that torch raises and that we raise are one.

    And a call that raises has counted and written nothing.
    """
    case = module_error_cases(name, torch.float32)[i]
    theirs, where, _ = attempt(nn, name, case, training)
    assert (theirs, where) == (case.error, case.on) or not training
    with fastnorm.use_backend(backend):
        ours, our_where, buffers = attempt(fastnorm, name, case, training)
    if OLD_TORCH and not training and theirs is ValueError and ours is None:
        return  # torch 2.11 refuses an eps of 0 in evaluation too
    assert (ours, our_where) == (theirs, where)
    if buffers:
        assert buffers["num_batches_tracked"] == 0
        assert (buffers["running_mean"] == 0).all() and (buffers["running_var"] == 1).all()


def test_every_norm_of_module_db_has_its_place():
    """A norm that a later torch brings has to be run, or named as none of ours."""
    norms = {info.name for info in module_db if "Norm" in info.name}
    assert norms - NOT_OURS == {f"nn.{name}" for name in MODULES}
    assert all(hasattr(fastnorm, name) for name in MODULES)
