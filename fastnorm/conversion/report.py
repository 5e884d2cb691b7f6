"""What a conversion did to a model: which modules changed, which stayed and why."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

ADAPTIVE = "fastnorm.conversion.adaptive"


class Change(NamedTuple):
    """A module of qualified `name` that was `old` and is `new` now."""

    name: str
    old: str
    new: str


class Kept(NamedTuple):
    """A module of qualified `name` that looked like a candidate and stayed a `type`."""

    name: str
    type: str
    reason: str


class Rounding(NamedTuple):
    """How far two norms are from float64 in half precision: root mean squares of the outputs."""

    dtype: torch.dtype
    theirs: float
    ours: float


@dataclass(frozen=True)
class Conversion:
    """The model that `convert`, `fuse` or `revert` answers, and a line for each module of concern.

    `str()` of it is a table. A module that appears several times in the model has one line, under
    its first name; the model itself is called "(model)". `notes` says how results in half precision
    were rounded before and are now, for each class of a library.
    """

    model: nn.Module = field(repr=False)
    changed: list[Change]
    kept: list[Kept]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(name, f"{old} -> {new}") for name, old, new in self.changed]
        rows += [(name, f"{kind} kept: {reason}") for name, kind, reason in self.kept]
        width = max((len(label(name)) for name, _ in rows), default=0)
        head = f"{len(self.changed)} changed, {len(self.kept)} kept"
        lines = [f"  {label(name):{width}}  {what}" for name, what in rows]
        return "\n".join([head, *lines, *self.notes])


def label(name: str) -> str:
    """A qualified name to print: the model's own is empty."""
    return name or "(model)"


def type_name(cls: type) -> str:
    """The class as its users spell it, or by its module where it is not theirs to make."""
    module = cls.__module__
    for package in ("torch.nn", "fastnorm"):
        if module.startswith(f"{package}.") and module != ADAPTIVE:
            module = package
    return f"{module}.{cls.__qualname__}"


def notes(roundings: Iterable[tuple[type, Rounding]]) -> list[str]:
    """A sentence for each class and half-precision dtype that ours rounds otherwise.

    It tells of the module that was farthest from float64. A twentieth is no difference: that much
    two samples have.
    """
    worst: dict[tuple[type, torch.dtype], Rounding] = {}
    for kind, rounding in roundings:
        former = worst.setdefault((kind, rounding.dtype), rounding)
        if rounding.theirs > former.theirs:
            worst[kind, rounding.dtype] = rounding
    return [
        f"{type_name(kind)} in {dtype}: results change by rounding; root mean square off float64 "
        f"{theirs:.1e} before, {mine:.1e} after"
        for (kind, dtype), (_, theirs, mine) in worst.items()
        if abs(theirs - mine) > 0.05 * mine
    ]
