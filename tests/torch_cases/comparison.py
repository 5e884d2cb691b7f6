"""One call of a norm and of its backward, and the comparison of its results with torch's."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.conftest import assert_close, make_input, running

BACKENDS = ("triton", "cpu")
LAYOUTS = ("contiguous", "channels_last", "noncontiguous")
Results = dict[str, Tensor]


class Three(NamedTuple):
    """The same call by fastnorm, by torch at the same dtype, and by torch in float64."""

    ours: Results
    theirs: Results
    truth: Results


def marks(backend: str, x: Tensor, layout: str, dtype: str) -> list[pytest.MarkDecorator]:
    """Slow are, in the interpreter alone: programs by the hundred, gaps, formats beside the dtypes.

    What stays is every class, option and mode on both backends, in fp32, with channels last; other
    dtypes are test_precision's too, gaps functional/test_forward's and test_gradient_contract's.
    """
    large = x.dim() > 0 and (x.shape[0] > 100 or x.numel() > 10_000)
    ordinary = layout != "noncontiguous" and dtype == "fp32"
    return [pytest.mark.slow] if backend == "triton" and (large or not ordinary) else []


def laid_out(t: Tensor, layout: str) -> Tensor:
    """A leaf with t's values; requires_grad is t's."""
    copy = t.detach().clone(memory_format=torch.contiguous_format)
    if layout == "channels_last":
        form = torch.channels_last if t.dim() == 4 else torch.channels_last_3d
        copy = copy.contiguous(memory_format=form)
    elif layout == "noncontiguous":  # as torch's tests do it: a NaN beside every value
        copy = torch.stack([torch.full_like(copy, float("nan")), copy], dim=-1)[..., 1]
    return copy.requires_grad_(t.requires_grad)


def gradient_of(y: Tensor) -> Tensor:
    """A dy of values that every dtype holds, so that truth and results see the same."""
    return make_input(y.shape, dtype=torch.bfloat16, seed=8).to(y.dtype)


def backward(y: Tensor, targets: Results) -> Results:
    """The gradients of `targets`, by name."""
    grads = torch.autograd.grad(y, list(targets.values()), gradient_of(y))
    return {f"gradient of {name}": g for name, g in zip(targets, grads, strict=True)}


def strides(t: Tensor) -> tuple[int, ...]:
    """Those that say anything: the stride of a dimension of one element does not."""
    return tuple(s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel())


def assert_follows_torch(
    three: Three, expected_strides: tuple[int, ...] | None = None, gradient_slack: float = 0.0
) -> None:
    """Names, dtypes, shapes, strides, where results are not finite, and the error of the rest.

    The rule: our error <= 2 x torch's own at that dtype + the tolerance table's term. For y and x's
    gradient, `expected_strides` take the place of torch's; gradients may have `gradient_slack`.
    """
    ours, theirs, truth = three
    assert list(ours) == list(theirs) == list(truth)
    for name, exact in truth.items():
        mine, torchs = ours[name], theirs[name]
        assert mine.dtype == torchs.dtype, f"{name}: {mine.dtype}, torch's is {torchs.dtype}"
        if not exact.is_floating_point():
            assert torch.equal(mine, torchs), name
            continue
        layout = strides(torchs)
        if expected_strides is not None and name in ("y", "gradient of input"):
            layout = expected_strides
        assert strides(mine) == layout, f"{name}: strides {strides(mine)}, expected {layout}"
        assert mine.shape == torchs.shape, f"{name}: {mine.shape}, torch's is {torchs.shape}"
        finite = exact.isfinite()
        assert torch.equal(mine.isfinite(), finite), f"{name}: not finite elsewhere than torch"
        mine, torchs, exact = mine[finite], torchs[finite].double(), exact[finite]
        own_error = (torchs - exact).abs().max().item() if exact.numel() else 0.0
        slack = gradient_slack if name.startswith("gradient") else 0.0
        assert_close(mine, exact, name, slack=2 * own_error + slack)


def forward_and_backward(call: Any, x: Tensor, targets: Results, backend: str | None) -> Results:
    """y and the gradients. With a backend, ours: kernels have to be launched either way."""
    if backend is None:
        y = call()
        return {"y": y.detach(), **backward(y, targets)}
    with running(backend, launches=x.numel() > 0):
        y = call()
    with running(backend, launches=x.numel() > 0):
        return {"y": y.detach(), **backward(y, targets)}
