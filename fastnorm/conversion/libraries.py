"""Finds the norms of libraries by the names of their classes. Imports nothing, and tries each norm.

The name of a class says which of our norms it may be, and its attributes give the settings. Both
norms are then run to see whether they compute the same: a library may change a class's code.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from .. import modules as ours
from ..modules.base import _Activated
from .activations import activation_of, has_hooks
from .adaptive import Adaptive, RMSNormInWeightDtype
from .origin import settings_of
from .report import Rounding, type_name
from .trial import Differs, check_dtype, check_formula

Reader = Callable[[Any], nn.Module]
EPS = ("eps", "variance_epsilon", "epsilon")
SHAPE = ("normalized_shape", "dim")
# timm has its own classes for some activations of torch.nn.
ACTIVATIONS = {
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Mish": "mish",
    "timm.layers.activations.HardSwish": "hardswish",
}


class Unreadable(Exception):
    """Its message is the reason why a module is kept."""


class NoNorm(Exception):
    """A module with a norm's name that is built from other modules."""


class Taken(NamedTuple):
    """Our norm for a module: itself, or for a library's module a norm with its tensors."""

    norm: nn.Module
    rounding: Rounding | None


def layer_norm(module: Any) -> _Activated:
    return _of_rows(module, ours.LayerNorm)


def layer_norm_2d(module: Any) -> _Activated:
    return _of_rows(module, ours.LayerNorm2d)


def zero_centered_layer_norm(module: Any) -> _Activated:
    """VideoPrism's: the factor is 1 + weight."""
    return _of_rows(module, ours.LayerNorm, zero_centered=True)


def rms_norm(module: Any) -> _Activated:
    return _of_rows(module, ours.RMSNorm)


def rms_norm_in_weight_dtype(module: Any) -> nn.Module:
    """For T5 and diffusers."""
    return _of_rows(module, RMSNormInWeightDtype)


def zero_centered_rms_norm(module: Any) -> _Activated:
    """Gemma's: the factor is 1 + weight."""
    return _of_rows(module, ours.RMSNorm, zero_centered=True)


def gated_rms_norm(module: Any, norm_before_gate: bool = False) -> nn.Module:
    """Mamba-2's; in transformers an attribute gives the size or the number of groups."""
    (width,) = module.weight.shape
    group_size = getattr(module, "group_size", None)
    if hasattr(module, "n_groups"):
        group_size = width // module.n_groups
    return ours.GatedRMSNorm(
        width, _eps(module), group_size=group_size, norm_before_gate=norm_before_gate, device="meta"
    )


def norm_before_gate(module: Any) -> nn.Module:
    """For Qwen3-Next."""
    return gated_rms_norm(module, norm_before_gate=True)


def group_norm(module: Any) -> _Activated:
    return ours.GroupNorm(
        module.num_groups, module.num_channels, module.eps, module.affine, device="meta",
        bias=module.bias is not None, activation=_activation(module),
    )  # fmt: skip


def batch_norm_2d(module: Any) -> _Activated:
    return ours.BatchNorm2d(
        module.num_features, module.eps, module.momentum, module.affine,
        module.track_running_stats, device="meta", bias=module.bias is not None,
        activation=_activation(module),
    )  # fmt: skip


def adaptive(kind: type[Adaptive]) -> Reader:
    """A reader that takes the module as `kind`, with a norm of ours for its child `norm`."""

    def read_as(module: Any) -> nn.Module:
        twin = object.__new__(kind)
        vars(twin).update(vars(module))
        vars(twin)["_modules"] = dict(module._modules)
        if "norm" in module._modules:
            twin._modules["norm"] = _norm_inside(module.norm)
        return twin

    return read_as


def _norm_inside(child: nn.Module) -> nn.Module:
    """Our layer or RMS norm for a module's child; the child is converted on its own."""
    if "forward" in vars(child) or has_hooks(child):
        raise Unreadable("its norm has hooks or another forward")
    if type(child) in (ours.LayerNorm, ours.RMSNorm, RMSNormInWeightDtype):
        return child
    if type(child) is nn.LayerNorm:
        norm = object.__new__(ours.LayerNorm)
        vars(norm).update(vars(child), activation=None)
        return norm
    taken = read(child)
    if not isinstance(taken, Taken):
        raise Unreadable(f"its norm is kept: {taken or type_name(type(child))}")
    return taken.norm


