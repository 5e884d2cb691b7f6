"""A library's norm and ours tried on small random inputs: whether they compute the same.

Both run as they would in the model, on the module's device, the one by its class's forward and the
other by the backend in use; both on stand-ins that have random parameters and buffers. So hooks do
not run, and nothing of the model is written.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import modules as ours
from ..modules.base import _Activated
from ..tensors import HALF
from .report import type_name

TOLERANCE = 1e-5  # of float32 and float64, in which some libraries compute in float32
ULPS = 4  # of halves, which some libraries round twice


class Differs(Exception):
    """Its message is the reason to keep a module."""


class Rounding(NamedTuple):
    """How far two norms are from float64 in half precision: root mean squares of the outputs."""

    dtype: torch.dtype
    theirs: float
    ours: float


def try_out(module: nn.Module, norm: _Activated) -> Rounding | None:
    """Raises Differs where `module` and `norm` compute different things, or cannot be compared.

    Compared are outputs, all gradients and buffers, in float32 and in the dtype of module's
    parameters; once on values of about 1, and once on so small ones that eps matters.
    """
    _check_signature(type(module))
    own = next((p for p in module._parameters.values() if p is not None), None)
    dtype = torch.float32 if own is None else own.dtype
    device = torch.device("cpu") if own is None or own.is_meta else own.device
    modes = (True, False) if isinstance(norm, _BatchNorm) else (module.training,)
    eps: Any = norm.eps or 1e-6
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            for training in modes:
                for scale in (1.0, eps**0.5):
                    _compare(module, norm, _Sample(norm, scale, torch.float32, device, training))
            if dtype == torch.float32:
                return None
            sample = _Sample(norm, 1.0, dtype, device, module.training)
            _compare(module, norm, sample)
            if dtype not in HALF:
                return None
            _compare_dtypes(module, norm, sample)
            return _rounding(module, norm, sample)
    except Differs:
        raise
    except Exception as error:  # whatever a forward may raise
        lines = str(error).splitlines() or [""]
        raise Differs(
            f"it could not be compared with {type_name(type(norm))}: "
            f"{type(error).__name__}: {lines[0]}"
        ) from error


def _check_signature(kind: type[nn.Module]) -> None:
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
    if len(parameters) != 1 or parameters[0].kind > inspect.Parameter.POSITIONAL_OR_KEYWORD:
        names = ", ".join(str(p).split(":")[0] for p in parameters)
        raise Differs(f"its forward takes other arguments than one input: {names}")


class _Sample:
    """Random values for a norm's input, output gradient, parameters and buffers."""

    def __init__(
        self, norm: Any, scale: float, dtype: torch.dtype, device: torch.device, training: bool
    ) -> None:
        self.training = training
        self._generator = torch.Generator().manual_seed(0)
        self._place: dict[str, Any] = {"device": device, "dtype": dtype}
        shape = input_shape(norm)
        self.x = self._random(shape, scale, 0.5 * scale)
        self.dy = self._random(shape, 1.0, 0.0)
        tensors = {**norm._parameters, **norm._buffers}
        self.tensors = {
            name: self._positive(tensor) for name, tensor in tensors.items() if tensor is not None
        }

    def _random(self, shape: Sequence[int], scale: float, mean: float) -> Tensor:
        values = torch.randn(*shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return (values * scale + mean).to(**self._place)

    def _positive(self, like: Tensor) -> Tensor:
        """Of about 1, as weights and variances are, and none of them like another."""
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype, device=self._place["device"])
        values = torch.rand(
            like.shape, generator=self._generator, dtype=torch.float64, device="cpu"
        )
        return (values + 0.5).to(**self._place)

    def to(self, dtype: torch.dtype) -> "_Sample":
        """The same values in another dtype."""
        other = object.__new__(_Sample)
        vars(other).update(vars(self))
        other.x, other.dy = self.x.to(dtype), self.dy.to(dtype)
        other.tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.tensors.items()
        }
        return other


def input_shape(norm: Any) -> tuple[int, ...]:
    if isinstance(norm, ours.LayerNorm2d):
        return (4, *norm.normalized_shape, 2, 3)
    if isinstance(norm, ours.LayerNorm | ours.RMSNorm):
        return (4, 3, *norm.normalized_shape)
    channels = norm.num_channels if isinstance(norm, ours.GroupNorm) else norm.num_features
    return (4, channels, 2, 3)


