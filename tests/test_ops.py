"""The registered operators: torch.library's own checks, fake tensors, what they write, what not."""

import pytest
import torch

import fastnorm
from fastnorm import ops
from fastnorm.kernels import launch
from tests.conftest import DEVICE, make_input
from tests.norms import EPS, groups_of

SHAPE = (4, 6, 5, 3)
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
    ("group", True),
]


@pytest.fixture(autouse=True)
def on_triton():
    with fastnorm.use_backend("triton"):
        yield


def arguments(norm, use_input_stats, activation, with_residual, layout, requires_grad):
    """What fastnorm::norm takes, statistics of a batch included where the norm knows them."""
    dtype, per_element = torch.float32, SHAPE[2:] if norm == "layer" else SHAPE[1:2]

    def leaf(shape, seed, layout="contiguous"):
        return make_input(shape, layout, dtype, seed=seed, requires_grad=requires_grad)

    tracked = norm not in ("layer", "group")
    return (
        leaf(SHAPE, 0, layout),
        leaf(SHAPE, 1, layout) if with_residual else None,
        leaf(per_element, 2),
        leaf(per_element, 3),
        leaf(SHAPE[1:2], 4) if norm == "batch_instance" else None,
        torch.zeros(SHAPE[1], device=DEVICE) if tracked else None,
        torch.ones(SHAPE[1], device=DEVICE) if tracked else None,
        norm,
        {"layer": 2, "group": groups_of(SHAPE[1])}.get(norm, 1),
        use_input_stats,
        0.1,
        EPS,
        activation,
    )


def named(norm, use_input_stats, name):
    """The operator, of which the one that writes is another."""
    updates = use_input_stats and norm not in ("layer", "group")
    return getattr(torch.ops.fastnorm, f"{name}_update" if updates else name)


@pytest.mark.parametrize(("activation", "with_residual", "layout"), FUSIONS)
@pytest.mark.parametrize(("norm", "use_input_stats"), CASES)
def test_opcheck_norm(norm, use_input_stats, activation, with_residual, layout):
    args = arguments(norm, use_input_stats, activation, with_residual, layout, True)
    with launch.record() as launched:
        torch.library.opcheck(named(norm, use_input_stats, "norm"), args)
    assert launched


@pytest.mark.parametrize(("activation", "with_residual", "layout"), FUSIONS)
@pytest.mark.parametrize(("norm", "use_input_stats"), CASES)
def test_opcheck_forward_and_backward(norm, use_input_stats, activation, with_residual, layout):
    args = arguments(norm, use_input_stats, activation, with_residual, layout, False)
    forward = named(norm, use_input_stats, "norm_forward")
    torch.library.opcheck(forward, (*args, True))
    y, mask, stats = forward(*args, True)
    side = {"mask": mask, "residual": args[1], None: None}
    kept = side[ops.side_input(activation, with_residual)]
    needs = [True, activation is not None and with_residual, True, True, args[4] is not None]
    tensors = (torch.randn_like(y), args[0], kept, *args[2:5], stats)
    rest = (needs, norm, args[8], use_input_stats, activation)
    torch.library.opcheck(torch.ops.fastnorm.norm_backward, (*tensors, *rest))


@pytest.mark.parametrize("empty", [(0, 6, 5, 3), (4, 6, 0, 3)])
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_shapes_without_elements(norm, empty):
    """What a fake tensor says of an empty one is what the kernels return."""
    args = arguments(norm, True, "relu", True, "contiguous", False)
    x = torch.empty(empty, device=DEVICE)
    weight = torch.ones(empty[2:] if norm == "layer" else empty[1:2], device=DEVICE)
    args = (x, x, weight, weight, *args[4:])
    torch.library.opcheck(named(norm, True, "norm_forward"), (*args, True))


def test_nothing_is_kept_that_nobody_asked_for():
    args = arguments("group", True, "relu", True, "contiguous", False)
    _, mask, _ = torch.ops.fastnorm.norm_forward(*args, False)
    assert mask.numel() == 0
    _, mask, _ = torch.ops.fastnorm.norm_forward(*args, True)
    assert mask.numel() > 0


def test_counters_are_the_calls_own(monkeypatch):
    """What a compiler warms up in a memory pool of its own leaves no counters there."""
    monkeypatch.setattr(launch, "_counters", {})
    args = arguments("instance", True, None, False, "contiguous", False)
    with launch.record() as launched:
        torch.ops.fastnorm.norm_update(*args)
    assert launched and not launch._counters
    fastnorm.functional.instance_norm(args[0], *args[5:7])
    assert launch._counters, "this norm uses no counters: the test says nothing"
