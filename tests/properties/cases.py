"""A call of a norm as plain data, and the tensors and calls that follow from it.

Hypothesis prints a failing `Case` whole. Pasted into a test it fails again: the tensors follow from
its seed.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastnorm.kernels import tiers
from tests.conftest import DEVICE, with_layout
from tests.kernels.tilings import tiny_tilings
from tests.norms import EPS, GRADS, NORMS, OF_ROWS, STATS, Params

# norms.NORMS, and instance norm that keeps running statistics.
CALLS = (*NORMS, "in_running")
WITH_STATS = ("bn_train", "bn_eval", "in_eval", "in_running", "bin_train", "bin_eval")
WRITERS = ("bn_train", "in_running", "bin_train")
BY_CONSTANTS = ("bn_eval", "in_eval", "mean_eval")
MEAN_ONLY = ("mean_train", "mean_eval")  # without a weight, with one running statistic
# What x may hold; the extremes are scaled to the range of its dtype.
VALUES = ("normal", "outlier", "constant", "huge", "denormal")
HUGE = {torch.float16: 2e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e30}
TILINGS = ("large", "tiny", "tiny streaming")


@dataclass(frozen=True)
class Case:
    """A call. Layouts are names known to `laid_out`; None is an argument not given."""

    norm: str
    shape: tuple[int, ...]
    groups: int = 1  # of group norm
    normalized: int = 1  # trailing dimensions of layer and RMS norm
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    weight: str | None = "contiguous"
    bias: str | None = "contiguous"
    residual: str | None = None
    gradient: str = "contiguous"  # layout of dy
    stats: str = "contiguous"
    activation: str | None = None
    eps: float = EPS
    momentum: float = 0.1
    values: str = "normal"
    mean: float = 0.0  # in units of the standard deviation
    std: float = 1.0
    tiling: str = "large"
    needs: tuple[str, ...] = ("x", "residual", "weight", "bias", "rho")  # what has a gradient
    seed: int = 0

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        if self.norm in OF_ROWS:
            return self.shape[len(self.shape) - self.normalized :]
        return self.shape[1:2]

    @property
    def accumulation(self) -> torch.dtype:
        """The dtype that sums and statistics have in every backend."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def overflows(self) -> bool:
        """Whether squares are beyond the statistics' range: y and dx are then what Inf makes of
        them, 0 in torch and in fastnorm, but not in truth."""
        huge = self.values == "huge" and self.dtype in (torch.float32, torch.bfloat16)
        return huge and self.norm not in (*BY_CONSTANTS, *MEAN_ONLY)


@dataclass
class Tensors:
    x: torch.Tensor
    residual: torch.Tensor | None
    dy: torch.Tensor
    p: Params

    def leaves(self) -> dict[str, torch.Tensor]:
        """What can have a gradient, by name."""
        every = {"x": self.x, "residual": self.residual, **self.p}
        names = ("x", "residual", *GRADS)
        return {name: every[name] for name in names if every[name] is not None}

    def given(self) -> dict[str, torch.Tensor]:
        """Every tensor that the call gets, by name."""
        every = {"x": self.x, "residual": self.residual, "dy": self.dy, **self.p}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def copied(self, dtype: torch.dtype, parameter_dtype: torch.dtype) -> "Tensors":
        """Contiguous copies, leaves that all require a gradient.

        Contiguous, because torch's channels-last group norm can crash the process.
        """

        def copy(t: torch.Tensor | None, to: torch.dtype) -> torch.Tensor | None:
            if t is None:
                return None
            return t.detach().to(to).clone(memory_format=torch.contiguous_format)

        p = {name: copy(t, parameter_dtype) for name, t in self.p.items()}
        copies = Tensors(copy(self.x, dtype), copy(self.residual, dtype), copy(self.dy, dtype), p)
        for leaf in copies.leaves().values():
            leaf.requires_grad_()
        return copies


