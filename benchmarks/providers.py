"""The sides of a comparison: fastnorm, torch eager and compiled, other packages if installed."""

import contextlib
import functools
import importlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor

import fastnorm.functional as fastnorm_f
from benchmarks.inputs import Inputs
from benchmarks.shapes import Case

Forward = Callable[[Inputs], Tensor]
EPS = 1e-5
LARGEST_OF_A_PROGRAM = 8192  # elements of a set: cases with smaller sets take no clusters
# The providers that launch fastnorm's kernels; the second also with programs that wait.
OURS = ("fastnorm", "fastnorm-coop")


class Unavailable(Exception):
    """Why a provider cannot run here."""


@dataclass(frozen=True)
class Provider:
    """`bind` makes the function for one case; it is used only inside `setting`."""

    name: str
    bind: Callable[[Case], Forward]
    serves: Callable[[Case], bool] = lambda case: True
    setting: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    checked: bool = True  # against float64; eager torch is itself the measure there

    @property
    def is_ours(self) -> bool:
        return self.name in OURS


def torch_norm(case: Case, i: Inputs) -> Tensor:
    """torch's operator; batch-instance norm, which it lacks, from its batch and instance norm."""
    if case.op in ("bn", "bn_eval"):
        training = case.op == "bn"
        return torch_f.batch_norm(i.x, i.running_mean, i.running_var, i.weight, i.bias, training)
    if case.op == "in":
        return torch_f.instance_norm(i.x, weight=i.weight, bias=i.bias)
    if case.op == "bin":
        batch = torch_f.batch_norm(i.x, i.running_mean, i.running_var, training=True)
        instance = torch_f.instance_norm(i.x)
        channel = (-1, *[1] * (i.x.ndim - 2))
        rho, weight, bias = (p.to(i.x.dtype).view(channel) for p in (i.rho, i.weight, i.bias))
        return weight * (rho * batch + (1 - rho) * instance) + bias
    if case.op == "rms":
        return torch_f.rms_norm(i.x, i.x.shape[-1:], i.weight, EPS)
    if case.of_rows:
        return torch_f.layer_norm(i.x, i.x.shape[-1:], i.weight, i.bias)
    return torch_f.group_norm(i.x, case.num_groups, i.weight, i.bias)


def _followed(case: Case, y: Tensor, i: Inputs) -> Tensor:
    """relu(y + residual) or silu(y (1 + scale) + shift), as the case says, one operator each."""
    if i.scale is not None and i.shift is not None:
        after = (1,) * (0 if case.of_rows else i.x.ndim - 2)
        scale, shift = (t.view(*t.shape, *after) for t in (i.scale, i.shift))
        y = y * (1 + scale) + shift
    if i.residual is not None:
        y = y + i.residual
    activation = _activation(case)
    return y if activation is None else getattr(torch_f, activation)(y)


def _activation(case: Case) -> str | None:
    """The last word of `fused`, if that is an activation."""
    last = case.fused.rpartition("_")[2]
    return last if last in ("relu", "silu") else None


def eager(case: Case, i: Inputs) -> Tensor:
    """The case from torch's operators: its definition, and the code that a torch user runs."""
    return _followed(case, torch_norm(case, i), i)


def ours(case: Case, i: Inputs) -> Tensor:
    """The same in one call of fastnorm, on the current backend."""
    after: dict[str, Any] = {
        "activation": _activation(case),
        "residual": i.residual,
        "scale": i.scale,
        "shift": i.shift,
    }
    affine, running = (i.weight, i.bias), (i.running_mean, i.running_var)
    if case.op in ("bn", "bn_eval"):
        return fastnorm_f.batch_norm(i.x, *running, *affine, case.op == "bn", **after)
    if case.op == "in":
        return fastnorm_f.instance_norm(i.x, None, None, *affine, **after)
    if case.op == "bin":
        return fastnorm_f.batch_instance_norm(i.x, *running, i.rho, *affine, training=True, **after)
    if case.op == "rms":
        return fastnorm_f.rms_norm(i.x, i.x.shape[-1:], i.weight, EPS, **after)
    if case.of_rows:
        return fastnorm_f.layer_norm(i.x, i.x.shape[-1:], *affine, **after)
    return fastnorm_f.group_norm(i.x, case.num_groups, *affine, **after)


def bound(function: Callable[[Case, Inputs], Tensor]) -> Callable[[Case], Forward]:
    """`bind` for a provider that computes every case with one function."""
    return lambda case: functools.partial(function, case)


def _cooperative() -> Provider:
    tiers = importlib.import_module("fastnorm.kernels.tiers")
    if not hasattr(tiers, "cooperative"):
        raise Unavailable("fastnorm.kernels.tiers has no `cooperative`")

    def has_clusters(case: Case) -> bool:
        if case.op not in ("bn", "in", "gn") or case.layout != "contiguous":
            return False
        return case.fused in ("plain", "relu") and case.set_elements > LARGEST_OF_A_PROGRAM

    return Provider(
        "fastnorm-coop", bound(ours), has_clusters, setting=lambda: tiers.cooperative(True)
    )


