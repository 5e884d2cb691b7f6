"""The activations that a norm can end with: names, parameters, formulas.

    relu, silu, gelu, gelu_tanh, hardswish, mish
    leaky_relu(slope), elu(alpha)

A parameter is given with the name, as "leaky_relu(0.2)", ("leaky_relu", 0.2) or
Activation("leaky_relu", 0.2); without one, torch's default is taken. The code behind the public
functions and modules uses only the first form, a string that names one activation exactly.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN = ("relu", "silu", "gelu", "gelu_tanh", "hardswish", "mish")
DEFAULTS = {"leaky_relu": 0.01, "elu": 1.0}
NAMES = (*PLAIN, *DEFAULTS)
WITH_MASK = ("relu", "leaky_relu")  # their backward needs only one bit for each element


class Activation(NamedTuple):
    """An activation and its parameter: leaky_relu's slope, elu's alpha; 0 for others."""

    name: str
    parameter: float = 0.0


ActivationLike = str | tuple[str, float] | None
"""How a caller names an activation; an Activation is such a tuple."""


def canonical(activation: ActivationLike, op: str) -> str | None:
    """The activation as a string: "leaky_relu" is "leaky_relu(0.01)".

    Raises ValueError, in the name of `op`, for anything else.
    """
    if activation is None or (type(activation) is str and activation in PARSED):
        return activation
    try:
        found = _read(activation)
    except (TypeError, ValueError):
        raise ValueError(
            f"{op} got activation={activation!r}: choose None or one of {', '.join(NAMES)}; "
            f"{' and '.join(DEFAULTS)} take a finite number, as in ('leaky_relu', 0.2)"
        ) from None
    name = f"{found.name}({found.parameter!r})"
    PARSED[name] = found
    return name


def _read(activation: object) -> Activation:
    """An activation with a parameter. Raises TypeError or ValueError for anything else."""
    if isinstance(activation, str):
        name, opening, rest = activation.partition("(")
        if opening and not rest.endswith(")"):
            raise ValueError(activation)
        parameter = float(rest[:-1]) if opening else DEFAULTS.get(name)
    elif isinstance(activation, tuple) and len(activation) == 2:
        name, parameter = activation
    else:
        raise TypeError(activation)
    if name not in DEFAULTS or isinstance(parameter, str) or parameter is None:
        raise ValueError(activation)
    if not math.isfinite(float(parameter)):
        raise ValueError(activation)
    return Activation(name, float(parameter))


# What each result of `canonical` means. Not functools.cache: compilers warn about it.
PARSED: dict[str | None, Activation] = {None: Activation(""), **{n: Activation(n) for n in PLAIN}}


def parsed(activation: str | None) -> Activation:
    """The name ("" for None) and the parameter of a result of `canonical`."""
    found = PARSED.get(activation)
    return _read(activation) if found is None else found


def activate(z: Tensor, activation: str | None) -> Tensor:
    """act(z) by torch's functions, differentiable; z is the norm plus the residual."""
    name, parameter = parsed(activation)
    match name:
        case "":
            return z
        case "gelu_tanh":
            return F.gelu(z, approximate="tanh")
        case "leaky_relu":
            return F.leaky_relu(z, parameter)
        case "elu":
            return F.elu(z, parameter)
    found: Tensor = getattr(F, name)(z)
    return found


def masked(dy: Tensor, mask: Tensor, activation: str | None) -> Tensor:
    """dy * act'(z) of an activation in WITH_MASK; the forward kept the mask of z as booleans."""
    name, slope = parsed(activation)
    return torch.where(mask, dy, 0.0 if name == "relu" else dy * slope)
