"""Exchanges a model's norms in place: torch.nn's and libraries' for ours, batch norms for others.

A norm that is exchanged stays the same object: only its class changes. So everything that refers to
it or to its tensors stays valid: optimizers, hooks and their handles, modules that appear twice,
lists that a model keeps besides its tree. Everything is checked before anything is written.
"""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from .. import modules as ours
from ..checks import check_model
from ..modules.base import _Activated
from . import libraries
from .origin import ATTRIBUTE, adopt, settings_of
from .report import Change, Conversion, Kept, Rounding, label, notes, type_name

OURS: dict[type[nn.Module], type[_Activated]] = {
    nn.BatchNorm1d: ours.BatchNorm1d,
    nn.BatchNorm2d: ours.BatchNorm2d,
    nn.BatchNorm3d: ours.BatchNorm3d,
    nn.SyncBatchNorm: ours.SyncBatchNorm,
    nn.InstanceNorm1d: ours.InstanceNorm1d,
    nn.InstanceNorm2d: ours.InstanceNorm2d,
    nn.InstanceNorm3d: ours.InstanceNorm3d,
    nn.LayerNorm: ours.LayerNorm,
    nn.RMSNorm: ours.RMSNorm,
    nn.GroupNorm: ours.GroupNorm,
}
TORCHS: dict[type[nn.Module], type[nn.Module]] = {new: old for old, new in OURS.items()}
BATCH_INSTANCE_NORMS = (
    ours.BatchInstanceNorm1d,
    ours.BatchInstanceNorm2d,
    ours.BatchInstanceNorm3d,
)

BATCH_NORMS = {
    nn.BatchNorm1d: (ours.InstanceNorm1d, ours.BatchInstanceNorm1d),
    nn.BatchNorm2d: (ours.InstanceNorm2d, ours.BatchInstanceNorm2d),
    nn.BatchNorm3d: (ours.InstanceNorm3d, ours.BatchInstanceNorm3d),
    nn.SyncBatchNorm: None,  # any rank: so the rank of the instance norm is unknown
}
TARGETS = ("bn", "in", "gn", "ln", "bin")
# The attributes of torch's batch norms besides those of every nn.Module.
SETTINGS = ("num_features", "eps", "momentum", "affine", "track_running_stats", "process_group")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def convert(model: nn.Module, to: str | None = None, groups: int | None = None) -> Conversion:
    """Make a model's norms fastnorm's, in place; with `to` change the kind of its batch norms.

    It converts modules whose type is exactly torch.nn's BatchNorm, InstanceNorm (1d, 2d, 3d),
    LayerNorm, RMSNorm, GroupNorm or SyncBatchNorm. It also converts the classes of transformers,
    diffusers, timm and torchvision for norms that fastnorm has (`conversion/libraries.py`): there
    it runs both norms on small random inputs, and keeps the module if they differ. Each module
    remains the same object with the same parameters, buffers, hooks, attributes, training flag and
    `state_dict`; the model's results change only by rounding. Anything else that looks like a norm
    is left alone and listed, with the reason.

    With `to` every batch norm becomes another norm over the same channels::

        "bn"    a batch norm, as without `to`
        "in"    an instance norm without running statistics
        "gn"    a group norm of `groups` groups (default 32)
        "ln"    a group norm of one group: layer norm over (C, ...) of each image
        "bin"   a batch-instance norm that keeps the running statistics, and a new parameter rho = 1

    weight, bias, eps and the activation are kept; running statistics are dropped, except for "bin".
    The model then computes something else, and its `state_dict` has other keys. To train rho, build
    the optimizer afterwards. "in" and "bin" need positions, so they do not exchange BatchNorm1d of
    (N, C): InstanceNorm1d takes (N, C) for one instance without a batch.

    Raises ValueError and leaves the model as it was: for an unknown `to`, `groups` without "gn" or
    below 1, channels that `groups` does not divide, SyncBatchNorm with "in" or "bin". Raises
    TypeError if `model` is no module.
    """
    check_model("convert", model)
    if to is not None and to not in TARGETS:
        raise ValueError(f"convert got to={to!r}: choose None or one of {', '.join(TARGETS)}")
    if groups is not None and to != "gn":
        raise ValueError(f"convert got groups={groups} with to={to!r}: only 'gn' has groups")
    if groups is not None and groups < 1:
        raise ValueError(f"convert got groups={groups}: a group norm has at least one")
    planned, kept, roundings = _plan(model, to, groups or 32)
    changed = []
    for name, module, norm, exchanged in planned:
        old = type_name(type(module))
        if exchanged:
            _become(module, norm)
        elif type(module) in OURS:
            module.__class__ = OURS[type(module)]
            vars(module)["activation"] = None
        else:
            adopt(module, norm)
        changed.append(Change(name, old, type_name(type(module))))
    return Conversion(model, changed, kept, notes(roundings))


Plan = tuple[str, nn.Module, nn.Module, bool]


