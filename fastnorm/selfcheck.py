"""Every path of the backends against `fastnorm.reference` in float64, on tensors of a few KB.

A check is one function, forward and backward, in one layout, dtype and tier of the kernels. It
shows whether a machine computes the norms at all; the tests have tighter bounds.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import functional, reference
from .backend import load_engine, load_kernels, use_backend
from .merges import Coefficients, merge_moments

SHAPE = (3, 8, 8, 8)  # (N, C, H, W): the batch fills no tile, and rows are read as vectors
GROUPS = 2
EPS = 1e-5
# Relative to the largest true value. For half precision: two units of the rounding of results.
LARGEST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
LAYOUTS = ("contiguous", "channels last")

Tensors = dict[str, Tensor]
Results = dict[str, Tensor]


class Norm(NamedTuple):
    """A function of `fastnorm.functional`, called with it or with `fastnorm.reference`."""

    name: str
    call: Callable[[Any, Tensors], Any]
    inputs: tuple[str, ...]  # the gradients to check
    layouts: tuple[str, ...] = LAYOUTS
    tiered: bool = True


class Outcome(NamedTuple):
    """A check's result: the largest relative error, or NaN and the exception in `message`."""

    name: str
    layout: str
    tier: str
    dtype: torch.dtype
    error: float
    message: str = ""

    @property
    def ok(self) -> bool:
        return not self.message and self.error <= LARGEST_ERROR[self.dtype]


def run(backend: str, device: str, dtypes: tuple[torch.dtype, ...]) -> Iterator[Outcome]:
    """The outcomes of all checks of a backend, each as soon as it is known.

    The first dtype runs in each tier of the kernels; for the others the size decides the tier.
    """
    for dtype in dtypes:
        for norm in NORMS:
            tiers = _tiers() if norm.tiered and backend == "triton" and dtype == dtypes[0] else [""]
            for layout, tier in itertools.product(norm.layouts, tiers):
                yield _check(norm, backend, device, dtype, layout, tier)


def _check(
    norm: Norm, backend: str, device: str, dtype: torch.dtype, layout: str, tier: str
) -> Outcome:
    outcome = Outcome(norm.name, layout, tier, dtype, math.nan)
    try:
        tensors = _tensors(device, dtype, layout)
        truth = _results(norm, reference, {k: t.double() for k, t in tensors.items()})
        with use_backend(backend), _through_kernels(tier) if backend == "triton" else _called():
            found = _results(norm, functional, tensors)
        # torch's max is NaN if any number is NaN.
        worst = torch.stack([_relative_error(found[name], truth[name]) for name in truth]).max()
        return outcome._replace(error=worst.item())
    except Exception as error:
        return outcome._replace(message=f"{type(error).__name__}: {_first_and_last_line(error)}")


def _tensors(device: str, dtype: torch.dtype, layout: str) -> Tensors:
    """All inputs that a norm may take: x and residual in `dtype`, parameters in float32."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    N, C, H, W = SHAPE
    images = {"x": draw(*SHAPE) + 0.5, "residual": draw(*SHAPE)}
    if layout == "channels last":
        images = {k: t.to(memory_format=torch.channels_last) for k, t in images.items()}
    parameters = {
        "weight": 1 + 0.3 * draw(C), "bias": draw(C), "rho": draw(C).sigmoid(),
        "row_weight": 1 + 0.3 * draw(H, W), "row_bias": draw(H, W), "gate_weight": draw(W),
        "g": 1 + draw(N, 1, 1, 1).abs(),
        "running_mean": 0.2 * draw(C), "running_var": 0.5 + draw(C).abs(),
        "scale": 0.3 * draw(N, C), "shift": draw(N, C),
    }  # fmt: skip
    return {k: t.to(device, dtype) for k, t in images.items()} | {
        k: t.to(device) for k, t in parameters.items()
    }


def _results(norm: Norm, functions: Any, tensors: Tensors) -> Results:
    """The outputs, the gradients of `norm.inputs` and the running statistics afterwards."""
    tensors = {k: t.clone().requires_grad_(k in norm.inputs) for k, t in tensors.items()}
    outputs = norm.call(functions, tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # Normal values, in the dtype and layout of x and of every output.
    dy = [tensors["residual"].detach().flip(0) + i for i in range(len(outputs))]
    grads = torch.autograd.grad(outputs, [tensors[name] for name in norm.inputs], dy)
    return (
        {f"output {i}": output.detach() for i, output in enumerate(outputs)}
        | {f"gradient of {name}": g for name, g in zip(norm.inputs, grads, strict=True)}
        | {name: tensors[name] for name in ("running_mean", "running_var")}
    )


def _relative_error(found: Tensor, truth: Tensor) -> Tensor:
    if found.shape != truth.shape:
        raise RuntimeError(f"shape {tuple(found.shape)} instead of {tuple(truth.shape)}")
    return (found.double() - truth).abs().max() / truth.abs().max()


def _tiers() -> list[str]:
    """The tiers that have room for these tensors. Clusters are for larger ones."""
    return [tier for tier in load_kernels().tiers.TIERS if tier != "cluster"]


@contextlib.contextmanager
def _through_kernels(tier: str) -> Iterator[None]:
    """Raises if no kernel is launched inside the `with` block; `tier` fixes the tier unless ""."""
    kernels = load_kernels()
    with (
        kernels.tiers.force(tier) if tier else contextlib.nullcontext(),
        kernels.launch.record() as launched,
    ):
        yield
    if not launched:
        raise RuntimeError("no kernel was launched")


@contextlib.contextmanager
def _called() -> Iterator[None]:
    """Raises if the engine for CPUs does not run inside the `with` block."""
    with load_engine().calls.record() as called:
        yield
    if not called:
        raise RuntimeError("the engine was not called")


def _first_and_last_line(error: Exception) -> str:
    """A compiler's message begins with the place in the source and ends with the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else "no message"


