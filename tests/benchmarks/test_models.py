"""The benchmark of whole models: its arithmetic, its check, and its command on a toy."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastnorm
from benchmarks import model_zoo, models
from benchmarks.check import WrongResult
from benchmarks.model_zoo import Entry
from benchmarks.rows import read

DONE = models.Conversion(1, 0, 1, "traced")


def toy():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
    return nn.Sequential(*layers), (torch.randn(4, 3, 8, 8),)


TOY = Entry("toy", None, "batch", toy)
ABSENT = Entry("absent", "no_such_package", "group", toy)
BROKEN = Entry("broken", None, "layer", lambda: 1 / 0)


@pytest.fixture(autouse=True)
def small_zoo(monkeypatch):
    monkeypatch.setattr(models, "ZOO", (TOY, ABSENT, BROKEN))


def result(ours, entry=TOY, mode="eager"):
    """Of pairs in which the untouched model took 1 ms."""
    ms = {"torch": [1.0] * len(ours), "fastnorm": ours}
    return models.summarise(entry, mode, DONE, ms, {"torch": 100, "fastnorm": 50})


def test_ratios_are_taken_pair_by_pair():
    ms = {"torch": [2.0, 4.0, 30.0, 40.0], "fastnorm": [1.0, 20.0, 15.0, 20.0]}
    found = models.summarise(TOY, "eager", DONE, ms, {"torch": 1, "fastnorm": 1})
    assert found.ratio.p50 == 0.5 and found.ms["torch"].p50 == 17.0


def test_verdicts():
    """Never slower; noisy where the interval of the median spans 1."""
    found = {(0.9, 0.9): "pass", (1.1, 1.1): "MISS", (0.9, 1.1): "noisy"}
    for ours, verdict in found.items():
        assert result(list(ours)).verdict == verdict
        assert verdict in models.table_line(result(list(ours)))


def test_the_mean_is_of_batch_group_and_instance_norm():
    others = Entry("rows", None, "layer", toy)
    lines = models.means(
        [result([0.5, 0.5]), result([2.0, 2.0]), result([9.0, 9.0], others),
         result([0.3, 0.3], mode="compile")]
    )  # fmt: skip
    assert [line.split(":")[0] for line in lines] == ["eager", "compile"]
    assert "of 2 models" in lines[0] and lines[0].endswith("1.000 (goal 0.90)")
    assert lines[1].endswith("0.300")


def test_a_model_is_checked_before_it_is_timed(monkeypatch):
    """Ours with another eps, then ours without the activation: never timed."""
    torch.manual_seed(0)
    model, example = toy()
    mine, done = models.convert(TOY, model, example)
    assert (done.converted, done.fused, done.fusing) == (1, 1, "traced")
    before = {name: b.clone() for name, b in mine.named_buffers()}
    models.check(model, mine, example, "eager")
    assert all(torch.equal(b, before[name]) for name, b in mine.named_buffers())
    (norm,) = (m for m in mine.modules() if isinstance(m, fastnorm.BatchNorm2d))
    norm.eps = 1e-3
    with pytest.raises(WrongResult, match="output off by"):
        models.check(model, mine, example, "eager")
    norm.eps, norm.momentum = 1e-5, 0.2
    with pytest.raises(WrongResult, match="statistics off by"):
        models.check(model, mine, example, "eager")
    monkeypatch.setattr(models, "Trainee", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(models, "convert", lambda *_: (nn.Sequential(*model[:2], model[3]), DONE))
    with pytest.raises(WrongResult, match="off by"):
        models.measure(TOY, "eager", 2)


def test_a_step_trains_and_counts(monkeypatch):
    """SGD moves the weights against the gradient; the input and the norm's input are kept."""
    torch.manual_seed(0)
    model, example = toy()
    monkeypatch.setattr(models, "RATE", 0.1)
    trainee = models.Trainee(model, example, "eager")
    first = trainee.forward().item()
    assert trainee.seconds() > 0 and trainee.forward().item() < first
    images, inside = example[0].numel(), 4 * 8 * 6 * 6
    after = 4 * 4 * 4 * 4  # the output, which the loss squares
    statistics = 2 * 8
    assert trainee.kept() == 4 * (images + 2 * inside + after + statistics)


def test_command(capsys, tmp_path: Path):
    """Skips what is not installed, goes on after what fails, and says so with its exit code."""
    out = tmp_path / "rows.jsonl"
    assert models.main(["--rounds", "2", "--modes", "eager", "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "skipped: absent, for no_such_package is not installed" in printed
    assert "FAILED broken eager: ZeroDivisionError" in printed
    theirs, mine, broken = read(out)
    assert [row["provider"] for row in (theirs, mine)] == ["torch", "fastnorm"]
    assert theirs["ratio_p50"] == 1.0 and mine["ms_p50"] > 0
    assert mine["converted"] == mine["fused"] == 1 and mine["error"] is None
    assert broken["model"] == "broken" and "division" in broken["error"]
    assert models.main(["--rounds", "2", "--modes", "eager", "--models", "toy"]) == 0


@pytest.mark.parametrize(
    "words", [["--rounds", "1"], ["--threads", "0"], ["--models", "none-such"], ["--out", "no/x"]]
)
def test_arguments(words):
    with pytest.raises(SystemExit):
        models.main(words)


def test_nnunet_is_its_architecture():
    """Shapes, and two norms a stage; all fuse with the leaky ReLU that follows."""
    torch.manual_seed(0)
    model = model_zoo.PlainUNet((4, 8, 16))
    example = (torch.randn(2, 1, 8, 8, 8),)
    assert model(*example).shape == (2, 3, 8, 8, 8)
    mine, done = models.convert(TOY, model, example)
    assert (done.converted, done.fused, done.kept) == (10, 10, 0)
    models.check(model, mine, example, "eager")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x, shift, *args):
        return nn.functional.silu(self.norm(x)) + shift


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x, x.mean() if x.sum() > 0 else x.amax())
        return x


def test_a_model_that_cannot_be_traced_is_fused_by_its_parts():
    torch.manual_seed(0)
    model, example = Untraceable(), (torch.randn(2, 4, 3, 3),)
    mine, done = models.convert(TOY, model, example)
    assert done.fused == 0 and "control flow" in done.fusing
    entry = Entry("parts", None, "group", toy, parts="Block")
    mine, done = models.convert(entry, model, example)
    assert (done.converted, done.fused, done.fusing) == (2, 2, "each Block traced")
    activations = [m.activation for m in mine.modules() if isinstance(m, fastnorm.GroupNorm)]
    assert activations == ["silu", "silu"]
    models.check(model, mine, example, "eager")


def test_the_zoo_is_found_without_its_packages():
    """No library is imported before a model of it is built."""
    assert [entry.name for entry in model_zoo.ZOO] == [
        "ResNet-50", "nnU-Net", "U-Net", "ConvNeXt-T", "ViT-S", "Llama",
    ]  # fmt: skip
    for entry in model_zoo.ZOO:
        if entry.package and not entry.installed:
            assert entry.package not in sys.modules
