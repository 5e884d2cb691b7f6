"""The registered operators: torch.library's own checks, fake tensors, and writes."""

import contextlib

import pytest
import torch

import fastnorm
from fastnorm.contract import side_input
from fastnorm.kernels import launch
from fastnorm.kernels.cpu import calls
from tests.conftest import DEVICE, assert_close, make_input, slow_unless
from tests.norms import EPS, groups_of

SHAPE = (2, 6, 5, 3)
ROWS = ("layer", "rms")
FUSIONS = [
    (None, False, "contiguous"),
    ("relu", True, "contiguous"),
    ("gelu", True, "channels_last"),
]
CASES = [
    ("batch", True),
    ("batch", False),
    ("instance", True),
    ("batch_instance", True),
    ("batch_instance", False),
    ("layer", True),
    ("rms", True),
    ("group", True),
]
# Every fusion of one norm of channels, which writes statistics, and of one of rows; one that keeps
# something for the backward of each other norm. The rest of the combinations are slow.
EVERY_FUSION = (("batch", True), ("layer", True))


def is_quick(i, case, fusion):
    return case in EVERY_FUSION or fusion == FUSIONS[1 + i % 2]


COMBINATIONS = [
    pytest.param(*case, *fusion, marks=slow_unless(is_quick(i, case, fusion)))
    for i, case in enumerate(CASES)
    for fusion in FUSIONS
]
each_combination = pytest.mark.parametrize(
    ("norm", "use_input_stats", "activation", "with_residual", "layout"), COMBINATIONS
)


@pytest.fixture(params=["triton", "cpu"], autouse=True)
def engine(request):
    """Each test runs with either; the operators take it whatever the backend is."""
    if request.param == "cpu" and DEVICE != "cpu":
        pytest.skip("the engine in C has CPU tensors alone")
    with fastnorm.use_backend("reference"):
        yield request.param


@contextlib.contextmanager
def launching(engine):
    """The engine computes something inside, and the other nothing."""
    with launch.record() as launched, calls.record() as called:
        yield
    assert (bool(launched), bool(called)) == (engine == "triton", engine == "cpu")


def arguments(norm, use_input_stats, activation, with_residual, layout, requires_grad):
    """What fastnorm::norm takes, statistics of a batch included where the norm knows them."""
    dtype, per_element = torch.float32, SHAPE[2:] if norm in ROWS else SHAPE[1:2]

    def leaf(shape, seed, layout="contiguous"):
        return make_input(shape, layout, dtype, seed=seed, requires_grad=requires_grad)

    tracked = norm not in (*ROWS, "group")
    return (
        leaf(SHAPE, 0, layout),
        leaf(SHAPE, 1, layout) if with_residual else None,
        leaf(per_element, 2),
        leaf(per_element, 3) if norm != "rms" else None,
        leaf(SHAPE[1:2], 4) if norm == "batch_instance" else None,
        torch.zeros(SHAPE[1], device=DEVICE) if tracked else None,
        torch.ones(SHAPE[1], device=DEVICE) if tracked else None,
        norm,
        {"layer": 2, "rms": 2, "group": groups_of(SHAPE[1])}.get(norm, 1),
        use_input_stats,
        0.1,
        EPS,
        activation,
    )


def named(norm, use_input_stats, name):
    """The operator, of which the one that writes is another."""
    updates = use_input_stats and norm not in (*ROWS, "group")
    return getattr(torch.ops.fastnorm, f"{name}_update" if updates else name)


@each_combination
def test_opcheck_norm(engine, norm, use_input_stats, activation, with_residual, layout):
    args = arguments(norm, use_input_stats, activation, with_residual, layout, True)
    with launching(engine):
        torch.library.opcheck(named(norm, use_input_stats, "norm"), (*args, engine))


@each_combination
def test_opcheck_forward_and_backward(
    engine, norm, use_input_stats, activation, with_residual, layout
):
    args = arguments(norm, use_input_stats, activation, with_residual, layout, False)
    forward = named(norm, use_input_stats, "norm_forward")
    torch.library.opcheck(forward, (*args, True, engine))
    y, mask, stats = forward(*args, True, engine)
    side = {"mask": mask, "residual": args[1], None: None}
    kept = side[side_input(activation, with_residual)]
    has_bias, has_rho = (args[i] is not None for i in (3, 4))
    needs = [True, activation is not None and with_residual, True, has_bias, has_rho]
    tensors = (torch.randn_like(y), args[0], kept, *args[2:5], stats)
    rest = (needs, norm, args[8], use_input_stats, activation, engine)
    torch.library.opcheck(torch.ops.fastnorm.norm_backward, (*tensors, *rest))


