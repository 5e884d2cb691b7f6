"""Weight and bias of each sample, (N, C), in every norm of channels, tier and layout: interpreted.

`compiled/test_sample_parameters.py` runs the same kernels as Triton compiles them.
"""

import contextlib
from typing import Any

import pytest
import torch

from fastnorm.contract import Inputs
from fastnorm.kernels import ENGINE, launch, tiers, tilings
from tests.conftest import DEVICE, assert_close, slow_unless
from tests.kernels import traffic
from tests.kernels.sample_parameters import (
    EVAL,
    NAMES,
    NORMS,
    Case,
    results,
    tensors_of,
    truth,
)
from tests.kernels.tilings import fresh_plans, interpreted, tiny_tilings

LAYOUTS = ("contiguous", "channels_last")
TIERS = ("one_program", "streaming")
CONSTANT = ("batch_eval", "mean_only_batch_eval")  # whose statistics are: no choice of a tier
LAUNCHES = {
    "one_program": ["resident_kernel", "resident_backward_kernel"],
    "streaming": [
        "moments_kernel", "apply_kernel", "gradient_sums_kernel", "apply_backward_kernel",
    ],
    None: ["apply_kernel", "gradient_sums_kernel", "apply_backward_kernel"],
}  # fmt: skip


def check(case: Case, tier: str | None = None) -> list[str]:
    """All results against the truth; returns the kernels that were launched."""
    tensors = tensors_of(case)
    exact = truth(case, tensors)
    with tiers.force(tier) if tier else contextlib.nullcontext(), launch.record() as launched:
        found = results(case, tensors)
    assert found.keys() == exact.keys()
    eps = torch.finfo(torch.float32 if case.dtype.itemsize < 4 else case.dtype).eps
    for name, value in exact.items():
        # Sums of parameters' gradients, that of rho of differences of nearly equal x_hat, cancel.
        slack = eps * tensors["x"].numel() if name in ("drho", "dweight", "dbias") else 0.0
        assert found[name].dtype == tensors[name.removeprefix("d") if name != "y" else "x"].dtype
        assert_close(found[name], value, name, slack)
    return launched


def tier_of(norm: str, tier: str) -> str | None:
    return None if norm in CONSTANT else tier


NORMS_AND_TIERS = [
    (norm, tier) for norm in NORMS for tier in TIERS if norm not in CONSTANT or tier == TIERS[0]
]
each_norm_and_tier = pytest.mark.parametrize(("norm", "tier"), NORMS_AND_TIERS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@interpreted
@each_layout
@each_norm_and_tier
def test_many_units_members_and_tiles(monkeypatch, norm, tier, layout):
    """Tiny tiles: sets in several programs, parts in several tiles, remainders of all."""
    monkeypatch.setattr(tilings, "STREAMING_TILE", 128 if layout == "channels_last" else 32)
    monkeypatch.setattr(tilings, "ENOUGH_PROGRAMS", 16)
    shape = (2, 18, 4, 5) if layout == "channels_last" else (2, 9, 4, 5)
    case = Case(norm, shape, layout, activation="relu", residual=True, groups=3)
    with tiny_tilings() as chosen:
        launched = check(case, tier_of(norm, tier))
    assert launched == LAUNCHES[tier_of(norm, tier)]
    if norm not in CONSTANT:
        assert {name for name, _ in chosen} == {tier}
        assert all(geometry.units > 1 for _, geometry in chosen)


@each_layout
@each_norm_and_tier
def test_large_tiles(norm, tier, layout):
    case = Case(norm, (3, 6, 3, 5), layout, activation="silu", residual=True, groups=2)
    assert check(case, tier_of(norm, tier)) == LAUNCHES[tier_of(norm, tier)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("norm", "tier"), [("batch", "one_program"), ("batch", "streaming"), ("group", "streaming"),
    ("batch_instance", "one_program"), ("batch_instance_eval", "streaming"),
    ("mean_only_batch", "streaming")],
)  # fmt: skip
def test_dtypes(norm, tier, dtype):
    """Parameters of x's dtype in one tier, of float32 in the other."""
    parameters = torch.float32 if tier == "streaming" else dtype
    check(Case(norm, (4, 6, 9), dtype=dtype, parameters=parameters, groups=3), tier)


def turns(values: Any) -> list[Any]:
    """Each norm and tier with each of the values, which have turns at not being slow."""
    return [
        pytest.param(norm, tier, value, marks=slow_unless(i % len(values) == j))
        for i, (norm, tier) in enumerate(NORMS_AND_TIERS)
        for j, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("norm", "tier", "fusion"),
    turns([(None, False), ("relu", False), ("gelu", False), (None, True), ("gelu", True)]),
)
def test_fusions(norm, tier, fusion):
    activation, residual = fusion
    case = Case(norm, (3, 6, 7), activation=activation, residual=residual, groups=2)
    check(case, tier_of(norm, tier))


@pytest.mark.parametrize(
    ("norm", "tier", "asked"),
    turns([("x",), ("weight",), ("bias",), ("rho",), ("x", "bias"), ("weight", "rho"), ("x", "rho"),
           ("residual",), ("residual", "weight")]),
)  # fmt: skip
def test_gradients_asked_in_part(norm, tier, asked):
    case = Case(norm, (3, 4, 6), residual=True, activation="relu", asked=asked, groups=2)
    if any(name in tensors_of(case) for name in asked):
        check(case, tier_of(norm, tier))


@pytest.mark.parametrize(("norm", "tier", "given"), turns([("weight",), ("bias",)]))
def test_weight_or_bias_alone(norm, tier, given):
    check(Case(norm, (3, 4, 6), given=given, groups=2), tier_of(norm, tier))


SIZES = {
    "one instance": (1, 6, 7, 5), "one channel": (5, 1, 7), "one position": (7, 4, 1, 1),
    "two dimensions": (9, 5), "three": (2, 3, 11), "five": (2, 4, 3, 2, 3),
    "a channel of more than a tile": (2, 3, 1031), "many instances": (14, 2, 3),
}  # fmt: skip


@interpreted
@pytest.mark.parametrize(("norm", "tier", "size"), turns(list(SIZES)))
def test_sizes(norm, tier, size):
    shape = SIZES[size]
    within = norm.removesuffix(EVAL) in ("instance", "batch_instance")
    if within and size in ("one position", "two dimensions"):
        pytest.skip("a set of one value has no deviation: torch raises")
    # Sets of at least 3 values: dx of two is what all but cancels.
    groups = 1 if shape[1] % 2 or size == "one position" else 2
    case = Case(norm, shape, "channels_last", groups=groups, activation="relu", residual=True)
    no_room = tier == "one_program" and size == "a channel of more than a tile"
    with tiny_tilings():
        check(case, None if no_room else tier_of(norm, tier))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 4, 0), (0, 4)], ids=str)
