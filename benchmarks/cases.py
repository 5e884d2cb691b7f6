"""What is timed: operators, shapes and the two providers; and the check made before any timing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as torch_f
from torch import Tensor

import fastnorm.functional as fastnorm_f

CNN_SHAPES = ((128, 16, 32, 32), (128, 64, 8, 8), (8, 64, 32, 32))
ROWS_SHAPE = (4096, 768)
# Forward + backward, ours over torch's, at the first CNN shape; bin against torch's batch norm.
GOALS = {"in": 0.6, "bn": 0.9, "gn": 1.05, "ln": 1.05, "bin": 1.2}


@dataclass(frozen=True)
class Case:
    """One operator at one shape; `goal` is the ratio ours/torch's that it is held to, if any."""

    op: str
    shape: tuple[int, ...]
    goal: float | None = None
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"{self.op} {'x'.join(map(str, self.shape))}"

    @property
    def min_bytes(self) -> int:
        """The least traffic of forward + backward: read x, write y; read x and dy, write dx."""
        return 5 * torch.Size(self.shape).numel() * self.dtype.itemsize


CASES = (
    *(Case(op, CNN_SHAPES[0], goal) for op, goal in GOALS.items()),
    *(Case(op, shape) for shape in CNN_SHAPES[1:] for op in GOALS),
    Case("ln", ROWS_SHAPE),
)


@dataclass
class Inputs:
    """Tensors of one case: x and dy of its shape, weight, bias, rho and running statistics (C)."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor
    rho: Tensor
    running_mean: Tensor
    running_var: Tensor

    def double(self) -> "Inputs":
        """The same values in float64, detached, with their own gradients."""
        copies = {
            name: t.detach().double().requires_grad_(t.requires_grad)
            for name, t in vars(self).items()
        }
        return Inputs(**copies)


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Random inputs with mean 0.5 and std 2, parameters near their initial values."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=case.dtype) * std + mean

    channels = case.shape[1]
    return Inputs(
        x=normal(*case.shape, mean=0.5, std=2.0).requires_grad_(),
        dy=normal(*case.shape),
        weight=normal(channels, mean=1.0, std=0.1).requires_grad_(),
        bias=normal(channels, std=0.1).requires_grad_(),
        rho=torch.rand(channels, generator=generator, dtype=case.dtype).requires_grad_(),
        running_mean=torch.zeros(channels, dtype=case.dtype),
        running_var=torch.ones(channels, dtype=case.dtype),
    )


def _groups(op: str, x: Tensor) -> int:
    """Layer norm in a CNN is group norm with one group; gn proper takes 4 channels a group."""
    return 1 if op == "ln" else x.shape[1] // 4


def builtin(op: str, i: Inputs) -> Tensor:
    """torch's operator; for bin, which torch lacks, its batch norm: the yardstick of the cost."""
    if op in ("bn", "bin"):
        return torch_f.batch_norm(
            i.x, i.running_mean, i.running_var, i.weight, i.bias, training=True
        )
    if op == "in":
        return torch_f.instance_norm(i.x, weight=i.weight, bias=i.bias)
    if i.x.ndim == 2:
        return torch_f.layer_norm(i.x, i.x.shape[1:], i.weight, i.bias)
    return torch_f.group_norm(i.x, _groups(op, i.x), i.weight, i.bias)


def ours(op: str, i: Inputs) -> Tensor:
    """The same call in fastnorm, on the backend in force."""
    if op == "bn":
        return fastnorm_f.batch_norm(
            i.x, i.running_mean, i.running_var, i.weight, i.bias, training=True
        )
    if op == "bin":
        return fastnorm_f.batch_instance_norm(
            i.x, i.running_mean, i.running_var, i.rho, i.weight, i.bias, training=True
        )
    if op == "in":
        return fastnorm_f.instance_norm(i.x, weight=i.weight, bias=i.bias)
    if i.x.ndim == 2:
        return fastnorm_f.layer_norm(i.x, i.x.shape[1:], i.weight, i.bias)
    return fastnorm_f.group_norm(i.x, _groups(op, i.x), i.weight, i.bias)


def definition(op: str, i: Inputs) -> Tensor:
    """The operator's value from torch's operators; differs from `builtin` for bin alone."""
    if op != "bin":
        return builtin(op, i)
    batch = torch_f.batch_norm(i.x, i.running_mean, i.running_var, training=True)
    instance = torch_f.instance_norm(i.x)
    channel = (-1, *[1] * (i.x.ndim - 2))
    rho, weight, bias = (p.view(channel) for p in (i.rho, i.weight, i.bias))
    return weight * (rho * batch + (1 - rho) * instance) + bias


Provider = Callable[[str, Inputs], Tensor]
PROVIDERS: dict[str, Provider] = {"torch": builtin, "fastnorm": ours}


def step(provider: Provider, op: str, i: Inputs) -> tuple[Tensor, ...]:
    """One forward and backward: y, dx, dweight, dbias, and drho where the operator uses rho."""
    y = provider(op, i)
    leaves = [i.x, i.weight, i.bias]
    if op == "bin" and provider is not builtin:
        leaves.append(i.rho)
    return (y, *torch.autograd.grad(y, leaves, i.dy))


def outputs(provider: Provider, op: str, i: Inputs) -> dict[str, Tensor]:
    """All that one step returns or writes, by name."""
    names = ("y", "dx", "dweight", "dbias", "drho")
    found = dict(zip(names, step(provider, op, i), strict=False))  # most operators have no rho
    found |= {"running_mean": i.running_mean, "running_var": i.running_var}
    return {name: t.detach() for name, t in found.items()}


def check(case: Case, provider: Provider = ours) -> None:
    """Raise AssertionError unless the provider's step is about as near float64 as torch's own.

    Errors are relative to the largest magnitude of the float64 truth. Allowed: 4 times torch's
    error, or 16 units of the dtype's eps where torch happens to be exact.
    """
    truth = outputs(definition, case.op, make_inputs(case).double())
    theirs = outputs(definition, case.op, make_inputs(case))
    result = outputs(provider, case.op, make_inputs(case))
    assert truth.keys() == result.keys(), f"{case.name}: {set(truth) ^ set(result)}"
    for name, exact in truth.items():
        scale = float(exact.abs().max()) or 1.0
        their_error, error = (
            float((found[name] - exact).abs().max()) / scale for found in (theirs, result)
        )
        bound = max(4 * their_error, 16 * torch.finfo(case.dtype).eps)
        assert error <= bound, f"{case.name}: {name} is off by {error:.1e}, allowed {bound:.1e}"
