"""`fuse` in place, only in `torch.nn.Sequential`: there the order of calls is known."""

import itertools
from collections import Counter
from collections.abc import Iterator

from torch import nn

from ..modules.base import _Activated
from .activations import activation_of, has_hooks
from .converting import OURS
from .fusion import (
    CONVS,
    TRANSPOSED,
    describe,
    folded,
    is_batch_norm,
    is_plain_norm,
    reason_not_to_fold,
)
from .report import Change, Conversion, Kept, type_name


class FusedActivation(nn.Identity):
    """Replaces, in a Sequential, an activation that the norm before it now computes."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = (activation,)  # in a tuple: no child of this module

    def extra_repr(self) -> str:
        return f"{type(self.activation[0]).__name__}, in the norm before"


def fuse_sequentials(model: nn.Module, fold: bool) -> Conversion:
    """`fastnorm.fuse` without an example. See there."""
    changed: list[Change] = []
    kept: list[Kept] = []
    uses = Counter(id(child) for m in model.modules() for child in m._modules.values())
    for path, sequential in _sequentials(model):
        for first, second in _neighbours(sequential) if fold else []:
            _fold_pair(path, sequential, first, second, uses, changed, kept)
        for first, second in _neighbours(sequential):
            _fuse_pair(path, sequential, first, second, uses, changed, kept)
    reported = {line.name for line in changed} | {line.name for line in kept}
    kept += [line for line in _called_from_a_forward(model) if line.name not in reported]
    return Conversion(model, changed, kept)


def _called_from_a_forward(model: nn.Module) -> Iterator[Kept]:
    """A line for each norm whose successor no Sequential shows."""
    plain = {path for path, _ in _sequentials(model)}
    for name, norm in model.named_modules():
        if not (type(norm) in OURS or is_plain_norm(norm)) or not name:
            continue
        parent, _, key = name.rpartition(".")
        while parent in plain and parent and key == list(model.get_submodule(parent)._modules)[-1]:
            parent, _, key = parent.rpartition(".")
        if parent not in plain:
            torchs = "torch's: call fastnorm.convert first. " if type(norm) in OURS else ""
            reason = "a forward calls it, and shows what follows only with an example input"
            yield Kept(name, type_name(type(norm)), f"{torchs}{reason}: fuse(model, example)")


def fused_activations(model: nn.Module) -> list[tuple[nn.Module, nn.Sequential, str, nn.Module]]:
    """(norm, Sequential, key, activation) for each activation that `fuse` replaced in place."""
    found = []
    for _, sequential in _sequentials(model):
        for first, second in _neighbours(sequential):
            placeholder = sequential._modules[second]
            if isinstance(placeholder, FusedActivation):
                norm = sequential._modules[first]
                assert norm is not None, "Sequential calls all its modules"
                found.append((norm, sequential, second, placeholder.activation[0]))
    return found


def _sequentials(model: nn.Module) -> Iterator[tuple[str, nn.Sequential]]:
    for path, module in model.named_modules():
        if (
            isinstance(module, nn.Sequential)
            and type(module).forward is nn.Sequential.forward
            and "forward" not in vars(module)
        ):
            yield path, module


def _neighbours(sequential: nn.Sequential) -> list[tuple[str, str]]:
    keys = list(sequential._modules)
    return list(itertools.pairwise(keys))


def _named(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _fuse_pair(
    path: str, sequential: nn.Sequential, first: str, second: str, uses: Counter[int],
    changed: list[Change], kept: list[Kept],
) -> None:  # fmt: skip
    """Fuse sequential[first] with sequential[second] if they are norm and activation."""
    norm, after = sequential._modules[first], sequential._modules[second]
    assert norm is not None and after is not None, "Sequential calls all its modules"
    activation = activation_of(after)
    if activation is None or not (type(norm) in OURS or is_plain_norm(norm)):
        return
    name, reason = _named(path, first), None
    if type(norm) in OURS:
        reason = "torch's: call fastnorm.convert first"
    elif uses[id(norm)] > 1:
        reason = "it appears more than once in the model"
    elif has_hooks(norm) or has_hooks(after):
        reason = "it or the activation has hooks"
    if reason:
        kept.append(Kept(name, type_name(type(norm)), reason))
        return
    assert isinstance(norm, _Activated), "is_plain_norm has been asked"
    old = f"{describe(norm)} + {type_name(type(after))}"
    norm.activation = activation
    sequential._modules[second] = FusedActivation(after).train(after.training)
    changed.append(Change(name, old, describe(norm)))


def _fold_pair(
    path: str, sequential: nn.Sequential, first: str, second: str, uses: Counter[int],
    changed: list[Change], kept: list[Kept],
) -> None:  # fmt: skip
    """Fold sequential[second] into sequential[first] if they are batch norm and convolution."""
    conv, norm = sequential._modules[first], sequential._modules[second]
    assert conv is not None and norm is not None, "Sequential calls all its modules"
    if type(conv) not in (*CONVS, *TRANSPOSED, nn.Linear) or not is_batch_norm(norm):
        return
    name = _named(path, second)
    reason = reason_not_to_fold(conv, norm)
    if isinstance(conv, nn.Linear):
        reason = "after a linear layer the channels may be another dimension: pass an example"
    elif uses[id(conv)] > 1 or uses[id(norm)] > 1:
        reason = "it or the layer before it appears more than once in the model"
    if reason:
        kept.append(Kept(name, type_name(type(norm)), reason))
        return
    sequential._modules[first], sequential._modules[second] = folded(conv, norm)
    old = f"{type_name(type(conv))} + {describe(norm)}"
    changed.append(Change(name, old, f"in {_named(path, first)}"))
