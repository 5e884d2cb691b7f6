"""Tries a library's norm and ours on small random inputs: do they compute the same?

Both run as they would in the model, on the module's device: the library's by its class's forward,
ours by the backend in use. Both run on stand-ins with random parameters and buffers, so hooks do
not run and nothing in the model is written.
"""

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import modules as ours
from ..tensors import HALF
from .adaptive import Adaptive, Draw
from .report import Rounding, type_name

TOLERANCE = 1e-5  # for float32 and float64: some libraries compute float64 in float32
ULPS = 4  # for half precision: some libraries round twice


class Differs(Exception):
    """Its message is the reason why a module is kept."""


def check_formula(module: nn.Module, norm: nn.Module) -> None:
    """Raises Differs if `module` and `norm` compute different things, or cannot be compared.

    It compares outputs, all gradients and buffers in float32: once for values of about 1, and once
    for values so small that eps matters. Batch norms are compared in training too; other modules
    could differ there by dropout. It also compares the dtypes of outputs in mixed precision.
    """
    _check_signature(type(module), norm)
    modes = (True, False) if isinstance(norm, _BatchNorm) else (False,)
    with _comparing(module, norm) as (_, device):
        for training in modes:
            for scale in (1.0, small(norm)):
                _compare(module, norm, _Sample(norm, scale, torch.float32, device, training))
        if isinstance(norm, ours.GatedRMSNorm):
            sample = _Sample(norm, 1.0, torch.float32, device, False)
            _compare_without_gate(module, norm, sample)
        elif not isinstance(norm, Adaptive):
            sample = _Sample(norm, 1.0, torch.bfloat16, device, False)
            _compare_dtypes(module, norm, sample)


def check_dtype(module: nn.Module, norm: nn.Module) -> Rounding | None:
    """The same in the dtype of module's parameters, if that is not float32.

    Returns how the two round if that is half precision. Raises Differs as above.
    """
    with _comparing(module, norm) as (dtype, device):
        if dtype == torch.float32:
            return None
        sample = _Sample(norm, 1.0, dtype, device, False)
        _compare(module, norm, sample)
        if dtype not in HALF:
            return None
        return _rounding(module, norm, sample)


@contextlib.contextmanager
def _comparing(module: nn.Module, norm: nn.Module) -> Iterator[tuple[torch.dtype, torch.device]]:
    """The dtype and device for the comparison; any exception of a forward becomes Differs."""
    own = next(module.parameters(), None)
    dtype = torch.float32 if own is None else own.dtype
    device = torch.device("cpu") if own is None or own.is_meta else own.device
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield dtype, device
    except Differs:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [""]
        raise Differs(
            f"it could not be compared with {type_name(type(norm))}: "
            f"{type(error).__name__}: {lines[0]}"
        ) from error


def small(norm: Any) -> float:
    """A scale for values: their variance is then about eps."""
    eps: float = norm.eps if hasattr(norm, "eps") else norm.norm.eps
    return (eps or 1e-6) ** 0.5


def arguments_of(norm: Any, draw: Draw) -> tuple[Any, ...]:
    """The arguments to try a norm with."""
    if isinstance(norm, Adaptive):
        return norm.trial_arguments(draw)
    if isinstance(norm, ours.LayerNorm2d):
        return (draw(4, *norm.normalized_shape, 2, 3),)
    if isinstance(norm, ours.GatedRMSNorm):
        return draw(4, 3, norm.hidden_size), draw(4, 3, norm.hidden_size)
    if isinstance(norm, ours.LayerNorm | ours.RMSNorm):
        return (draw(4, 3, *norm.normalized_shape),)
    channels = norm.num_channels if isinstance(norm, ours.GroupNorm) else norm.num_features
    return (draw(4, channels, 2, 3),)


def _check_signature(kind: type[nn.Module], norm: nn.Module) -> None:
    """A norm's forward has to take one input; a gated or adaptive one also our norm's others."""
    found, mine = (
        list(inspect.signature(k.forward).parameters.values())[1:] for k in (kind, type(norm))
    )
    several = isinstance(norm, Adaptive | ours.GatedRMSNorm)
    beside, expected = ([p.name for p in parameters[1:]] for parameters in (found, mine))
    same = len(found) > 0 and beside == (expected if several else [])
    if not same or any(p.kind > inspect.Parameter.POSITIONAL_OR_KEYWORD for p in found):
        raise Differs(f"its forward takes other arguments: {', '.join(map(str, found))}")


