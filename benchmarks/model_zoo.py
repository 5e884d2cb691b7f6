"""Whole models for `benchmarks.models`: known architectures, random weights, small inputs.

Each model takes only the tensors of its example and returns one tensor, so that fastnorm.fuse can
trace it. The images are small: a step takes less than 2 s of one core.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastnorm

Example = tuple[Tensor, ...]


@dataclass(frozen=True)
class Entry:
    """An architecture, and the package that it needs."""

    name: str
    package: str | None
    norm: str
    build: Callable[[], tuple[nn.Module, Example]]
    parts: str | None = None
    """For a model that torch.fx cannot trace: the class of modules, called with two tensors, that
    are fused one by one."""

    @property
    def installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


def images(batch: int, size: int, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size)


def resnet50() -> tuple[nn.Module, Example]:
    """He et al., arXiv 1512.03385."""
    models = importlib.import_module("torchvision.models")
    return models.resnet50(), (images(8, 64),)


def convnext_tiny() -> tuple[nn.Module, Example]:
    """Liu et al., arXiv 2201.03545, without stochastic depth, which draws random numbers."""
    models = importlib.import_module("torchvision.models")
    return models.convnext_tiny(stochastic_depth_prob=0.0), (images(4, 64),)


def vit_small() -> tuple[nn.Module, Example]:
    """Touvron et al., arXiv 2012.12877 (DeiT-S), with patches of 8 pixels of 64."""
    models = importlib.import_module("torchvision.models")
    model = models.VisionTransformer(
        image_size=64, patch_size=8, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )
    return model, (images(4, 64),)


class Denoiser(nn.Module):
    """A U-Net of diffusers without its optional arguments."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """sample: (N, 3, H, W); timestep: (N)."""
        return self.unet(sample, timestep, return_dict=False)[0]


def unet() -> tuple[nn.Module, Example]:
    """diffusers' UNet2DModel (Ho et al., arXiv 2006.11239) with two levels instead of four."""
    diffusers = importlib.import_module("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return Denoiser(model), (images(2, 32), torch.tensor([7, 600]))


class LlamaBlock(nn.Module):
    """Two decoder layers of transformers' Llama and its last norm; takes embedded tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, embedded: Tensor) -> Tensor:
        """(N, L, D) -> the same."""
        return self.model(inputs_embeds=embedded, use_cache=False, return_dict=False)[0]


class Part(nn.Module):
    """A module without its optional arguments."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.module(x, y)


def fuse_parts(model: nn.Module, example: Example, kind: str) -> int:
    """Fuse each module of the class called `kind` by itself, on its inputs in the model.

    Those that torch.fx cannot trace stay. Returns the number of fused norms.
    """
    seen: dict[nn.Module, Example] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs}))
        for module in model.modules()
        if type(module).__name__ == kind
    ]
    with torch.no_grad():
        model(*example)
    for hook in hooks:
        hook.remove()
    fused = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in seen:
                try:
                    report = fastnorm.fuse(Part(child), seen[child])
                except ValueError:  # for example, one that reads self.training
                    continue
                setattr(parent, name, report.model)
                fused += len(report.changed)
    return fused


def llama() -> tuple[nn.Module, Example]:
    """Touvron et al., arXiv 2302.13971, with 512 channels."""
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=512, intermediate_size=1376, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    return LlamaBlock(transformers.LlamaModel(config)), (torch.randn(4, 128, 512),)


class PlainUNet(nn.Module):
    """nnU-Net's network (Isensee et al., arXiv 1904.08128) in three dimensions. Each stage has two
    times convolution, instance norm, leaky ReLU; strided convolutions down, transposed ones up,
    skips concatenated. Without deep supervision."""

    def __init__(self, channels: tuple[int, ...], classes: int = 3) -> None:
        super().__init__()
        down = zip((1, *channels), channels, strict=False)
        self.encoder = nn.ModuleList(
            self.stage(before, after, stride=1 + (i > 0)) for i, (before, after) in enumerate(down)
        )
        up = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.rise = nn.ModuleList(nn.ConvTranspose3d(below, above, 2, 2) for below, above in up)
        self.decoder = nn.ModuleList(self.stage(2 * above, above, stride=1) for _, above in up)
        self.head = nn.Conv3d(channels[0], classes, 1)

    @staticmethod
    def stage(before: int, after: int, stride: int) -> nn.Sequential:
        """nnU-Net's StackedConvBlocks."""

        def layers() -> Iterator[nn.Module]:
            for width, step in ((before, stride), (after, 1)):
                yield nn.Conv3d(width, after, 3, step, padding=1)
                yield nn.InstanceNorm3d(after, eps=1e-5, affine=True)
                yield nn.LeakyReLU(0.01, inplace=True)

        return nn.Sequential(*layers())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, D, H, W) -> (N, classes, D, H, W)."""
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for rise, stage in zip(self.rise, self.decoder, strict=True):
            x = stage(torch.cat((rise(x), skips.pop()), 1))
        return self.head(x)


def nnunet() -> tuple[nn.Module, Example]:
    return PlainUNet((32, 64, 128)), (torch.randn(2, 1, 16, 24, 24),)


ZOO = (
    Entry("ResNet-50", "torchvision", "batch", resnet50),
    Entry("nnU-Net", None, "instance", nnunet),
    Entry("U-Net", "diffusers", "group", unet, parts="ResnetBlock2D"),
    Entry("ConvNeXt-T", "torchvision", "layer", convnext_tiny),
    Entry("ViT-S", "torchvision", "layer", vit_small),
    Entry("Llama", "transformers", "rms", llama),
)
