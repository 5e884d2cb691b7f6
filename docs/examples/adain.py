"""Adaptive instance norm: content features get the mean and deviation of the style features.

Source: arXiv 1703.06868, equation 8: AdaIN(x, y) = std(y) (x - mean(x)) / std(x) + mean(y). The
factor counts from 1 in fastnorm, so std(y) - 1 is the scale.
"""

import torch
from torch import Tensor

import fastnorm
import fastnorm.functional as F

EPS = 1e-5


def adain(content: Tensor, style: Tensor) -> Tensor:
    var, mean = torch.var_mean(style, (2, 3), correction=0)
    return F.instance_norm(content, eps=EPS, scale=(var + EPS).sqrt() - 1, shift=mean)


def definition(content: Tensor, style: Tensor) -> Tensor:
    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean((2, 3), keepdim=True)
        return mean, ((x - mean).square().mean((2, 3), keepdim=True) + EPS).sqrt()

    (mean, std), (style_mean, style_std) = moments(content), moments(style)
    return style_std * (content - mean) / std + style_mean


class Stylised(torch.nn.Module):
    """The same as a layer, in front of a decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = fastnorm.InstanceNorm2d(channels, eps=EPS, activation="relu")

    def forward(self, content: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return self.norm(content, scale=std - 1, shift=mean)


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_dtype(torch.float64)  # so that differences are faults, not rounding
    content = torch.randn(2, 16, 12, 12, requires_grad=True)
    style = (3 * torch.randn(2, 16, 9, 9) + 2).requires_grad_()
    y, expected = adain(content, style), definition(content, style)
    found, right = (torch.autograd.grad(t.cos().sum(), [content, style]) for t in (y, expected))
    torch.testing.assert_close((y, *found), (expected, *right))
    var, mean = torch.var_mean(style, (2, 3), correction=0)
    layer = Stylised(16)(content, mean, (var + EPS).sqrt())
    torch.testing.assert_close(layer, expected.relu())
    print("outputs and gradients of content and style: as the definition's")


if __name__ == "__main__":
    main()
