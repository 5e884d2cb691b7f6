"""Activation modules, our norms' names for them, and whether a module has hooks."""

from torch import nn

from ..activations import canonical, parsed

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
    """Our norms' name for this activation module, or None."""
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


def has_hooks(module: nn.Module) -> bool:
    return any(vars(module)[hooks] for hooks in HOOKS)