def _batch_norm(training: bool) -> Callable[[Any, Tensors], Tensor]:
    return lambda F, t: F.batch_norm(
        t["x"], t["running_mean"], t["running_var"], t["weight"], t["bias"], training, eps=EPS
    )


def _batch_instance_norm(F: Any, t: Tensors) -> Tensor:
    statistics = t["running_mean"], t["running_var"]
    return F.batch_instance_norm(t["x"], *statistics, t["rho"], t["weight"], t["bias"], True)


def _group_norm(activation: str) -> Callable[[Any, Tensors], Tensor]:
    return lambda F, t: F.group_norm(
        t["x"], GROUPS, t["weight"], t["bias"], activation=activation, residual=t["residual"]
    )


def _modulated_group_norm(F: Any, t: Tensors) -> Tensor:
    by_sample = {"scale": t["scale"], "shift": t["shift"]}
    y: Tensor = F.group_norm(t["x"], GROUPS, t["weight"], t["bias"], activation="silu", **by_sample)
    return y


def _fused_layer_norm(F: Any, t: Tensors) -> Tensor:
    fused = {"activation": "relu", "residual": t["residual"]}
    return F.layer_norm(t["x"], SHAPE[2:], t["row_weight"], t["row_bias"], **fused)


def _moment_norm(F: Any, t: Tensors) -> Tensor:
    """Batch norm as a merge written by a user."""
    if F is reference:
        return reference.batch_norm(t["x"], None, None, t["weight"], t["bias"], training=True)

    def merge(mean: Tensor, var: Tensor, count: int) -> Coefficients:
        mean, var = merge_moments(mean, var, 0)
        return t["weight"] * (var + EPS).rsqrt(), mean, t["bias"]

    return functional.moment_norm(t["x"], merge)


AFFINE = ("x", "weight", "bias")
FUSED = ("x", "residual", "weight", "bias")
ROWS = ("x", "row_weight", "row_bias")
NORMS = (
    Norm("batch norm, training", _batch_norm(True), AFFINE),
    Norm("batch norm, evaluation", _batch_norm(False), AFFINE, tiered=False),
    Norm(
        "instance norm",
        lambda F, t: F.instance_norm(t["x"], weight=t["weight"], bias=t["bias"]),
        AFFINE,
    ),
    Norm("batch-instance norm", _batch_instance_norm, (*AFFINE, "rho")),
    Norm(
        "mean-only batch norm",
        lambda F, t: F.mean_only_batch_norm(t["x"], t["running_mean"], t["bias"], True),
        ("x", "bias"),
    ),
    Norm(
        "group norm",
        lambda F, t: F.group_norm(t["x"], GROUPS, t["weight"], t["bias"]),
        AFFINE,
    ),
    Norm("group norm + residual, ReLU", _group_norm("relu"), FUSED),
    Norm("group norm + residual, SiLU", _group_norm("silu"), FUSED),
    Norm("group norm + residual, GELU", _group_norm("gelu"), FUSED, tiered=False),
    Norm("group norm, modulated, SiLU", _modulated_group_norm, (*AFFINE, "scale", "shift")),
    Norm("moment norm", _moment_norm, AFFINE, tiered=False),
    Norm(
        "layer norm",
        lambda F, t: F.layer_norm(t["x"], SHAPE[2:], t["row_weight"], t["row_bias"]),
        ROWS,
        LAYOUTS[:1],
    ),
    Norm(
        "RMS norm",
        lambda F, t: F.rms_norm(t["x"], SHAPE[2:], t["row_weight"], EPS),
        ROWS[:2],
        LAYOUTS[:1],
    ),
    Norm("layer norm + residual, ReLU", _fused_layer_norm, ("residual", *ROWS), LAYOUTS[:1]),
    Norm(
        "add layer norm",
        lambda F, t: F.add_layer_norm(
            t["x"], t["residual"], SHAPE[2:], t["row_weight"], t["row_bias"]
        ),
        ("residual", *ROWS),
        LAYOUTS[:1],
    ),
    Norm(
        "add RMS norm",
        lambda F, t: F.add_rms_norm(t["x"], t["residual"], SHAPE[2:], t["row_weight"], EPS),
        ("residual", *ROWS[:2]),
        LAYOUTS[:1],
    ),
    Norm(
        "gated RMS norm",
        lambda F, t: F.gated_rms_norm(t["x"], t["residual"], t["gate_weight"], EPS, group_size=4),
        ("x", "residual", "gate_weight"),
        LAYOUTS[:1],
    ),
    Norm(
        "weight norm",
        lambda F, t: F.weight_norm(t["x"], t["g"], 0),
        ("x", "g"),
        tiered=False,
    ),
)
