"""The check before any timing: it passes right results and sees wrong ones."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.check import WrongResult, check
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.providers import eager, ours
from benchmarks.shapes import FUSIONS, OPS, Case

OF_IMAGES = tuple(op for op in OPS if op != "rms")  # of rows alone
SMALL = (
    *(Case(op, (2, 8, 5, 3), fused=fused) for op in OF_IMAGES for fused in FUSIONS),
    *(Case(op, (6, 16), fused=fused) for op in ("ln", "rms") for fused in FUSIONS),
)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_operator_passes_its_check(case: Case) -> None:
    check(case, partial(ours, case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OF_IMAGES)
def test_16_bit_images_with_channels_last_pass(op: str, dtype: torch.dtype) -> None:
    case = Case(op, (2, 8, 5, 3), dtype, "channels_last", "residual_relu")
    assert make_inputs(case).x.is_contiguous(memory_format=torch.channels_last)
    check(case, partial(ours, case))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_wrong_output_and_a_wrong_gradient_are_seen(case: Case) -> None:
    def wrong_output(i: Inputs) -> Tensor:
        return eager(case, i) + 1e-2

    def wrong_gradient(i: Inputs) -> Tensor:
        return eager(case, i) + 1e-2 * (i.x - i.x.detach())  # y is right, dx is off by 1e-2 dy

    with pytest.raises(WrongResult, match="y is off"):
        check(case, wrong_output)
    with pytest.raises(WrongResult, match="dx is off"):
        check(case, wrong_gradient)


def test_one_wrong_element_of_a_16_bit_result_is_seen() -> None:
    case = Case("bn", (16, 8, 32, 32), torch.bfloat16)

    def forgetful(i: Inputs) -> Tensor:
        y = eager(case, i)
        keep = torch.ones_like(y)
        keep.view(-1)[y.detach().abs().argmax()] = 0
        return y * keep

    with pytest.raises(WrongResult, match=r"y is off by .* \(largest\)"):
        check(case, forgetful)


def test_a_small_error_everywhere_is_seen() -> None:
    case = Case("bn", (16, 8, 32, 32), torch.bfloat16)
    with pytest.raises(WrongResult, match=r"y is off by .* \(euclidean\)"):
        check(case, lambda i: eager(case, i) + 0.1)


@pytest.mark.parametrize("op", ["bn", "bin"])
def test_running_statistics_left_alone_are_seen(op: str) -> None:
    case = Case(op, (2, 8, 5, 3))

    def forgetful(i: Inputs) -> Tensor:
        mean, var = i.running_mean.clone(), i.running_var.clone()
        return eager(case, i._replace(running_mean=mean, running_var=var))

    with pytest.raises(WrongResult, match="running_mean is off"):
        check(case, forgetful)


def test_nan_is_wrong() -> None:
    case = Case("bn", (2, 8, 5, 3))
    with pytest.raises(WrongResult, match="y is off by nan"):
        check(case, lambda i: eager(case, i) * float("nan"))


def test_rounding_at_the_kink_of_relu_is_not_an_error() -> None:
    """A norm that rounds its output before ReLU flips some signs; that alone must not fail."""
    case = Case("bn", (16, 8, 16, 16), torch.bfloat16, fused="relu")
    plain = replace(case, fused="plain")

    def moved(i: Inputs) -> Tensor:
        z = eager(plain, i)
        return torch.relu(z - torch.finfo(z.dtype).eps * z.detach().abs().max())

    check(case, moved)
