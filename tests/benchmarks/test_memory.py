"""What benchmarks.memory counts."""

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


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(memory, "SHAPE", SHAPE)
    assert memory.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n| bn | 1.0") == 2
    assert "4x8x16x16 torch.bfloat16" in printed
    assert memory.table(torch.float32)[0] == ["norm", "alone", "+ ReLU", "+ residual + ReLU"]
