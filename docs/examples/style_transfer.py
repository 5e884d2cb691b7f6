"""Instance statistics in a feed-forward stylisation net remove the contrast of a photo.

A toy of arXiv 1607.08022. The photos are noise of widely varying contrast; the "style" is the same
picture in fixed colours and contrast. A net with instance norm can drop a photo's contrast, a net
with batch norm cannot. Batch-instance norm (arXiv 1805.07925) starts as batch norm and learns to.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, instance_norm, mse_loss

import fastnorm

CHANNELS, STEPS = 8, 100


def photos(count: int) -> Tensor:
    """Blurred noise whose contrast differs from photo to photo by up to a factor of 20."""
    contrast = 0.1 * 20 ** torch.rand(count, 1, 1, 1)
    return contrast * avg_pool2d(torch.randn(count, 3, 18, 18), 3, stride=1)


def stylised(x: Tensor) -> Tensor:
    """The target: each photo's own contrast replaced by the style's."""
    return 0.5 * instance_norm(x) + torch.tensor([0.7, 0.2, -0.4])[:, None, None]


def train(norm: nn.Module) -> float:
    """The last steps' loss of a net around `norm`."""
    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), norm, nn.Conv2d(CHANNELS, 3, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    losses = []
    for _ in range(STEPS):
        x = photos(16)
        loss = mse_loss(net(x), stylised(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    x = photos(1)
    norm = fastnorm.InstanceNorm2d(3, eps=1e-12)
    assert torch.allclose(norm(x), norm(0.01 * x + 5), atol=1e-3)  # contrast, brightness: gone
    mixed = fastnorm.BatchInstanceNorm2d(CHANNELS)
    batch, instance = fastnorm.BatchNorm2d(CHANNELS), fastnorm.InstanceNorm2d(CHANNELS, affine=True)
    losses = [train(norm) for norm in (instance, mixed, batch)]
    print("loss: instance {:.4f}, batch-instance {:.4f}, batch {:.4f}".format(*losses))
    rho = mixed.rho.detach()
    print(f"rho: 1 before, {rho.min():.2f} to {rho.max():.2f} after")
    assert max(losses[:2]) < 0.1 * losses[2] and rho.min() >= 0 and rho.mean() < 0.9


if __name__ == "__main__":
    main()
