"""The moving average of the weights: --ema."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.batches import Normalise
from harness.files import read_rows
from harness.model import Architecture, build_model
from harness.optimizers import Average

CPU = torch.device("cpu")
NORMALISE = Normalise((0.0, 0.0, 0.0), (1 / 255,) * 3, CPU)


def test_it_is_the_recurrence() -> None:
    """In float64, with the decay of a short run at first; the model's own weights stay."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    average, expected = Average(model, 0.3), model.weight.detach().clone()
    for decay in (2 / 11, 3 / 12, 0.3, 0.3):  # (1 + t) / (10 + t) until it is more than 0.3
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        before = model.weight.detach().clone()
        average.update(model)
        expected = decay * expected + (1 - decay) * before
        torch.testing.assert_close(average.model.weight, expected)
        assert torch.equal(model.weight, before)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_running_statistics_are_those_of_its_own_features(backend: str) -> None:
    """Of a model whose weights changed: the first norm's are the moments of its convolution's."""
    model = build_model(Architecture("bn", depth_n=1), backend, seed=0)
    average = Average(model, 0.5)
    with torch.no_grad():
        average.model.conv.weight.mul_(3)
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8)
    average.estimate([NORMALISE(images)])
    features = average.model.conv(NORMALISE(images)).double()
    norm = average.model.norm
    torch.testing.assert_close(norm.running_mean.double(), features.mean((0, 2, 3)), rtol=1e-4,
                               atol=1e-3)  # fmt: skip
    torch.testing.assert_close(norm.running_var.double(), features.var((0, 2, 3)), rtol=1e-4,
                               atol=1e-3)  # fmt: skip
    assert norm.momentum == 0.1
    assert torch.equal(model.norm.running_mean, torch.zeros(16))


def test_its_statistics_are_of_images_as_in_training(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cropped out of their padding: of images as they are no row is of one value."""
    seen: list[torch.Tensor] = []

    def keep(self: Average, batches: Iterable[torch.Tensor]) -> None:
        seen.extend(batches)

    monkeypatch.setattr(Average, "estimate", keep)
    run("averaged", norm="bn", epochs=1, ema=0.9)
    top = torch.cat(seen)[:, :, 0]
    padded = (top == top[:, :, :1]).all(2).all(1).float().mean()
    assert 0.2 < padded < 0.7  # 4 of 9 crops


@pytest.mark.parametrize("norm", ["gn", "none"])
def test_without_running_statistics_nothing_is_computed(norm: str) -> None:
    average = Average(build_model(Architecture(norm, depth_n=1), "cpu", seed=0), 0.5)
    average.model.forward = lambda _: pytest.fail("has computed")
    average.estimate([torch.zeros(2, 3, 32, 32)])


@pytest.mark.parametrize("norm", ["bn", "wn"])
def test_a_run_keeps_and_evaluates_it(
    run: Callable[..., Path], norm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the weights, which train as they do without it."""
    plain, folder = (
        run(name, norm=norm, epochs=1, ema=ema)
        for name, ema in (("plain", None), ("averaged", 0.9))
    )
    assert read_rows(plain / "steps.jsonl") == read_rows(folder / "steps.jsonl")
    states = [torch.load(path / "checkpoint.pt", weights_only=True) for path in (plain, folder)]
    for name, values in states[0]["model"].items():
        assert torch.equal(values, states[1]["model"][name])
    assert states[0]["ema"] is None and states[1]["ema"]["updates"] == 3
    averaged = states[1]["ema"]["model"]
    assert not torch.equal(averaged["linear.weight"], states[1]["model"]["linear.weight"])
    results = json.loads((folder / "results.json").read_text())
    row = read_rows(folder / "metrics.jsonl")[-1]
    assert row["ema_val_accuracy"] == results["ema"]["val"]["accuracy"]
    printed = capsys.readouterr().out
    assert f"ema {row['ema_val_accuracy']:.4f}" in printed
    assert f"ema test   {results['ema']['test']['accuracy']:8.4f}" in printed