RMS_NORMS = (rms_norm, rms_norm_in_weight_dtype, zero_centered_rms_norm)
TRANSFORMERS = r"transformers\.models\.\w+\.modeling_\w+\.\w*"
# A pattern for the qualified names of classes, and our norms that may fit. The first one that
# computes the same is taken.
LIBRARIES: dict[str, tuple[Reader, ...]] = {
    rf"{TRANSFORMERS}(RMSNorm|RmsNorm)": RMS_NORMS,
    rf"{TRANSFORMERS}RMSNormGated": (gated_rms_norm, norm_before_gate),
    rf"{TRANSFORMERS}LayerNorm(2d)?": (
        layer_norm, layer_norm_2d, zero_centered_layer_norm, *RMS_NORMS,
    ),
    rf"{TRANSFORMERS}GroupNorm": (group_norm,),
    r"torchvision\.models\.convnext\.LayerNorm2d": (layer_norm_2d,),
    r"timm\.layers\.norm\.LayerNorm(Fp32)?": (layer_norm,),
    r"timm\.layers\.norm\.LayerNorm(2d|2dFp32|Exp2d)": (layer_norm_2d,),
    r"timm\.layers\.norm\.RmsNorm(Fp32)?": (rms_norm,),
    r"timm\.layers\.norm\.GroupNorm1?": (group_norm,),
    r"timm\.layers\.norm_act\.LayerNormAct(Fp32)?": (layer_norm,),
    r"timm\.layers\.norm_act\.LayerNormAct2d(Fp32)?": (layer_norm_2d,),
    r"timm\.layers\.norm_act\.RmsNormAct(Fp32)?": (rms_norm,),
    r"timm\.layers\.norm_act\.GroupNorm1?Act": (group_norm,),
    r"timm\.layers\.norm_act\.BatchNormAct2d": (batch_norm_2d,),
    r"timm\.models\.\w+\.(Layer|Group)Norm\w*": (layer_norm, layer_norm_2d, group_norm),
    r"diffusers\.models\.normalization\.(FP32)?LayerNorm": (layer_norm,),
    r"diffusers\.[\w.]+\.(\w*RMSNorm|T5LayerNorm)": RMS_NORMS,
    r"diffusers\.[\w.]+\.(SDCascade|Wuerstchen)LayerNorm": (layer_norm_2d,),
    **{
        rf"diffusers\.models\.normalization\.{kind.__name__}": (adaptive(kind),)
        for kind in Adaptive.__subclasses__()
    },
}  # fmt: skip


def readers_of(kind: type) -> tuple[Reader, ...]:
    """The norms of ours that a class may be, by its name; none for an unknown class."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    return next((r for pattern, r in LIBRARIES.items() if re.fullmatch(pattern, name)), ())


def read(module: nn.Module) -> Taken | str | None:
    """Our norm for the module, or the reason to keep it; None if its class is not known."""
    reasons = []
    for reader in readers_of(type(module)):
        try:
            norm = reader(module)
            _check_state(module, norm)
            check_formula(module, norm)
        except NoNorm:
            return None
        except AttributeError as error:
            reasons.append(f"it lacks an attribute that fastnorm reads: {error}")
        except (Unreadable, Differs) as error:
            reasons.append(str(error))
        else:
            try:
                return Taken(norm, check_dtype(module, norm))
            except Differs as error:
                return str(error)
    return reasons[0] if reasons else None


def _of_rows(module: nn.Module, kind: type[Any], **options: Any) -> ours.LayerNorm | ours.RMSNorm:
    if module._modules and not module._parameters and "act" not in module._modules:
        raise NoNorm
    shape: Any = _shape(module)
    if kind is ours.LayerNorm2d:
        if len(shape) != 1:
            raise Unreadable(f"its normalized shape is {tuple(shape)}, not one of channels")
        (shape,) = shape
    weight, bias = (module._parameters.get(name) is not None for name in ("weight", "bias"))
    if not issubclass(kind, ours.RMSNorm):
        options["bias"] = bias
    norm: ours.LayerNorm | ours.RMSNorm = kind(
        shape, _eps(module), weight, device="meta", activation=_activation(module), **options
    )
    return norm


def _eps(module: nn.Module) -> float:
    """The module's eps; a class without that attribute mostly has torch's default."""
    return next((getattr(module, name) for name in EPS if hasattr(module, name)), 1e-5)


def _shape(module: nn.Module) -> Sequence[int]:
    """The sizes of the dimensions that a norm of rows normalises."""
    weight = module._parameters.get("weight")
    if weight is not None:
        return weight.shape
    for name in SHAPE:
        shape = getattr(module, name, None)
        if shape is not None:
            return (shape,) if isinstance(shape, int) else tuple(shape)
    raise Unreadable("it does not say over how many values it normalises")


def _activation(module: nn.Module) -> str | None:
    """The activation in the child `act` of a norm of timm's."""
    children = {name: child for name, child in module._modules.items() if child is not None}
    for name, child in children.items():
        if has_hooks(child):
            raise Unreadable(f"its {name} has hooks")
        if type(child) is nn.Identity or name == "act":
            continue
        raise Unreadable(f"it holds a module, {name}, that a norm of fastnorm's would not call")
    act = children.get("act")
    if act is None or type(act) is nn.Identity:
        return None
    activation = activation_of(act) or ACTIVATIONS.get(type_name(type(act)))
    if activation is None:
        raise Unreadable(f"its activation {type_name(type(act))} is none that fastnorm fuses")
    return activation


def _check_state(module: nn.Module, norm: nn.Module) -> None:
    """Give `norm` the module's tensors; shapes and settings have to agree with the norm's class."""
    pairs: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        ("parameters", norm._parameters, module._parameters),
        ("buffers", norm._buffers, module._buffers),
    )
    for what, mine, theirs in pairs:
        expected, found = (
            {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
            for tensors in (mine, theirs)
        )
        if expected != found:
            raise Unreadable(
                f"its {what} are {_listed(found)}, those of fastnorm.{type(norm).__name__} "
                f"{_listed(expected)}"
            )
        mine.update({name: theirs[name] for name in found})
    for name, value in settings_of(norm).items():
        if name in vars(module) and vars(module)[name] != value:
            raise Unreadable(f"its {name} is {vars(module)[name]!r}, not {value!r}")


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"
