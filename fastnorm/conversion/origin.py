"""Turns a library's norm into one of ours and back: the same object, with all its attributes."""

from typing import Any, NamedTuple

from torch import nn

from .report import type_name

ATTRIBUTE = "_origin"
EVERY_MODULE = frozenset(vars(nn.Module()))


class Origin(NamedTuple):
    """The data that an adopted module keeps for the way back."""

    kind: type[nn.Module]  # the library's
    norm: type[nn.Module]  # ours
    settings: dict[str, Any]  # attributes that were added
    parameters: tuple[str, ...]  # names of parameters that were added, each None


def settings_of(norm: nn.Module) -> dict[str, Any]:
    """A norm's attributes besides those of every nn.Module."""
    return {key: value for key, value in vars(norm).items() if key not in EVERY_MODULE}


def adopt(module: nn.Module, norm: nn.Module) -> None:
    """Make `module` a norm of norm's class that computes with module's own tensors."""
    own = vars(module)
    settings = {key: value for key, value in settings_of(norm).items() if key not in own}
    named = {*own, *module._parameters}
    parameters = tuple(key for key in norm._parameters if key not in named)
    own.update(settings)
    module._parameters.update(dict.fromkeys(parameters))
    own[ATTRIBUTE] = Origin(type(module), type(norm), settings, parameters)
    module.__class__ = type(norm)


def origin_of(module: nn.Module) -> Origin | None:
    """The origin of an adopted module, unless its class was changed since."""
    origin: Origin | None = vars(module).get(ATTRIBUTE)
    return origin if origin is not None and type(module) is origin.norm else None


def reason_not_to_release(module: nn.Module, origin: Origin, fused: bool) -> str | None:
    """Why the library's class would compute something else; `fused`: the activation is dropped."""
    for key, value in origin.settings.items():
        if vars(module).get(key, value) != value and not (fused and key == "activation"):
            return f"its {key} was {value!r} when it was a {type_name(origin.kind)}; set it back"
    for key in origin.parameters:
        if module._parameters.get(key) is not None:
            return f"it got a {key}, which {type_name(origin.kind)} does not have"
    return None


def release(module: nn.Module, origin: Origin) -> None:
    """Undo `adopt`."""
    for key in (*origin.settings, ATTRIBUTE):
        vars(module).pop(key, None)
    for key in origin.parameters:
        module._parameters.pop(key, None)
    module.__class__ = origin.kind
