"""The traced models: each norm, a model of all; and the comparison of two of their results."""

import torch

import fastnorm
from tests.conftest import make_input

MODULES = {
    "bn": lambda: fastnorm.BatchNorm2d(6, activation="relu"),
    "bn_cumulative": lambda: fastnorm.BatchNorm2d(6, momentum=None),
    "bn_plain": lambda: fastnorm.BatchNorm2d(6, affine=False, track_running_stats=False),
    "in": lambda: fastnorm.InstanceNorm2d(6, affine=True),
    "in_tracked": lambda: fastnorm.InstanceNorm2d(6, track_running_stats=True),
    "bin": lambda: fastnorm.BatchInstanceNorm2d(6),
    "mean_only": lambda: fastnorm.MeanOnlyBatchNorm2d(6, momentum=None, activation="relu"),
    "ln": lambda: fastnorm.LayerNorm([5, 3], activation="gelu"),
    "rms": lambda: fastnorm.RMSNorm([5, 3], activation="relu"),
    "gn": lambda: fastnorm.GroupNorm(2, 6, activation="silu"),
}
SHAPE = (4, 6, 5, 3)
# From eager's values. Under cpu programs hold torch's own norms where they are exported, and for
# contiguous images: float32 operations in another order, as the formula's are in inductor's.
DIFFERENCE = {"triton": 0.0, "cpu": 1e-5, "reference": 1e-5}


class Net(torch.nn.Module):
    """Every norm after a convolution, with a residual, in a model that can be exported."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3)
        self.bn = fastnorm.BatchNorm2d(6, activation="relu")
        self.gn = fastnorm.GroupNorm(2, 6, activation="relu")
        self.bin = fastnorm.BatchInstanceNorm2d(6)
        self.inorm = fastnorm.InstanceNorm2d(6, affine=True)
        self.ln = fastnorm.LayerNorm(6)

    def forward(self, x):
        y = self.inorm(self.bn(self.conv(x)))
        y = self.bin(self.gn(y, residual=y))
        return self.ln(y.mean((2, 3)))


def image(batch, requires_grad=False):
    return make_input(
        (batch, 3, 9, 9), dtype=torch.float32, seed=batch, requires_grad=requires_grad
    )


def state_and_gradients(module):
    return [*(p.grad for p in module.parameters()), *module.buffers()]


def loss(y):
    """Whose gradient is not nearly 0 after a norm, as that of the mean square is."""
    return (y * torch.arange(y.numel(), device=y.device).sin().view_as(y)).mean()


def difference(ours, others):
    pairs = zip(ours, others, strict=True)
    return max(((a.detach() - b.detach()).abs().max().item() for a, b in pairs), default=0.0)
