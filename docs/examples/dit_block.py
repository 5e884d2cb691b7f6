"""A diffusion transformer's block: layer norms that the condition scales and shifts.

Source: arXiv 2212.09748, section 3.2, adaLN-Zero. A sample has one scale and one shift, (N, 1, D),
for all of its tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

import fastnorm

WIDTH, HEADS = 64, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU("tanh"), nn.Linear(256, WIDTH))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.norm = fastnorm.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulate(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attend(self.norm(x, scale=scale, shift=shift))
        return x + gate2 * self.mlp(self.norm(x, scale=scale2, shift=shift2))

    def attend(self, y: Tensor) -> Tensor:
        return self.attention(y, y, y, need_weights=False)[0]

    def textbook(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulate(condition)[:, None].chunk(6, -1)
        y = layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift
        x = x + gate * self.attend(y)
        y = layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale2) + shift2
        return x + gate2 * self.mlp(y)


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_dtype(torch.float64)  # so that differences are faults, not rounding
    block = Block()
    x, condition = torch.randn(3, 16, WIDTH, requires_grad=True), torch.randn(3, WIDTH)
    y, expected = block(x, condition), block.textbook(x, condition)
    leaves = [x, *block.parameters()]
    found, right = (torch.autograd.grad(t.cos().sum(), leaves) for t in (y, expected))
    torch.testing.assert_close((y, *found), (expected, *right))
    print(f"a DiT block, {len(leaves)} gradients: as the textbook's")


if __name__ == "__main__":
    main()