def _plan(
    model: nn.Module, to: str | None, groups: int
) -> tuple[list[Plan], list[Kept], list[tuple[type, Rounding]]]:
    """For each norm (name, module, the norm it becomes, whether its kind changes); and the rest.

    Does not change the model.
    """
    planned: list[Plan] = []
    kept: list[Kept] = []
    roundings = []
    for name, module in model.named_modules():
        taken = _recognise(module, to)
        if isinstance(taken, str):
            kept.append(Kept(name, type_name(type(module)), taken))
        elif taken is not None:
            norm, rounding = taken
            if rounding is not None:
                roundings.append((type(module), rounding))
            exchanged = _changes_kind(type(norm), to)
            if exchanged:
                norm = _exchange(name, norm, to, groups, model)
            planned.append((name, module, norm, exchanged))
    return planned, kept, roundings


def _changes_kind(kind: type, to: str | None) -> bool:
    """Whether `to` makes another kind of norm of class `kind`, which is torch's or ours."""
    return TORCHS.get(kind, kind) in BATCH_NORMS and to not in (None, "bn")


def _recognise(module: nn.Module, to: str | None) -> libraries.Taken | str | None:
    """The norm that the module is, to convert; or the reason to keep it; None if it is no norm."""
    kind = type(module)
    if libraries.readers_of(kind):
        return overridden(module) or libraries.read(module)
    if kind in OURS or _changes_kind(kind, to):
        return own_ways(module) or libraries.Taken(module, None)
    return reason_to_keep(module)


def reason_to_keep(module: nn.Module) -> str | None:
    """Why a module is not converted: it looks like a norm, but its class is not known."""
    if isinstance(module, _Activated):
        return None if is_known(module) else subclass_of(module)
    if isinstance(module, LazyModuleMixin) and isinstance(module, _NormBase):
        return "lazy: convert it after its first forward"
    bases = type(module).__mro__[1:]
    if isinstance(module, tuple(OURS)) or any(map(libraries.readers_of, bases)):
        if parametrize.is_parametrized(module):
            return "parametrized: convert it before that"
        return subclass_of(module)
    own = module._parameters or module._buffers or not module._modules  # a block has neither
    if "norm" in type(module).__name__.lower() and own:
        return "no norm of torch.nn or a library that fastnorm has"
    return None


def is_known(module: nn.Module) -> bool:
    """Whether it is known what the module does: it is a norm of ours, or a user's MomentNorm."""
    return type(module).__module__.startswith("fastnorm.") or isinstance(module, ours.MomentNorm)


def subclass_of(module: nn.Module) -> str:
    return f"a subclass of {type_name(type(module).__mro__[1])}, which may behave differently"


def own_ways(module: nn.Module) -> str | None:
    """Why this instance differs from its class, or None."""
    if reason := overridden(module):
        return reason
    if not isinstance(module, _Activated) and hasattr(module, "activation"):
        return "it has an attribute called activation"
    return None


def overridden(module: nn.Module) -> str | None:
    return "its forward is overridden in the instance" if "forward" in vars(module) else None


def _exchange(
    name: str, norm: nn.Module, to: str | None, groups: int, model: nn.Module
) -> nn.Module:
    """The norm that the batch norm `norm` becomes; parameters and kept buffers are its own."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm), "it is in BATCH_NORMS"
    C, eps = norm.num_features, norm.eps
    activation = norm.activation if isinstance(norm, _Activated) else None
    other: nn.Module
    if to in ("gn", "ln"):
        groups = groups if to == "gn" else 1
        if C % groups:
            divisors = ", ".join(str(g) for g in range(1, C + 1) if C % g == 0)
            raise ValueError(
                f"{label(name)} has {C} channels, which do not form groups={groups} groups: "
                f"choose one of {divisors}"
            )
        other = ours.GroupNorm(groups, C, eps, norm.affine, device="meta", activation=activation)
        other._parameters = dict(norm._parameters)
        return other
    ranked = BATCH_NORMS[TORCHS.get(type(norm), type(norm))]
    if ranked is None:
        raise ValueError(
            f"{label(name)} is a SyncBatchNorm, which may be 1d, 2d or 3d, so {to!r} is not "
            "clear: make it a BatchNorm first, or choose gn or ln"
        )
    instance, batch_instance = ranked
    if to == "in":
        other = instance(C, eps, affine=norm.affine, device="meta", activation=activation)
        other._parameters = dict(norm._parameters)
        return other
    other = batch_instance(
        C, eps, norm.momentum, norm.affine, norm.track_running_stats, activation=activation
    )
    like = _first(norm.weight, norm.running_mean, *model.parameters())
    if like is not None:
        other.rho.data = other.rho.data.to(like.device, like.dtype)
        other.rho.requires_grad = like.requires_grad or like is norm.running_mean
    other._parameters = {**norm._parameters, "rho": other._parameters["rho"]}
    other._buffers = {key: norm._buffers[key] for key in STATISTICS}
    return other


def _first(*tensors: Tensor | None) -> Tensor | None:
    return next((t for t in tensors if t is not None), None)


def _become(norm: nn.Module, other: nn.Module) -> None:
    """Give the batch norm the class, settings and tensors of `other`; keep everything else."""
    buffers = {k: v for k, v in norm._buffers.items() if k not in STATISTICS} | other._buffers
    state = {k: v for k, v in vars(norm).items() if k not in (*SETTINGS, ATTRIBUTE)}
    state |= settings_of(other)
    state |= {"_parameters": other._parameters, "_buffers": buffers}
    vars(norm).clear()
    vars(norm).update(state)
    norm.__class__ = type(other)
