"""The tensors of a case."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.shapes import Case

# Their parameters stay float32 with 16-bit activations, as under autocast; torch's group, layer and
# RMS norm want parameters in the activations' dtype.
FLOAT32_PARAMETERS = ("bn", "bn_eval", "in", "bin")


class Inputs(NamedTuple):
    """x, dy and the residual of the case's shape; parameters and running statistics (C,) or (L,);
    scale and shift (N, C) or (N, 1, L), if the case has them."""

    x: Tensor
    dy: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    rho: Tensor
    running_mean: Tensor
    running_var: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None

    def double(self) -> "Inputs":
        """The same values in float64, detached, with their own gradients."""

        def copy(t: Tensor) -> Tensor:
            return t.detach().double().requires_grad_(t.requires_grad)

        return Inputs(*(None if t is None else copy(t) for t in self))  # type: ignore[arg-type]

    def leaves(self, op: str) -> dict[str, Tensor]:
        """The tensors for which the operator has a gradient, under their gradients' names."""
        found = {"dx": self.x, "dweight": self.weight}
        if op != "rms":
            found["dbias"] = self.bias
        for name in ("residual", "scale", "shift"):
            if getattr(self, name) is not None:
                found[f"d{name}"] = getattr(self, name)
        if op == "bin":
            found["drho"] = self.rho
        return found


def _memory_format(case: Case) -> torch.memory_format:
    if case.layout == "contiguous":
        return torch.contiguous_format
    return torch.channels_last if len(case.shape) == 4 else torch.channels_last_3d


def _parameters_dtype(case: Case) -> torch.dtype:
    return torch.float32 if case.op in FLOAT32_PARAMETERS else case.dtype


def _parameters(case: Case) -> int:
    """Elements of a parameter."""
    return case.shape[-1 if case.of_rows else 1]


def _of_samples(case: Case) -> tuple[int, ...]:
    """The shape of scale and shift."""
    return (case.shape[0], 1, case.shape[-1]) if case.of_rows else case.shape[:2]


def shapes_alone(case: Case) -> Inputs:
    """The case's tensors on the meta device: no memory, no values."""
    form = _memory_format(case)
    x, dy, residual = (
        torch.empty(case.shape, dtype=case.dtype, device="meta", memory_format=form)
        for _ in range(3)
    )
    dtype = _parameters_dtype(case)
    weight, bias, rho, mean, var = (
        torch.empty(_parameters(case), dtype=dtype, device="meta") for _ in range(5)
    )
    scale, shift = (
        torch.empty(_of_samples(case), dtype=case.dtype, device="meta") if case.modulated else None
        for _ in range(2)
    )
    found = Inputs(
        x, dy, residual if case.has_residual else None, weight, bias, rho, mean, var, scale, shift
    )
    for leaf in (x, residual, weight, bias, rho, *(t for t in (scale, shift) if t is not None)):
        leaf.requires_grad_()
    return found


def make_inputs(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> Inputs:
    """Random inputs with mean 0.5 and std 2, parameters near their initial values."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(std: float = 1.0, mean: float = 0.0) -> Tensor:
        x = torch.randn(case.shape, generator=generator, dtype=case.dtype, device=device)
        return x.mul_(std).add_(mean).contiguous(memory_format=_memory_format(case))

    def uniform(low: float, high: float) -> Tensor:
        u = torch.rand(_parameters(case), generator=generator, dtype=torch.float32, device=device)
        return (low + (high - low) * u).to(_parameters_dtype(case))

    def of_samples() -> Tensor | None:
        if not case.modulated:
            return None
        u = torch.randn(_of_samples(case), generator=generator, dtype=case.dtype, device=device)
        return u.mul_(0.3).requires_grad_()

    return Inputs(
        x=normal(std=2.0, mean=0.5).requires_grad_(),
        dy=normal(),
        residual=normal().requires_grad_() if case.has_residual else None,
        weight=uniform(0.8, 1.2).requires_grad_(),
        bias=uniform(-0.2, 0.2).requires_grad_(),
        rho=uniform(0.0, 1.0).requires_grad_(),
        running_mean=uniform(0.0, 1.0),
        running_var=uniform(2.0, 6.0),
        scale=of_samples(),
        shift=of_samples(),
    )