class _Sample:
    """Random values for a norm's arguments, parameters and buffers, and for output gradients."""

    def __init__(
        self,
        norm: nn.Module,
        scale: float,
        dtype: torch.dtype,
        device: torch.device,
        training: bool,
    ) -> None:
        self.training = training
        self._generator = torch.Generator().manual_seed(0)
        self._place: dict[str, Any] = {"device": device, "dtype": dtype}
        x, *others = arguments_of(norm, self._random)
        self.arguments = [(x + 0.5) * scale, *others]
        tensors = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
        self.tensors = {name: self._like(tensor) for name, tensor in tensors.items()}

    def _random(self, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return values.to(**self._place)

    def _like(self, tensor: Tensor) -> Tensor:
        """Positive vectors of about 1, as weights and variances; matrices that keep the scale."""
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=self._place["device"])
        if tensor.dim() > 1:
            return self._random(*tensor.shape) / tensor.shape[-1] ** 0.5
        return self._random(*tensor.shape).abs().clamp(max=2) / 2 + 0.5

    def to(self, dtype: torch.dtype) -> "_Sample":
        """The same values in another dtype."""
        other = object.__new__(_Sample)
        vars(other).update(vars(self))
        other.arguments = [_cast(argument, dtype) for argument in self.arguments]
        other.tensors = {name: _cast(tensor, dtype) for name, tensor in self.tensors.items()}
        return other


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor in this dtype if `value` is a floating-point one; the dtype if it is a dtype."""
    if isinstance(value, torch.dtype):
        return dtype
    return value.to(dtype) if _is_floating(value) else value


def _stand_in(module: nn.Module, sample: _Sample, prefix: str = "") -> nn.Module:
    """A module like it, with the sample's tensors instead of its own."""
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    parameters, buffers = (
        {
            name: None if old is None else sample.tensors[prefix + name].clone()
            for name, old in tensors.items()
        }
        for tensors in (module._parameters, module._buffers)
    )
    vars(twin)["_parameters"] = {
        name: None if tensor is None else nn.Parameter(tensor)
        for name, tensor in parameters.items()
    }
    children = {
        name: None if child is None else _stand_in(child, sample, f"{prefix}{name}.")
        for name, child in module._modules.items()
    }
    vars(twin).update(_buffers=buffers, _modules=children, training=sample.training)
    return twin


def _outputs(module: nn.Module, sample: _Sample, arguments: Sequence[Any]) -> list[Tensor]:
    """The stand-in's outputs, without hooks."""
    y = type(module).forward(module, *arguments)
    outputs = list(y) if isinstance(y, tuple) else [y]
    if not all(isinstance(output, Tensor) for output in outputs):
        raise Differs(f"its output is a {type(y).__name__}")
    return outputs


def _results(module: nn.Module, sample: _Sample) -> dict[str, Tensor | None]:
    """Outputs, gradients and buffers after a forward and a backward."""
    twin = _stand_in(module, sample)
    arguments = [
        value.clone().requires_grad_() if _is_floating(value) else value
        for value in sample.arguments
    ]
    outputs = _outputs(twin, sample, arguments)
    generator = torch.Generator().manual_seed(1)
    dys = [torch.randn(y.shape, generator=generator, device="cpu").to(y) for y in outputs]
    leaves = {f"input {i}": x for i, x in enumerate(arguments) if _is_floating(x)}
    leaves |= dict(twin.named_parameters())
    grads = torch.autograd.grad(outputs, list(leaves.values()), dys, allow_unused=True)
    found: dict[str, Tensor | None] = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    found |= {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return found | dict(twin.named_buffers())


def _compare(module: nn.Module, norm: nn.Module, sample: _Sample) -> None:
    expected, found = _results(module, sample), _results(norm, sample)
    other = f"computes something else than {type_name(type(norm))}"
    if expected.keys() != found.keys():
        raise Differs(f"{other}: it has {', '.join(expected)}")
    dtype = sample.arguments[0].dtype
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


def _compare_without_gate(module: nn.Module, norm: nn.Module, sample: _Sample) -> None:
    del sample.arguments[1:]
    try:
        _results(module, sample)
    except Exception:  # it needs a gate
        return
    _compare(module, norm, sample)


def _compare_dtypes(module: nn.Module, norm: nn.Module, sample: _Sample) -> None:
    """With parameters in half precision and a float32 input, as happens in mixed precision."""
    arguments = [x.float() for x in sample.arguments]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's RMS norm warns about mixed dtypes
        try:
            theirs = _outputs(_stand_in(module, sample), sample, arguments)
        except RuntimeError:  # torch's norms do not take mixed dtypes
            return
        mine = _outputs(_stand_in(norm, sample), sample, arguments)
    if theirs[0].dtype != mine[0].dtype:
        raise Differs(
            f"with parameters in {sample.arguments[0].dtype} it answers a float32 input in "
            f"{theirs[0].dtype}, {type_name(type(norm))} in {mine[0].dtype}"
        )


def _rounding(module: nn.Module, norm: nn.Module, sample: _Sample) -> Rounding:
    wide = sample.to(torch.float64)
    with torch.no_grad():
        exact, theirs, mine = (
            _outputs(_stand_in(m, s), s, s.arguments)[0].double()
            for m, s in ((norm, wide), (module, sample), (norm, sample))
        )
    scale = exact.norm()
    errors = [((y - exact).norm() / scale).item() for y in (theirs, mine)]
    return Rounding(sample.arguments[0].dtype, *errors)