def test_empty(norm, shape):
    case = Case(norm, shape, groups=2)
    t = tensors_of(case)
    before = {name: t[name].clone() for name in ("running_mean", "running_var") if name in t}
    with launch.record() as launched:
        found = results(case, t)
    assert not launched
    for name in NAMES:
        if name in t:
            assert found[f"d{name}"].shape == t[name].shape
            assert not found[f"d{name}"].any()
    assert found["y"].shape == t["x"].shape
    assert all(torch.equal(found[name], value) for name, value in before.items())


@each_norm_and_tier
def test_expanded_parameters_of_channels(norm, tier):
    """One parameter for each channel and as many alike for each sample: the same y."""
    case = Case(norm, (3, 4, 6), groups=2)
    t = tensors_of(case)
    for name in ("weight", "bias"):
        t[name] = t[name][:1].expand(3, 4)
    with tiers.force(tier) if tier_of(norm, tier) else contextlib.nullcontext():
        of_samples = results(case, t)
        of_channels = results(case, t | {name: t[name][0].clone() for name in ("weight", "bias")})
    for name in ("y", "dx"):  # of other tiles where sets run over the batch
        assert_close(of_samples[name], of_channels[name])
    for name in ("dweight", "dbias"):
        assert of_samples[name].shape == (3, 4)
        assert_close(of_samples[name].sum(0), of_channels[name])


# Bytes that a pass moves, in sizes of x and, behind, of the mask: forward, backward.
FLOORS = {
    "one_program": ((3, 1), (4, 1)), "streaming": ((4, 1), (6, 2)), None: ((3, 1), (6, 2)),
}  # fmt: skip
TOLERANCE = 0.03  # for parameters and tables, as a share of the floor


def moved(case: Case, tier: str | None) -> tuple[traffic.Traffic, traffic.Traffic, torch.Tensor]:
    t, spec = tensors_of(case), case.spec
    t["weight"], t["bias"] = t["weight"].contiguous(), t["bias"].contiguous()
    inputs: Any = Inputs(**{name: t.get(name) for name in Inputs._fields})
    with tiers.force(tier) if tier else contextlib.nullcontext():
        with traffic.meter() as forward:
            _, mask, stats = ENGINE.norm(inputs, spec, True)
        needs = tuple(name in t for name in NAMES)
        with traffic.meter() as backward:
            inputs = inputs._replace(residual=None)
            ENGINE.norm_backward(t["dy"], inputs, mask, stats, needs, spec)
    return forward, backward, t["x"]


@pytest.mark.skipif(DEVICE != "cpu", reason="the meter reads the interpreter")
@each_layout
@each_norm_and_tier
def test_traffic(norm, tier, layout):
    """That of parameters of channels: x, dy and the like once, in two launches twice."""
    tier = tier_of(norm, tier)
    case = Case(
        norm, (4, 16, 64, 64), layout, torch.bfloat16, "relu", True, groups=4,
        parameters=torch.float32,
    )  # fmt: skip
    with fresh_plans():
        *passes, x = moved(case, tier)
    for found, (tensors, masks) in zip(passes, FLOORS[tier], strict=True):
        if norm.startswith("mean_only") and tier != "one_program" and found is passes[1]:
            tensors -= 1  # dx takes dy alone
        least = tensors * x.nbytes + masks * (x.numel() // 8)
        assert least <= found.total <= least * (1 + TOLERANCE), f"{found.total / least:.3f}"
        assert not found.moved_by_torch(x.numel() // 8)


def test_the_same_bits_again():
    case = Case("batch_instance", (5, 6, 7, 3), dtype=torch.float32)
    t = {name: value.clone() for name, value in tensors_of(case).items()}
    for tier in TIERS:
        with tiers.force(tier):
            once, twice = results(case, t), results(case, t)
        assert all(torch.equal(once[name], twice[name]) for name in once)


def test_parameters_here_are_not_contiguous():
    """A kernel that took them to be would read what lies between."""
    assert not tensors_of(Case("batch", (3, 4, 5)))["weight"].is_contiguous()
