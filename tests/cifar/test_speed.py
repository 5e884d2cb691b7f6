"""The measurements of speed.py; it does not measure twice."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from speed import SpeedConfig, compare, measure, providers

from harness.datasets import load_dataset
from harness.errors import UserError
from harness.files import read_rows

CPU = torch.device("cpu")


def test_who_is_measured() -> None:
    config = SpeedConfig(output=Path("x"), amp="bf16")
    four = ["fastnorm", "builtin", "fastnorm-compile", "builtin-compile"]
    assert list(providers(config, "bn")) == four
    assert list(providers(config, "bin")) == ["fastnorm", "fastnorm-compile"]
    assert list(providers(config, "none")) == ["builtin", "builtin-compile"]
    for name, run in providers(config, "gn").items():
        assert run.compile == name.endswith("compile") and run.amp == "bf16"
        assert (run.backend == "torch") == name.startswith("builtin")


def test_weight_norm_is_timed_at_the_rate_that_it_trains_at() -> None:
    """With 0.1 the loss is infinite before the first turn ends, and nothing is measured."""
    config = SpeedConfig(output=Path("x"))
    rates = {norm: providers(config, norm)["fastnorm"].lr for norm in ("wn", "bn")}
    assert rates == {"wn": 0.03, "bn": 0.1}


def test_rows(tiny_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of one second a turn, but two for torch's: 2 steps of 8 images."""
    dataset = load_dataset("cifar10", tiny_cifar, "tiny", 0.2)
    config = SpeedConfig(
        output=Path("x"), batch_size=8, steps=2, rounds=3, compile=False, depth_n=1
    )
    import speed

    real = speed.Contender.seconds

    def clocked(self: speed.Contender, steps: int) -> float:
        assert real(self, steps) > 0
        return 2.0 if self.training.config.backend == "torch" else 1.0

    monkeypatch.setattr(speed.Contender, "seconds", clocked)
    ours, torchs = measure(config, "in", dataset, CPU)
    assert (ours["images_per_second"], torchs["images_per_second"]) == (16, 8)
    assert (ours["ratio"], torchs["ratio"]) == (2, 1)
    assert ours["epoch_seconds"] == len(dataset.train) / 16
    assert ours["peak_mib"] is None and ours["dataset"] == "tiny"


def test_what_is_there_is_not_measured_again(
    tiny_cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "speed.jsonl"
    config = SpeedConfig(
        output=output, data_dir=tiny_cifar, batch_size=8, depth_n=1, steps=1, rounds=1,
        compile=False, norms=("gn",),
    )  # fmt: skip
    compare(config)
    assert [row["provider"] for row in read_rows(output)] == ["fastnorm", "builtin"]
    assert "1.00 x builtin" in capsys.readouterr().out.splitlines()[1]
    before = output.read_bytes()
    compare(config)
    assert (capsys.readouterr().out, output.read_bytes()) == ("", before)
    compare(dataclasses.replace(config, channels_last=True))
    assert len(read_rows(output)) == 4
    compare(dataclasses.replace(config, dataset_label="another data set"))
    assert len(read_rows(output)) == 6
    with pytest.raises(UserError, match="--batch-size is 999, of 44 images"):
        compare(dataclasses.replace(config, batch_size=999))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"steps": 0}, "--steps is 0; it must be at least 1"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"depth_n": 0}, "--depth-n is 0"),
        ({"dataset": "digits"}, "--data-dir is for CIFAR-10"),
        ({"cuda_graph": True, "device": "cpu"}, "--cuda-graph: there is no GPU here"),
    ],
)
def test_bad_flags(flags: dict[str, Any], message: str, tiny_cifar: Path, tmp_path: Path) -> None:
    output = tmp_path / "speed.jsonl"
    values = {"data_dir": tiny_cifar, "batch_size": 8, "depth_n": 1, "steps": 1, **flags}
    with pytest.raises(UserError, match=message):
        compare(SpeedConfig(output=output, compile=False, norms=("none",), **values))
    assert not output.exists()
