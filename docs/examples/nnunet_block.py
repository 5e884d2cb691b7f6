"""nnU-Net's block in 3D: convolution, instance norm and leaky ReLU, channels last in memory.

Source: arXiv 1904.08128; its leaky ReLU has a slope of 0.01. `fuse` moves it into the norm.
"""

import copy

import torch
from torch import Tensor, nn

import fastnorm


def unet_stage() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, width in ((1, 8), (8, 8), (8, 16)):
        layers += [
            nn.Conv3d(channels, width, 3, padding=1),
            nn.InstanceNorm3d(width, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        ]
    return nn.Sequential(*layers)


def gradients(model: nn.Module, volume: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(volume).sin().mean(), list(model.parameters())))


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    model = unet_stage()
    ours = copy.deepcopy(model)
    print(fastnorm.convert(ours))
    print(fastnorm.fuse(ours))
    assert isinstance(ours[1], fastnorm.InstanceNorm3d)
    assert ours[1].activation == "leaky_relu(0.01)"

    volume = torch.randn(2, 1, 8, 8, 8).to(memory_format=torch.channels_last_3d)
    ours = ours.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    y = ours(volume)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(y, model(volume))
    found, right = gradients(ours, volume), gradients(model, volume)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-7)  # in float32
    print("three blocks, 12 gradients: as torch.nn's")


if __name__ == "__main__":
    main()
