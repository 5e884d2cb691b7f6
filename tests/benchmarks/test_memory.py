"""The counts of benchmarks.memory."""

import pytest
import torch

from benchmarks import memory
from benchmarks.providers import eager, ours
from benchmarks.shapes import Case

SHAPE = (4, 8, 16, 16)
BYTES = 4 * 4 * 8 * 16 * 16
STATISTICS = 2 * 8 * 8  # of float64: those of torch are smaller


@pytest.mark.parametrize(
    ("fused", "of_ours", "of_torch"),
    [("plain", 1.0, 1.0), ("relu", 1.0, 2.0), ("residual_relu", 1.0 + 1 / 32, 2.0)],
)
def test_tensors_of_x_and_bits(fused, of_ours, of_torch):
    """x, torch's output of ReLU, our bit for each element after a residual; statistics beside."""
    case = Case("bn", SHAPE, fused=fused)
    for forward, expected in ((ours, of_ours), (eager, of_torch)):
        kept = memory.kept_bytes(forward, case)
        assert 0 <= kept - expected * BYTES <= STATISTICS


# Of the ResNet with one block a stage, in elements for an image: the input; in each stage what
# enters norms and what leaves ReLU, which the next convolution keeps too. Two convolutions a block,
# one before the first, and a shortcut in the last two.
IMAGE, STAGES = 3 * 32 * 32, (6 * 16 * 32 * 32, 5 * 32 * 16 * 16, 5 * 64 * 8 * 8)
LAST = 64 * 8 * 8  # the output of the last ReLU, which no convolution reads
MASKS = 16 * 32 * 32 + 32 * 16 * 16 + 64 * 8 * 8  # bits: what leaves the blocks


@pytest.mark.parametrize("norm", memory.RESNET_NORMS)
def test_a_resnet_keeps_what_its_layers_read(norm):
    """By hand; ours keeps not the last output, but a bit for each element after a residual."""
    batch, whole = 8, IMAGE + sum(STAGES)
    expected = {"torch": 4 * whole, "auto": 4 * (whole - LAST) + MASKS // 8}
    for backend, of_an_image in expected.items():
        kept = memory.resnet_bytes(norm, backend, torch.float32, batch, depth_n=1)
        assert 0 <= kept - batch * of_an_image <= 0.01 * kept  # statistics


def test_autocast_halves_what_a_resnet_keeps():
    kept = [
        memory.resnet_bytes("bn", "auto", d, 8, depth_n=1) for d in (torch.bfloat16, torch.float32)
    ]
    assert 0.5 < kept[0] / kept[1] < 0.6  # the weights' copies beside


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(memory, "SHAPE", SHAPE)
    monkeypatch.setattr(memory, "BATCH", 2)
    assert memory.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n| bn | 1.0") == 2
    assert "4x8x16x16 torch.bfloat16" in printed
    assert printed.count("\n| ln | ") == 4
    assert memory.table(torch.float32)[0] == ["norm", "alone", "+ ReLU", "+ residual + ReLU"]
