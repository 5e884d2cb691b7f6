"""The ResNet of 6n+2 layers for 32x32 images (He et al., arXiv 1512.03385, section 4.2).

With shortcut "projection" it is the study's: 175,818 parameters at n=2 with batch norm.
Convolutions have a bias in either form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from harness import builtin_norms
from harness.config import Backend, Norm, require_builtin
from harness.errors import UserError
from harness.recipes import Shortcut

NormFactory = Callable[[int, str | None], nn.Module]  # (channels, activation) -> norm(x, residual)


@dataclass(frozen=True)
class Architecture:
    """The architecture that a state_dict fits; checkpoints hold it as a dict."""

    norm: Norm
    depth_n: int = 2
    shortcut: Shortcut = "projection"
    groups: int | None = None
    classes: int = 10


def norm_factory(norm: Norm, backend: Backend, groups: int | None = None) -> NormFactory:
    """Makes the model's norms: torch.nn's for backend "torch", else fastnorm's fused ones.

    All have a weight and a bias for each channel, but rms only a weight, wn only a bias. `groups`
    is gn's, None for C/4. Raises UserError for a norm that torch.nn does not have.
    """
    if norm == "none":
        return lambda channels, activation: builtin_norms.Identity(activation=activation)
    modules: Any = builtin_norms
    if backend != "torch":
        import fastnorm  # not at the top: select_backend has to run before it

        modules = fastnorm
    else:
        require_builtin(norm)
    makers: dict[str, NormFactory] = {
        "bn": lambda c, activation: modules.BatchNorm2d(c, activation=activation),
        "in": lambda c, activation: modules.InstanceNorm2d(c, affine=True, activation=activation),
        "bin": lambda c, activation: modules.BatchInstanceNorm2d(c, activation=activation),
        "ln": lambda c, activation: modules.GroupNorm(1, c, activation=activation),
        "gn": lambda c, activation: modules.GroupNorm(groups or c // 4, c, activation=activation),
        "rms": make_rms,
        "sn": lambda c, activation: modules.SwitchableNorm2d(c, activation=activation),
        "wn": lambda c, activation: modules.MeanOnlyBatchNorm2d(c, activation=activation),
    }
    return makers[norm]


def make_rms(channels: int, activation: str | None) -> nn.Module:
    """RMS norm over C, H, W."""
    from harness.rms import RMSNorm2d  # not at the top, like fastnorm

    return RMSNorm2d(channels, activation=activation)


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the missing channels: option A of He et al.

    (N, channels, H, W) -> (N, out_channels, H / 2, W / 2).
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.missing = out_channels - channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """It has no parameters."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.missing))


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    (N, channels, H, W) -> (N, out_channels, H / stride, W / stride).
    """

    def __init__(
        self, channels: int, out_channels: int, stride: int, norm: NormFactory, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1)
        self.norm1 = norm(out_channels, "relu")
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels, "relu")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 and shortcut == "pad":
            self.shortcut = PadShortcut(channels, out_channels)
        elif stride != 1:
            projection = nn.Conv2d(channels, out_channels, 1, stride)
            self.shortcut = nn.Sequential(projection, norm(out_channels, None))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One residual block; the add and the second relu belong to norm2."""
        y = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(y), residual=self.shortcut(x))


class ResNet(nn.Module):
    """(N, 3, 32, 32) -> logits (N, classes)."""

    def __init__(self, architecture: Architecture, norm: NormFactory) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = norm(16, "relu")
        blocks: list[nn.Module] = []
        channels, shortcut = 16, architecture.shortcut
        for stage, out_channels in enumerate((16, 32, 64)):
            for block in range(architecture.depth_n):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, out_channels, stride, norm, shortcut))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, architecture.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of normalised images."""
        features = self.blocks(self.norm(self.conv(x)))
        return self.linear(features.mean((2, 3)))


def make_model(
    architecture: Architecture, backend: Backend, he_initialisation: bool = False
) -> ResNet:
    """The ResNet with its norms; for wn the weights of its convolutions are normalised too.

    He's initialisation: normal of variance 2 / (9 input channels) (arXiv 1502.01852), biases 0.
    """
    norm = architecture.norm
    model = ResNet(architecture, norm_factory(norm, backend, architecture.groups))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions if he_initialisation else []:
        assert convolution.bias is not None
        nn.init.kaiming_normal_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    if norm == "wn":
        import fastnorm

        for convolution in convolutions:
            fastnorm.weight_norm(convolution)
    return model


def build_model(
    architecture: Architecture, backend: Backend, seed: int, he_initialisation: bool = False
) -> ResNet:
    """Weights depend only on the seed: built on the CPU, and no norm draws random numbers."""
    torch.manual_seed(seed)
    return make_model(architecture, backend, he_initialisation)


def initialise(model: ResNet, norm: Norm, images: torch.Tensor) -> None:
    """For wn, sets the scales and biases of convolutions from normalised images (N, 3, 32, 32), as
    its authors do (arXiv 1602.07868, section 3); does nothing for other norms."""
    if norm == "wn":
        import fastnorm

        fastnorm.initialise_weight_norm(model, images)


def require_synchronised(norm: Norm, backend: Backend, device: torch.device) -> None:
    """Raises UserError for a norm that several processes cannot train."""
    if norm == "wn":
        raise UserError("--norm wn: mean-only batch norm is not synchronised; use one process")
    if backend == "torch" and norm == "bn" and device.type == "cpu":
        raise UserError("--backend torch: torch.nn.SyncBatchNorm needs GPUs; use another backend")


def synchronise(model: ResNet, backend: Backend) -> ResNet:
    """`model` with batch statistics taken over the batches of all processes together.

    Only for norms that can do it: see require_synchronised.
    """
    if backend != "torch":
        import fastnorm

        fastnorm.convert_sync_batchnorm(model)
        return model
    return builtin_norms.convert_sync_batchnorm(model)
