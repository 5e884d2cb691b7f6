"""A diffusion model's residual block: group norm, the time step's scale and shift, SiLU, one call.

Source: arXiv 2105.05233, section 3.1, adaptive group norm; its U-Net calls this scale-shift norm.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

import fastnorm

CHANNELS, GROUPS, TIME = 32, 8, 24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = fastnorm.GroupNorm(GROUPS, CHANNELS, activation="silu")
        self.second = fastnorm.GroupNorm(GROUPS, CHANNELS, activation="silu")
        self.convolutions = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2)
        )
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(TIME, 2 * CHANNELS))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.embed(time).chunk(2, dim=1)
        h = self.convolutions[0](self.first(x))
        return x + self.convolutions[1](self.second(h, scale=scale, shift=shift))

    def textbook(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.embed(time)[:, :, None, None].chunk(2, dim=1)
        h, norm = silu(group_norm(x, GROUPS, self.first.weight, self.first.bias)), self.second
        h = group_norm(self.convolutions[0](h), GROUPS, norm.weight, norm.bias)
        return x + self.convolutions[1](silu(h * (1 + scale) + shift))


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_dtype(torch.float64)  # so that differences are faults, not rounding
    block = Block()
    x, time = torch.randn(4, CHANNELS, 8, 8, requires_grad=True), torch.randn(4, TIME)
    y, expected = block(x, time), block.textbook(x, time)
    leaves = [x, *block.parameters()]
    found, right = (torch.autograd.grad(t.cos().sum(), leaves) for t in (y, expected))
    torch.testing.assert_close((y, *found), (expected, *right))
    print(f"a residual block, {len(leaves)} gradients: as the textbook's")


if __name__ == "__main__":
    main()
