"""Norm and activation of a Sequential in one call; batch norms folded into convolutions.

In place, on `torch.nn.Sequential` alone, where the order of calls is known. With an example input
`fuse` hands over to `traced_fusion`, which knows the order of calls from torch.fx.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .convert import BATCH_INSTANCE_NORMS, OURS, TORCHS
from .modules import _Activated
from .report import Change, Conversion, Kept, type_name

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class FusedActivation(nn.Identity):
    """Stands in a Sequential for an activation that the norm before it computes now."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = (activation,)  # in a tuple: no child of this module

    def extra_repr(self) -> str:
        return f"{type(self.activation[0]).__name__}, in the norm before"


def fuse(
    model: nn.Module, example: torch.Tensor | tuple[Any, ...] | None = None, fold: bool = False
) -> Conversion:
    """Let fastnorm's norms compute the activations that follow them; results stay the same.

    Without `example`: in place, and in `torch.nn.Sequential` alone (subclasses with its forward
    too). Where a norm of fastnorm's is followed by ReLU, SiLU or the exact GELU, the norm gets
    `activation=` and the activation's place a `FusedActivation`, an identity: indices and
    `state_dict` stay, and `revert` restores it. A model that reads between the two (by index, or by
    iterating over the Sequential) reads the activation's output there.

    With `example`, the positional inputs (one tensor or a tuple): `torch.fx` traces the model, and
    norm -> activation and norm -> add -> activation are fused wherever they stand, as modules or
    as functions. The report's model is a GraphModule that shares parameters and buffers with the
    given one, which stays as it was. It is compared with it on `example`.

    With `fold`, batch norms, torch's or ours, also disappear into the convolution before them (with
    an example: a linear layer too); an activation of theirs stays. This is for inference: the model
    has to be in eval mode and cannot be trained as before; results are the same within rounding.

    Norms of torch.nn are not fused: `convert` them first. The report lists what was fused and which
    neighbours were not, with the reason.

    Raises ValueError, the model untouched: `fold` in training mode; a model that torch.fx cannot
    trace faithfully (see the message), or whose traced form answers otherwise on `example`.
    """
    training = [name or "the model" for name, m in model.named_modules() if m.training]
    if fold and training:
        raise ValueError(f"fuse got fold=True with {training[0]} in training mode: call eval()")
    if example is not None:
        from .traced_fusion import fuse_traced

        return fuse_traced(model, example if isinstance(example, tuple) else (example,), fold)
    changed: list[Change] = []
    kept: list[Kept] = []
    uses = Counter(id(child) for m in model.modules() for child in m._modules.values())
    for path, sequential in _sequentials(model):
        for first, second in _neighbours(sequential) if fold else []:
            _fold_pair(path, sequential, first, second, uses, changed, kept)
        for first, second in _neighbours(sequential):
            _fuse_pair(path, sequential, first, second, uses, changed, kept)
    return Conversion(model, changed, kept)


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


def activation_of(module: nn.Module) -> str | None:
    """The name under which our norms know this activation module, if they do."""
    if "forward" in vars(module) or (isinstance(module, nn.GELU) and module.approximate != "none"):
        return None
    return next((name for name, cls in ACTIVATIONS.items() if type(module) is cls), None)


def is_plain_norm(module: nn.Module | None) -> bool:
    """A norm of ours, of no subclass and with no activation yet."""
    known = type(module) in TORCHS or type(module) in BATCH_INSTANCE_NORMS
    if not known or not isinstance(module, _Activated):
        return False
    return module.activation is None and "forward" not in vars(module)


def has_hooks(module: nn.Module) -> bool:
    return any(vars(module)[hooks] for hooks in HOOKS)


def reason_not_to_fold(conv: nn.Module, norm: nn.Module) -> str | None:
    """Why batch norm `norm` cannot go into `conv`, which alone feeds it."""
    assert isinstance(norm, _BatchNorm), "is_batch_norm has been asked"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if has_hooks(conv) or has_hooks(norm):
        return "it or the layer before it has hooks"
    if "forward" in vars(conv) or "forward" in vars(norm):
        return "its forward, or that of the layer before it, is overridden in the instance"
    channels = conv.out_features if isinstance(conv, nn.Linear) else conv.out_channels
    if channels != norm.num_features:
        return "the layer before it has another number of channels"
    if isinstance(conv, TRANSPOSED) and conv.groups != 1:
        return "transposed convolutions in groups are not folded"
    return None


def is_batch_norm(module: nn.Module) -> bool:
    kind = TORCHS.get(type(module), type(module))
    return kind in OURS and issubclass(kind, _BatchNorm)


def folded(conv: Any, norm: Any) -> tuple[nn.Module, nn.Module]:
    """A new layer that does both, and the module for norm's place: its activation or identity."""
    after = ACTIVATIONS[norm.activation]() if getattr(norm, "activation", None) else nn.Identity()
    return fuse_conv_bn_eval(conv, norm, type(conv) in TRANSPOSED), after.eval()


def describe(module: nn.Module) -> str:
    activation = module.activation if isinstance(module, _Activated) else None
    return type_name(type(module)) + (f"(activation={activation!r})" if activation else "")


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
    """Fuse sequential[first] with sequential[second] where they are norm and activation."""
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
    """Fold sequential[second] into sequential[first] where they are batch norm and convolution."""
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
