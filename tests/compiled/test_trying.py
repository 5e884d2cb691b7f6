"""What `trying.wrong` calls wrong: gradients that cancel may have their terms' roundings alone."""

import pytest
import torch

from tests.compiled.trying import wrong

Y = torch.ones(4, 1, 10, 10)
# A gradient's exact values, an error of roundings, and one that is more than those.
GRADIENTS = {
    "one sum of 400 terms that cancel": (torch.tensor([0.01]), 2e-5, 2e-4),
    "of a set of one value": (torch.full(Y.shape, 1e-14), 5e-5, 5e-4),
    "of large values": (torch.full(Y.shape, 2.0), 5e-6, 5e-5),
    "of a tiny set": (torch.full(Y.shape, 1e-4), 1e-8, 1e-6),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_roundings_are_right_and_more_is_wrong(name: str) -> None:
    exact, small, large = GRADIENTS[name]
    truth = {"y": Y.double(), "dx": exact.double()}
    assert not wrong({"y": Y, "dx": exact + small}, truth)
    (line,) = wrong({"y": Y, "dx": exact + large}, truth)
    assert line.startswith(f"dx: {exact.numel()} of {exact.numel()} elements wrong")


def test_outputs_that_cancel_have_no_such_room() -> None:
    y, off = torch.full((8,), 1e-6, dtype=torch.float64), torch.full((8,), 2e-6)
    assert wrong({"y": off}, {"y": y})