def laid_out(t: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of t in another layout; what lies between them is NaN."""
    if layout == "offset":  # begins one element into its storage: not aligned to 16 bytes
        storage = t.new_full((t.numel() + 1,), math.nan)
        storage[1:] = t.flatten()
        return storage[1:].view(t.shape)
    if layout == "stepped":  # every second element of the last dimension
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), math.nan)
        wide[..., ::2] = t
        return wide[..., ::2]
    if layout == "permuted":  # the dimensions in memory in reverse
        order = list(reversed(range(t.dim())))
        return t.permute(order).contiguous().permute(order)
    if layout == "expanded":  # one value along the first dimension
        return t[:1].expand_as(t) if t.numel() else t
    if t.dim() < 2:
        return t.contiguous()
    return with_layout(t, layout)


LAYOUTS = (
    "contiguous", "channels_last", "sliced", "offset", "stepped", "permuted", "expanded",
)  # fmt: skip
VECTOR_LAYOUTS = ("contiguous", "offset", "stepped", "expanded")


def tensors(case: Case) -> Tensors:
    """The tensors of a case, leaves where it needs their gradients."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def made(values: torch.Tensor, layout: str, dtype: torch.dtype, name: str) -> torch.Tensor:
        t = laid_out(values.to(DEVICE, dtype), layout).detach()
        return t.requires_grad_(name in case.needs)

    def parameter(values: torch.Tensor, layout: str | None, name: str) -> torch.Tensor | None:
        return None if layout is None else made(values, layout, case.parameter_dtype, name)

    x = made(_values(case, normal(case.shape)), case.layout, case.dtype, "x")
    dy = made(normal(case.shape), case.gradient, case.dtype, "dy")
    residual = normal(case.shape)
    channels, per_element = case.shape[1:2], case.parameter_shape
    p: Params = {
        "weight": parameter(1.1 + 0.3 * normal(per_element), case.weight, "weight"),
        "bias": parameter(0.5 * normal(per_element), case.bias, "bias"),
        "rho": None, "running_mean": None, "running_var": None,
    }  # fmt: skip
    if case.norm.startswith("bin"):
        p["rho"] = parameter(torch.sigmoid(normal(channels)), "contiguous", "rho")
    if case.norm in MEAN_ONLY:
        p["weight"] = None
        p["running_mean"] = parameter(0.2 * normal(channels), case.stats, "")
    if case.norm in WITH_STATS:
        p["running_mean"] = parameter(0.2 * normal(channels), case.stats, "")
        p["running_var"] = parameter(normal(channels).abs() + 0.5, case.stats, "")
    if case.residual is None:
        return Tensors(x, None, dy, p)
    return Tensors(x, made(residual, case.residual, case.dtype, "residual"), dy, p)


def _values(case: Case, normal: torch.Tensor) -> torch.Tensor:
    if case.values == "constant":
        return torch.full_like(normal, case.mean * case.std)
    if case.values == "huge":
        return normal.clamp(-3, 3) * HUGE[case.dtype]
    if case.values == "denormal":
        # of bfloat16 the smallest normal ones: the interpreter misreads its denormals
        scale = 10 if case.dtype == torch.bfloat16 else 0.01
        return normal.abs().clamp(min=0.2) * scale * torch.finfo(case.dtype).tiny
    x = (normal + case.mean) * case.std
    if case.values == "outlier" and x.numel():
        x.view(-1)[case.seed % x.numel()] *= 100
    return x


def call(functional: Any, case: Case, t: Tensors, **other: Any) -> torch.Tensor:
    """The case's call of fastnorm.functional, or of tests.norms.Torch; `other` arguments win."""
    p, norm = t.p, case.norm
    arguments: dict[str, Any] = {
        "weight": p["weight"], "bias": p["bias"], "eps": case.eps, "activation": case.activation,
        "residual": t.residual,
    }  # fmt: skip
    if norm in MEAN_ONLY:
        return functional.mean_only_batch_norm(
            t.x, p["running_mean"], p["bias"], norm == "mean_train", case.momentum,
            activation=case.activation, residual=t.residual, **other,
        )  # fmt: skip
    stats = {"running_mean": p["running_mean"], "running_var": p["running_var"]}
    stats["momentum"] = case.momentum
    if norm == "ln":
        shape = case.parameter_shape
        return functional.layer_norm(t.x, **{"normalized_shape": shape, **arguments, **other})
    if norm == "rms":
        shape = case.parameter_shape
        del arguments["bias"]
        return functional.rms_norm(t.x, **{"normalized_shape": shape, **arguments, **other})
    if norm == "gn":
        return functional.group_norm(t.x, **{"num_groups": case.groups, **arguments, **other})
    if norm.startswith("in"):
        stats["use_input_stats"] = norm != "in_eval"
        return functional.instance_norm(t.x, **{**stats, **arguments, **other})
    stats["training"] = not norm.endswith("eval")
    if norm.startswith("bn"):
        return functional.batch_norm(t.x, **{**stats, **arguments, **other})
    return functional.batch_instance_norm(t.x, **{"rho": p["rho"], **stats, **arguments, **other})


def results(functional: Any, case: Case, t: Tensors) -> dict[str, torch.Tensor]:
    """y, the gradients of all leaves that require one, and the running statistics, by name."""
    y = call(functional, case, t)
    found = {"y": y.detach()}
    wanted = {name: leaf for name, leaf in t.leaves().items() if leaf.requires_grad}
    if wanted:
        grads = torch.autograd.grad(y, list(wanted.values()), t.dy)
        found.update(zip(wanted, grads, strict=True))
    for name in STATS:
        if t.p[name] is not None:
            found[name] = t.p[name].detach().clone()
    return found


@contextlib.contextmanager
def tiled(case: Case, backend: str) -> Iterator[None]:
    """The tiles and the tier of the case; other backends than Triton have none."""
    if backend != "triton" or case.tiling == "large":
        yield
        return
    with tiny() if DEVICE == "cpu" else contextlib.nullcontext(), tier(case.tiling):
        yield


def tiny() -> contextlib.AbstractContextManager[Any]:
    """Tiles as small as the 64 lanes that channels-last tiles have."""
    return tiny_tilings(
        ONE_PROGRAM_TILES={64: 4, 128: 4}, UNALIGNED_TILES={64: 4},
        STREAMING_TILE=256, ENOUGH_PROGRAMS=6, MOST_LANES=64,
    )  # fmt: skip


def tier(tiling: str) -> contextlib.AbstractContextManager[None]:
    return tiers.force("streaming") if tiling == "tiny streaming" else contextlib.nullcontext()
