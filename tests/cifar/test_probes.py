"""The quantities recorded while a model trains."""

import numpy as np
import pytest
import torch
from torch import nn

import fastnorm
from harness.batches import Normalise
from harness.datasets import Split
from harness.model import Architecture, build_model
from harness.probes import IMAGES, FeatureProbe, describe_rho, mixing, percentiles

CPU = torch.device("cpu")
PLAIN = Normalise((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU)


def test_percentiles_are_numpys() -> None:
    values = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = np.percentile(values.numpy().astype(np.float64), [1, 20, 80, 99])
    assert percentiles(values) == pytest.approx(expected.tolist(), rel=1e-5)
    assert percentiles(torch.tensor([1.0, float("nan")])) == [None] * 4
    values[0] = float("inf")
    assert percentiles(values)[-1] is None and percentiles(values)[0] is not None


@pytest.mark.parametrize("norm", ["none", "bn"])
def test_features_are_those_before_the_last_norm(norm: str) -> None:
    """By hand: everything up to the last convolution, then what the linear layer is given."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES + 3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    model = build_model(Architecture(norm, 1), "torch", 0).train()
    model(PLAIN(images[:8]))  # running statistics of something
    found = FeatureProbe(Split(images, torch.zeros(len(images))), PLAIN, CPU)(model)["features"]
    assert not model.training and not model.linear._forward_pre_hooks
    with torch.no_grad():
        x = model.norm(model.conv(PLAIN(images[:IMAGES])))
        last = model.blocks[-1]
        before = last.norm1(last.conv1(model.blocks[:-1](x)))
        last_conv = last.conv2(before)
        pooled = model.blocks(x).mean((2, 3))
    assert found["last_conv"] == pytest.approx(percentiles(last_conv), rel=1e-4)
    assert found["pooled"] == pytest.approx(percentiles(pooled), rel=1e-4)
    assert last_conv.min() < 0 <= pooled.min()  # neither is the other


def test_mixing() -> None:
    assert mixing(build_model(Architecture("gn", 1), "cpu", 0)) == {}
    model = build_model(Architecture("bin", 1), "cpu", 0)
    with torch.no_grad():
        model.norm.rho.copy_(torch.linspace(0, 1, 16))
    row = mixing(model)
    assert (row["rho_min"], row["rho_max"]) == (0, 1) and len(row["rho"]) == 9
    assert row["rho"]["norm"]["mean"] == pytest.approx(0.5)
    assert sum(row["rho"]["norm"]["histogram"]) == 16
    assert sum(row["rho_histogram"]) == sum(m.num_features for m in norms_of(model))
    switch = build_model(Architecture("sn", 1), "cpu", 0)
    with torch.no_grad():
        switch.norm.mean_weight.copy_(torch.tensor([0.0, 1.0, 2.0]))
    shares = mixing(switch)["switch"]
    assert len(shares) == 9 and shares["norm"]["var"] == pytest.approx([1 / 3] * 3)
    e = np.exp([0.0, 1.0, 2.0])
    assert shares["norm"]["mean"] == pytest.approx((e / e.sum()).tolist())


def norms_of(model: nn.Module) -> list[fastnorm.BatchInstanceNorm2d]:
    return [m for m in model.modules() if isinstance(m, fastnorm.BatchInstanceNorm2d)]


def test_rho_histogram_has_its_ends() -> None:
    counts = describe_rho(torch.tensor([0.0, 0.049, 0.051, 1.0]))["histogram"]
    assert (counts[0], counts[1], counts[-1], len(counts)) == (2, 1, 1, 20)
