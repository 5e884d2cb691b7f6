"""Which modules can be fused or folded, and into which; the same for both ways."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import modules as ours
from ..modules.base import _Activated
from .activations import has_hooks, module_of
from .adaptive import RMSNormInWeightDtype
from .converting import BATCH_INSTANCE_NORMS, OURS, TORCHS
from .report import type_name

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_plain_norm(module: nn.Module | None) -> bool:
    """Whether it is exactly a norm of ours, no subclass, with no activation yet."""
    known = *TORCHS, *BATCH_INSTANCE_NORMS, ours.LayerNorm2d, RMSNormInWeightDtype
    if type(module) not in known or not isinstance(module, _Activated):
        return False
    return module.activation is None and "forward" not in vars(module)


def reason_not_to_fold(conv: nn.Module, norm: nn.Module) -> str | None:
    """Why batch norm `norm` cannot go into `conv`, the only layer that feeds it."""
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
    """A new layer that does both, and the module that replaces norm: its activation or identity."""
    activation = getattr(norm, "activation", None)
    after = module_of(activation) if activation else nn.Identity()
    return fuse_conv_bn_eval(conv, norm, type(conv) in TRANSPOSED), after.eval()


def describe(module: nn.Module) -> str:
    activation = module.activation if isinstance(module, _Activated) else None
    return type_name(type(module)) + (f"(activation={activation!r})" if activation else "")