def _stand_in(module: nn.Module, sample: _Sample) -> nn.Module:
    """A module like it, with the sample's tensors for its own."""
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    tensors = {name: tensor.clone() for name, tensor in sample.tensors.items()}
    parameters = {
        name: None if old is None else nn.Parameter(tensors[name])
        for name, old in module._parameters.items()
    }
    buffers = {
        name: None if old is None else tensors[name] for name, old in module._buffers.items()
    }
    vars(twin).update(_parameters=parameters, _buffers=buffers, training=sample.training)
    return twin


def _results(module: nn.Module, sample: _Sample) -> dict[str, Tensor | None]:
    """Output, gradients and buffers after a forward and a backward, without hooks."""
    twin = _stand_in(module, sample)
    x = sample.x.clone().requires_grad_()
    y = type(twin).forward(twin, x)
    if not isinstance(y, Tensor):
        raise Differs(f"its output is a {type(y).__name__}")
    names, parameters = zip(*[("input", x), *twin.named_parameters(recurse=False)], strict=True)
    grads = torch.autograd.grad(y, parameters, sample.dy, allow_unused=True)
    found: dict[str, Tensor | None] = {"output": y.detach()}
    found |= {f"gradient of its {n}": g for n, g in zip(names, grads, strict=True)}
    return found | dict(twin.named_buffers(recurse=False))


def _compare(module: nn.Module, norm: _Activated, sample: _Sample) -> None:
    expected, found = _results(module, sample), _results(norm, sample)
    other = f"computes something else than {type_name(type(norm))}"
    dtype = sample.x.dtype
    tolerance = ULPS * torch.finfo(dtype).eps if dtype in HALF else TOLERANCE
    for name, theirs in expected.items():
        mine = found[name]
        if theirs is None or mine is None:
            if theirs is not mine:
                raise Differs(f"{other}: one of them has no {name}")
            continue
        if theirs.dtype != mine.dtype or theirs.shape != mine.shape:
            raise Differs(
                f"{other}: its {name} is {theirs.dtype} {tuple(theirs.shape)}, not {mine.dtype} "
                f"{tuple(mine.shape)}"
            )
        error = (mine.double() - theirs.double()).abs().max().item()
        scale = theirs.double().abs().max().item()
        if not error <= tolerance * scale:
            raise Differs(
                f"{other}: in {dtype} its {name} differs by {error / (scale or 1.0):.0e} of the "
                "largest value"
            )


def _compare_dtypes(module: nn.Module, norm: _Activated, sample: _Sample) -> None:
    """Of parameters in half precision and a float32 input, as they meet in mixed precision."""
    with torch.no_grad():
        try:
            theirs = type(module).forward(_stand_in(module, sample), sample.x.float())
        except RuntimeError:  # torch's norms on CPUs take no such pair
            return
    if theirs.dtype != torch.float32:
        raise Differs(
            f"with parameters in {sample.x.dtype} it answers a float32 input in {theirs.dtype}, "
            f"fastnorm's {type(norm).__name__} in float32"
        )


def _rounding(module: nn.Module, norm: _Activated, sample: _Sample) -> Rounding:
    with torch.no_grad():
        wide = sample.to(torch.float64)
        exact = type(norm).forward(_stand_in(norm, wide), wide.x)
        errors = [
            (type(m).forward(_stand_in(m, sample), sample.x).double() - exact).norm() / exact.norm()
            for m in (module, norm)
        ]
    return Rounding(sample.x.dtype, errors[0].item(), errors[1].item())


def notes(roundings: Iterable[tuple[type, Rounding]]) -> list[str]:
    """A sentence for each class and half-precision dtype, of the module farthest from float64."""
    worst: dict[tuple[type, torch.dtype], Rounding] = {}
    for kind, rounding in roundings:
        former = worst.setdefault((kind, rounding.dtype), rounding)
        if rounding.theirs > former.theirs:
            worst[kind, rounding.dtype] = rounding
    return [
        f"{type_name(kind)} in {dtype}: results change by rounding; root mean square off float64 "
        f"{theirs:.2%} before, {mine:.2%} after"
        for (kind, dtype), (_, theirs, mine) in worst.items()
    ]
