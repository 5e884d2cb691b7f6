"""The study's ResNet of 6n+2 layers for 32x32 images (He et al., arXiv 1512.03385, section 4.2).

It differs from He et al. in the shortcut (1x1 convolution + norm instead of zero padding, where the
shape changes) and in convolutions with bias: 175,818 parameters at n=2 with batch norm.
"""

from collections.abc import Callable
from typing import Any

import builtin_norms
import torch
from config import Backend, Norm
from errors import UserError
from torch import nn

NormFactory = Callable[[int, str | None], nn.Module]  # (channels, activation) -> norm(x, residual)

MISSING = {"bin": "BIN", "sn": "SN", "wn": "mean-only batch norm"}  # from torch.nn


def norm_factory(norm: Norm, backend: Backend) -> NormFactory:
    """Makes the model's norms: torch.nn's for backend "builtin", else fastnorm's fused ones.

    All have a per-channel weight and bias, wn's a bias. Raises UserError for a norm that torch.nn
    does not have.
    """
    if norm == "none":
        return lambda channels, activation: builtin_norms.Identity(activation=activation)
    modules: Any = builtin_norms
    if backend != "builtin":
        import fastnorm  # not at the top: backends.select_backend prepares the environment for it

        modules = fastnorm
    elif norm in MISSING:
        raise UserError(f"--backend builtin: torch.nn has no {MISSING[norm]}; use another backend")
    makers: dict[str, NormFactory] = {
        "bn": lambda c, activation: modules.BatchNorm2d(c, activation=activation),
        "in": lambda c, activation: modules.InstanceNorm2d(c, affine=True, activation=activation),
        "bin": lambda c, activation: modules.BatchInstanceNorm2d(c, activation=activation),
        "ln": lambda c, activation: modules.GroupNorm(1, c, activation=activation),
        "gn": lambda c, activation: modules.GroupNorm(c // 4, c, activation=activation),
        "sn": lambda c, activation: modules.SwitchableNorm2d(c, activation=activation),
        "wn": lambda c, activation: modules.MeanOnlyBatchNorm2d(c, activation=activation),
    }
    return makers[norm]


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    (N, channels, H, W) -> (N, out_channels, H / stride, W / stride).
    """

    def __init__(self, channels: int, out_channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1)
        self.norm1 = norm(out_channels, "relu")
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels, "relu")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            projection = nn.Conv2d(channels, out_channels, 1, stride)
            self.shortcut = nn.Sequential(projection, norm(out_channels, None))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One residual block; the add and the second relu belong to norm2."""
        y = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(y), residual=self.shortcut(x))


class ResNet(nn.Module):
    """(N, 3, 32, 32) -> logits (N, 10)."""

    def __init__(self, depth_n: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = norm(16, "relu")
        blocks: list[nn.Module] = []
        channels = 16
        for stage, out_channels in enumerate((16, 32, 64)):
            for block in range(depth_n):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, out_channels, stride, norm))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of normalised images."""
        features = self.blocks(self.norm(self.conv(x)))
        return self.linear(features.mean((2, 3)))


def make_model(norm: Norm, backend: Backend, depth_n: int) -> ResNet:
    """The ResNet with its norms; for wn the weights of its convolutions are normalised too."""
    model = ResNet(depth_n, norm_factory(norm, backend))
    if norm == "wn":
        import fastnorm

        for module in list(model.modules()):
            if isinstance(module, nn.Conv2d):
                fastnorm.weight_norm(module)
    return model


def build_model(norm: Norm, backend: Backend, depth_n: int, seed: int) -> ResNet:
    """Weights depend on the seed alone: built on the CPU, and no norm draws random numbers."""
    torch.manual_seed(seed)
    return make_model(norm, backend, depth_n)


def initialise(model: ResNet, norm: Norm, images: torch.Tensor) -> None:
    """For wn, the scales and biases of convolutions by normalised images (N, 3, 32, 32), as its
    authors do (arXiv 1602.07868, section 3); for all others nothing."""
    if norm == "wn":
        import fastnorm

        fastnorm.initialise_weight_norm(model, images)


def batch_instance_rho(model: nn.Module) -> list[torch.Tensor]:
    """rho (C,) of each BIN layer, projected into [0, 1] by the reading; [] without BIN."""
    found = (getattr(module, "rho", None) for module in model.modules())
    return [rho for rho in found if isinstance(rho, torch.Tensor)]
