"""The report of a conversion: which modules changed, which stayed and why."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

ADAPTIVE = "fastnorm.conversion.adaptive"


class Change(NamedTuple):
    """A module of qualified `name` that was an `old` and is now a `new`."""

    name: str
    old: str
    new: str


class Kept(NamedTuple):
    """A module of qualified `name` that looked like a candidate but stayed a `type`."""

    name: str
    type: str
    reason: str


class Rounding(NamedTuple):
    """How far two norms are from float64 in half precision: root mean square of the difference."""

    dtype: torch.dtype
    theirs: float
    ours: float


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`, `fuse` or `revert`: the model, and a line for each module concerned.

    `str()` of it is a table. A module that appears several times in the model has one line, under
    its first name; the model itself is called "(model)". For each class of a library, `notes` says
    how results in half precision were rounded before and how they are now.
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
    """A qualified name for printing; the model's own name is empty."""
    return name or "(model)"


def type_name(cls: type) -> str:
    """The class as users write it, or with its module if users do not create it."""
    module = cls.__module__
    for package in ("torch.nn", "fastnorm"):
        if module.startswith(f"{package}.") and module != ADAPTIVE:
            module = package
    return f"{module}.{cls.__qualname__}"


def notes(roundings: Iterable[tuple[type, Rounding]]) -> list[str]:
    """A sentence for each class and half-precision dtype that our norm rounds differently.

    It describes the module that was farthest from float64. Differences up to a twentieth do not
    count: two random samples differ as much.
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
