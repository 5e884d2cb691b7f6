"""The tensors of a case."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.shapes import Case

# Their parameters stay float32 beside 16-bit activations, as autocast leaves them; torch's group
# and layer norm want the activations' own dtype.
FLOAT32_PARAMETERS = ("bn", "bn_eval", "in", "bin")


class Inputs(NamedTuple):
    """x, dy and the residual of the case's shape; parameters and running statistics (C,)."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    rho: Tensor
    running_mean: Tensor
    running_var: Tensor

    def double(self) -> "Inputs":
        """The same values in float64, detached, with their own gradients."""

        def copy(t: Tensor) -> Tensor:
            return t.detach().double().requires_grad_(t.requires_grad)

        return Inputs(*(None if t is None else copy(t) for t in self))  # type: ignore[arg-type]

    def leaves(self, op: str) -> dict[str, Tensor]:
        """The tensors that the operator has a gradient for, under their gradients' names."""
        found = {"dx": self.x, "dweight": self.weight, "dbias": self.bias}
        if self.residual is not None:
            found["dresidual"] = self.residual
        if op == "bin":
            found["drho"] = self.rho
        return found


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "contiguous":
        return x
    form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=form)


def make_inputs(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> Inputs:
    """Random inputs with mean 0.5 and std 2, parameters near their initial values."""
    generator = torch.Generator(device).manual_seed(seed)
    parameters = torch.float32 if case.op in FLOAT32_PARAMETERS else case.dtype
    channels = case.shape[1]

    def normal(std: float = 1.0, mean: float = 0.0) -> Tensor:
        x = torch.randn(case.shape, generator=generator, dtype=case.dtype, device=device)
        return _laid_out(x.mul_(std).add_(mean), case.layout)

    def uniform(low: float, high: float) -> Tensor:
        u = torch.rand(channels, generator=generator, dtype=torch.float32, device=device)
        return (low + (high - low) * u).to(parameters)

    return Inputs(
        x=normal(std=2.0, mean=0.5).requires_grad_(),
        dy=normal(),
        residual=normal().requires_grad_() if case.has_residual else None,
        weight=uniform(0.8, 1.2).requires_grad_(),
        bias=uniform(-0.2, 0.2).requires_grad_(),
        rho=uniform(0.0, 1.0).requires_grad_(),
        running_mean=uniform(0.0, 1.0),
        running_var=uniform(2.0, 6.0),
    )