@pytest.mark.parametrize("empty", [(0, 6, 5, 3), (2, 6, 0, 3)])
@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "group"])
def test_shapes_without_elements(engine, norm, empty):
    """A fake tensor says of an empty one what the engines return."""
    args = arguments(norm, True, "relu", True, "contiguous", False)
    x = torch.empty(empty, device=DEVICE)
    weight = torch.ones(empty[2:] if norm in ROWS else empty[1:2], device=DEVICE)
    args = (x, x, weight, None if norm == "rms" else weight, *args[4:])
    torch.library.opcheck(named(norm, True, "norm_forward"), (*args, True, engine))


@pytest.mark.parametrize("shape", [SHAPE, (0, 6, 5, 3), (2, 6, 0, 3)])
@pytest.mark.parametrize("norm", ROWS)
def test_opcheck_add_norm(engine, norm, shape):
    x, residual, dy, dsum = (make_input(shape, dtype=torch.float32, seed=s) for s in range(4))
    weight, bias = (make_input(shape[2:], dtype=torch.float32, seed=s) for s in (4, 5))
    tensors = (x, residual, weight, bias if norm == "layer" else None)
    leaves = [t if t is None else t.clone().requires_grad_() for t in tensors]
    numbers = (norm, 2, EPS, engine)
    torch.library.opcheck(torch.ops.fastnorm.add_norm, (*leaves, *numbers))
    torch.library.opcheck(torch.ops.fastnorm.add_norm_forward, (*tensors, *numbers))
    _, total, stats = torch.ops.fastnorm.add_norm_forward(*tensors, *numbers)
    for needs in ([True, True, norm == "layer"], [False, True, False]):
        kept = (dy, dsum if needs[0] else None, total, *tensors[2:], stats, needs, norm, 2, engine)
        torch.library.opcheck(torch.ops.fastnorm.add_norm_backward, kept)


def test_nothing_is_kept_that_nobody_asked_for(engine):
    args = arguments("group", True, "relu", True, "contiguous", False)
    _, mask, _ = torch.ops.fastnorm.norm_forward(*args, False, engine)
    assert mask.numel() == 0
    _, mask, _ = torch.ops.fastnorm.norm_forward(*args, True, engine)
    assert mask.numel() > 0


def test_counters_are_the_calls_own(engine, monkeypatch):
    """What a compiler warms up in a memory pool of its own leaves no counters there."""
    if engine == "cpu":
        pytest.skip("only the kernels have counters")
    monkeypatch.setattr(launch, "_counters", {})
    args = arguments("instance", True, None, False, "contiguous", False)
    with launching(engine):
        torch.ops.fastnorm.norm_update(*args, engine)
    assert not launch._counters
    with fastnorm.use_backend("triton"):
        fastnorm.functional.instance_norm(args[0], *args[5:7])
    assert launch._counters, "this norm uses no counters: the test says nothing"


def test_rms_norm_with_a_bias(engine):
    """Which rows that are shifted have, in every form of a call."""
    x = make_input(SHAPE, requires_grad=True)
    bias = make_input(SHAPE[2:], seed=1, requires_grad=True)
    args = list(arguments("rms", True, None, False, "contiguous", False))
    numbers = (*args[4:], engine)
    calls = {
        "norm": lambda x, bias: torch.ops.fastnorm.norm(x, None, None, bias, *numbers),
        "add_norm": lambda x, bias: torch.ops.fastnorm.add_norm(
            x, torch.zeros_like(x), None, bias, "rms", 2, EPS, engine
        )[0],
    }
    y = torch.nn.functional.rms_norm(x, SHAPE[2:], eps=EPS) + bias
    truth = torch.autograd.grad(y.sin().sum(), [x, bias])
    for name, call in calls.items():
        with launching(engine):
            found = call(x, bias)
            grads = torch.autograd.grad(found.sin().sum(), [x, bias])
        assert_close(found, y.detach(), name)
        for grad, true in zip(grads, truth, strict=True):
            assert_close(grad, true, name)
        x1, bias1 = x.detach()[None], bias.detach()
        assert_close(torch.vmap(call, (0, None))(x1, bias1)[0], y.detach(), name)
        assert_close(torch.vmap(call)(x1, bias1[None])[0], y.detach(), name)