def _compiled() -> Provider:
    if not torch.cuda.is_available() and not shutil.which(os.environ.get("CXX", "g++")):
        raise Unavailable("torch.compile needs a C++ compiler on a CPU")
    # Donated buffers forbid retain_graph=True, with which one backward is timed many times.
    functorch: Any = importlib.import_module("torch._functorch.config")
    functorch.donated_buffer = False

    def bind(case: Case) -> Forward:
        torch.compiler.reset()  # else earlier cases count as recompilations

        def forward(i: Inputs) -> Tensor:
            return eager(case, i)

        return torch.compile(forward, fullgraph=True, dynamic=False)

    return Provider("compile", bind, lambda case: case.compiled, checked=False)


def _is_rows(case: Case) -> bool:
    return case.of_rows and len(case.shape) == 2


def _liger() -> Provider:
    """liger-kernel 0.8: Triton kernels of rows, and of groups in contiguous images."""
    functional = importlib.import_module("liger_kernel.transformers.functional")

    def norm(case: Case, i: Inputs) -> Tensor:
        if case.op == "gn":
            return functional.liger_group_norm(
                i.x, i.weight, i.bias, case.shape[1], case.num_groups, EPS
            )
        if case.op == "rms":  # its default writes dx over the caller's dy
            return functional.liger_rms_norm(i.x, i.weight, EPS, in_place=False)
        return functional.liger_layer_norm(i.x, i.weight, i.bias, EPS)

    def forward(case: Case, i: Inputs) -> Tensor:
        return _followed(case, norm(case, i), i)

    def served(case: Case) -> bool:
        return _is_rows(case) or (case.op == "gn" and case.layout == "contiguous")

    return Provider("liger", bound(forward), served)


def _cudnn() -> Provider:
    """nvidia-cudnn-frontend 1.32: cuDNN's kernels of rows, as operators of torch."""
    norms = importlib.import_module("cudnn.ops.norm")

    def forward(case: Case, i: Inputs) -> Tensor:
        if case.op == "rms":
            return _followed(case, norms.rms_norm(i.x, i.weight, eps=EPS), i)
        y = norms.layer_norm(i.x, tuple(i.x.shape[1:]), i.weight, i.bias, EPS)
        return _followed(case, y, i)

    return Provider("cudnn", bound(forward), _is_rows)


def _quack() -> Provider:
    """quack-kernels 0.6: CuTe kernels of rows."""
    kernels = importlib.import_module("quack.rmsnorm")

    class LayerNorm(torch.autograd.Function):
        """quack's two functions joined; they need float32 parameters."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            y, rstd, mean = kernels.layernorm_fwd(
                x, weight.float(), bias.float(), EPS, return_rstd=True, return_mean=True
            )
            ctx.save_for_backward(x, weight, rstd, mean)
            return y

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
            x, weight, rstd, mean = ctx.saved_tensors
            return kernels.layernorm_bwd(x, weight.float(), dy, rstd, mean)

    def forward(case: Case, i: Inputs) -> Tensor:
        if case.op == "rms":
            return _followed(case, kernels.rmsnorm(i.x, i.weight, eps=EPS), i)
        return _followed(case, LayerNorm.apply(i.x, i.weight, i.bias), i)

    return Provider("quack", bound(forward), _is_rows)


def _flag_gems() -> Provider:
    flag_gems = importlib.import_module("flag_gems")
    names = ["layer_norm", "layer_norm_backward", "group_norm", "group_norm_backward"]

    def served(case: Case) -> bool:
        return case.op in ("ln", "gn")

    return Provider(
        "flag_gems", bound(eager), served, setting=lambda: flag_gems.use_gems(include=names)
    )


FACTORIES: dict[str, Callable[[], Provider]] = {
    "fastnorm": lambda: Provider("fastnorm", bound(ours)),
    "fastnorm-coop": _cooperative,
    "eager": lambda: Provider("eager", bound(eager), checked=False),
    "compile": _compiled,
    "liger": _liger,
    "quack": _quack,
    "cudnn": _cudnn,
    "flag_gems": _flag_gems,
}
DEFAULT = tuple(name for name in FACTORIES if name != "fastnorm-coop")


def load(names: Iterable[str]) -> list[Provider]:
    """The providers that run here, in FACTORIES' order, ours first; prints why others do not."""
    found = []
    for name in FACTORIES:
        if name in names:
            try:
                found.append(FACTORIES[name]())
            except Exception as error:  # the import of a foreign package can raise anything
                print(f"without {name}: {type(error).__name__}: {error}")
    return found
