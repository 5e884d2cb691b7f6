"""Ordinary calls go straight to autograd: which calls are ordinary; the rest does not change."""

import contextlib

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import fastnorm.functional as F
from fastnorm import plain
from tests.conftest import DEVICE, make_input, running

BACKEND = "triton" if DEVICE == "cuda" else "cpu"
PARAMETERS = {"weight": torch.ones(4, device=DEVICE), "bias": torch.zeros(4, device=DEVICE)}
STATISTICS = torch.zeros(4, device=DEVICE), torch.ones(4, device=DEVICE)


@pytest.fixture(autouse=True)
def ready():
    """The engine has computed a call of each dtype."""
    with running(BACKEND):
        for dtype in (torch.float32, torch.float64, torch.float16):
            F.layer_norm(make_input((2, 4), dtype=dtype), (4,))
        yield


def route_of(x):
    return plain.plain_route(x, None, (4,), ())


class Nothing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Special(torch.Tensor):
    pass


def test_an_ordinary_tensor():
    x = make_input((2, 4))
    route = route_of(x)
    assert route is not None and route_of(torch.nn.Parameter(x)) is route
    assert route_of(x.int()) is None
    assert route_of(x.as_subclass(Special)) is None
    assert route_of(x.to("meta")) is None
    assert route_of(torch.nested.nested_tensor([x[0], x[1, :2]])) is None


@pytest.mark.parametrize(
    "special",
    [
        Nothing,
        forward_ad.dual_level,
        lambda: torch.autocast(DEVICE, torch.bfloat16),
        lambda: running("reference", launches=False),
    ],
    ids=["mode", "forward-mode", "autocast", "reference"],
)
def test_not_inside_of(special):
    x = make_input((2, 4))
    with contextlib.ExitStack() as stack:
        stack.enter_context(special())
        assert route_of(x) is None
    assert route_of(x) is not None


def test_not_while_tracing_or_transforming():
    x, found = make_input((2, 4)), []

    def f(x):
        found.append(route_of(x))
        return x.sum()

    torch.func.grad(f)(x)
    torch.vmap(f)(x)
    torch.jit.trace(f, x, check_trace=False)
    assert found == [None] * 3


WRONG = {
    "one value": lambda x: F.batch_norm(x[:1], None, None, training=True),
    "rank": lambda x: F.batch_norm(x[0], None, None, training=True),
    "weight's shape": lambda x: F.batch_norm(x, *STATISTICS, weight=torch.ones(5, device=DEVICE)),
    "weight's dtype": lambda x: F.layer_norm(x, (4,), torch.ones(4, device=DEVICE).int()),
    "weight's device": lambda x: F.layer_norm(x, (4,), torch.ones(4, device="meta")),
    "mean alone": lambda x: F.batch_norm(x, STATISTICS[0], None, training=True),
    "no statistics": lambda x: F.batch_norm(x, None, None),
    "eps": lambda x: F.batch_norm(x, *STATISTICS, training=True, eps=0.0),
    "momentum": lambda x: F.batch_norm(x, *STATISTICS, training=True, momentum="a"),
    "activation": lambda x: F.group_norm(x, 2, activation="tanh"),
    "residual's shape": lambda x: F.group_norm(x, 2, residual=x[:1]),
    "residual's dtype": lambda x: F.group_norm(x, 2, residual=x.half()),
    "groups": lambda x: F.group_norm(x, 3),
    "no groups": lambda x: F.group_norm(x, 0),
    "instance": lambda x: F.instance_norm(x),
    "mixture": lambda x: F.batch_instance_norm(x, *STATISTICS, torch.ones(4), training=True),
    "no mean": lambda x: F.mean_only_batch_norm(x, None),
    "normalized_shape": lambda x: F.layer_norm(x, (5,)),
    "no dimensions": lambda x: F.rms_norm(x, ()),
    "too many": lambda x: F.rms_norm(x, (2, 2, 4)),
    "input's dtype": lambda x: F.layer_norm(x.int(), (4,)),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_refused_alike(call, monkeypatch):
    """With the error of a call that asks everything."""
    x = make_input((2, 4))
    messages = []
    for known in (plain.READY, {}):
        monkeypatch.setattr(plain, "READY", known)
        with pytest.raises(Exception) as caught:
            call(x)
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]


RIGHT = {
    "empty": lambda x: F.layer_norm(x[:0], (4,), **PARAMETERS),
    "one value": lambda x: F.batch_norm(x[:1], *STATISTICS),
    "momentum": lambda x: F.batch_norm(
        x, *(t.clone() for t in STATISTICS), training=True, momentum=1
    ),
    "half a weight": lambda x: F.layer_norm(x, (4,), PARAMETERS["weight"].half()),
    "strided": lambda x: F.group_norm(x.t()[:, :2].t(), 2, **PARAMETERS),
    "autocast's dtype": lambda x: F.layer_norm(x.half(), (4,), **PARAMETERS),
    "all": lambda x: F.batch_norm(x, *STATISTICS, **PARAMETERS, residual=x, activation="relu"),
}


@pytest.mark.parametrize("call", RIGHT.values(), ids=RIGHT)
def test_computed_alike(call, monkeypatch):
    """To the bit."""
    x = make_input((2, 4))
    found = call(x)
    monkeypatch.setattr(plain, "READY", {})
    assert torch.equal(found, call(x))
