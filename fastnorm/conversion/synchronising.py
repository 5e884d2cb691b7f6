"""Gives batch norms the statistics of a process group, in place, as `convert` exchanges norms."""

import warnings
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from .. import modules as ours
from ..checks import check_model
from ..modules.base import _Activated
from ..modules.batch_instance import _BatchInstanceNorm
from ..modules.switchable import _SwitchableNorm
from ..modules.synchronised import _Synchronised
from .converting import BATCH_INSTANCE_NORMS, BATCH_NORMS, OURS, own_ways, reason_to_keep
from .report import Kept, label, type_name

SYNCHRONISED: dict[type[nn.Module], type[_Synchronised]] = {
    **dict.fromkeys(BATCH_NORMS, ours.SyncBatchNorm),
    **dict.fromkeys((OURS[kind] for kind in BATCH_NORMS), ours.SyncBatchNorm),
    **dict.fromkeys(BATCH_INSTANCE_NORMS, ours.SyncBatchInstanceNorm),
}
# A subclass that only adds a constructor may have these attributes besides it.
UNSAID = ("__module__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__")


def convert_sync_batchnorm(module: nn.Module, process_group: Any = None) -> nn.Module:
    """Make every batch norm in `module`, fastnorm's or torch.nn's, a `SyncBatchNorm`; in place.

    Batch-instance norms become `SyncBatchInstanceNorm`, and switchable norms synchronise their
    batch's part. Each remains the same object with the same parameters, buffers, hooks (pruning's
    too), attributes and training flag; our norms keep their activation. A subclass that adds only
    a constructor is converted as well. Norms without statistics of the batch stay as they are.

    Some batch norms differ from their class: a subclass with methods, an instance with its own
    forward, a parametrized or lazy norm. They stay as they are, with each process's statistics;
    a UserWarning names them and the reasons. Returns `module`. Raises TypeError if it is no module.
    """
    check_model("convert_sync_batchnorm", module)
    planned: list[tuple[nn.Module, type[nn.Module]]] = []
    kept: list[Kept] = []
    for name, norm in module.named_modules():
        if isinstance(norm, _Synchronised) or (isinstance(norm, _SwitchableNorm) and norm.using_bn):
            planned.append((norm, type(norm)))
        elif isinstance(norm, TorchBatchNorm | _BatchInstanceNorm):
            kind = plain_kind(type(norm))
            reason = own_ways(norm) if kind in SYNCHRONISED else reason_to_keep(norm)
            if reason:
                kept.append(Kept(name, type_name(type(norm)), reason))
            else:
                planned.append((norm, SYNCHRONISED[kind]))
    for norm, kind in planned:
        if isinstance(norm, _SwitchableNorm):
            norm.synchronised = True
        elif not isinstance(norm, _Activated):
            vars(norm)["activation"] = None
        norm.__class__ = kind
        vars(norm)["process_group"] = process_group
    if kept:
        which = "; ".join(f"{label(k.name)}, {k.type}: {k.reason}" for k in kept)
        warnings.warn(
            f"convert_sync_batchnorm left norms with the statistics of each process: {which}",
            stacklevel=2,
        )
    return module


def plain_kind(kind: type[nn.Module]) -> type[nn.Module]:
    """The norm class that `kind` is, or that it extends by only a constructor."""
    while kind not in SYNCHRONISED and not issubclass(kind, LazyModuleMixin):
        added = [name for name in vars(kind) if name not in (*UNSAID, "__init__")]
        if added or len(kind.__bases__) != 1:
            break
        kind = kind.__bases__[0]
    return kind
