"""Which modules can be fused or folded, and into what, wherever they stand."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..activations import canonical, parsed
from ..modules.base import _Activated
from .converting import BATCH_INSTANCE_NORMS, OURS, TORCHS
from .report import type_name

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WITHOUT_OPTIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hardswish", nn.Mish: "mish",
}  # fmt: skip
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def activation_of(module: nn.Module) -> str | None:
    """The name under which our norms know this activation module, if they do."""
    if "forward" in vars(module):
        return None
    match module:
        case nn.GELU() if type(module) is nn.GELU:
            return "gelu" if module.approximate == "none" else "gelu_tanh"
        case nn.LeakyReLU() if type(module) is nn.LeakyReLU:
            return canonical(("leaky_relu", module.negative_slope), "fuse")
        case nn.ELU() if type(module) is nn.ELU:
            return canonical(("elu", module.alpha), "fuse")
    return WITHOUT_OPTIONS.get(type(module))


def module_of(activation: str) -> nn.Module:
    """torch.nn's module of one of our activations."""
    name, parameter = parsed(activation)
    match name:
        case "gelu_tanh":
            return nn.GELU("tanh")
        case "leaky_relu":
            return nn.LeakyReLU(parameter)
        case "elu":
            return nn.ELU(parameter)
        case "gelu":
            return nn.GELU()
    return next(kind for kind, known in WITHOUT_OPTIONS.items() if known == name)()


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
    activation = getattr(norm, "activation", None)
    after = module_of(activation) if activation else nn.Identity()
    return fuse_conv_bn_eval(conv, norm, type(conv) in TRANSPOSED), after.eval()


def describe(module: nn.Module) -> str:
    activation = module.activation if isinstance(module, _Activated) else None
    return type_name(type(module)) + (f"(activation={activation!r})" if activation else "")
