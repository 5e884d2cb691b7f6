"""A pre-norm transformer block whose residual additions are part of its RMS norms.

stream = stream + sublayer(norm(stream))    textbook: an addition, then the next layer's norm
y, stream = norm(update, stream)            AddRMSNorm: both from one pass over memory
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

import fastnorm

WIDTH, HEADS = 64, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, WIDTH))
        self.first, self.second = (fastnorm.AddRMSNorm(WIDTH, eps=1e-6) for _ in range(2))

    def forward(self, update: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The block's update of the stream, and the stream before that update."""
        y, stream = self.first(update, stream)
        y, stream = self.second(self.attend(y), stream)
        return self.mlp(y), stream

    def attend(self, y: Tensor) -> Tensor:
        return self.attention(y, y, y, need_weights=False)[0]

    def textbook(self, x: Tensor) -> Tensor:
        x = x + self.attend(rms_norm(x, (WIDTH,), self.first.weight, 1e-6))
        return x + self.mlp(rms_norm(x, (WIDTH,), self.second.weight, 1e-6))


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_dtype(torch.float64)  # so that differences are faults, not rounding
    blocks = [Block() for _ in range(3)]
    x = torch.randn(2, 16, WIDTH, requires_grad=True)
    update, stream = torch.zeros_like(x), x  # each block adds the update of the one before
    expected = x
    for block in blocks:
        update, stream = block(update, stream)
        expected = block.textbook(expected)
    y = update + stream
    leaves = [x, *nn.ModuleList(blocks).parameters()]
    found, right = (torch.autograd.grad(t.cos().sum(), leaves) for t in (y, expected))
    torch.testing.assert_close((y, *found), (expected, *right))
    print(f"3 blocks, {len(leaves)} gradients: as the textbook's")


if __name__ == "__main__":
    main()
