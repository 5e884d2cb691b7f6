"""Norms of the literature as merges of a few lines, each with its definition in plain PyTorch."""

import torch
from torch import nn

import fastnorm
from fastnorm import merge_moments


class Affine(fastnorm.MomentNorm):
    """A MomentNorm with gamma, beta and eps."""

    def __init__(self, channels, eps=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


class FilterResponseNorm(Affine):
    """arXiv 1911.09737, equation 1; its threshold is torch.maximum(norm(x), tau)."""

    def merge(self, mean, var, count):
        return self.weight * (mean.square() + var + self.eps).rsqrt(), 0.0, self.bias

    def definition(self, x):
        y = x * (x.square().mean((2, 3), keepdim=True) + self.eps).rsqrt()
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class BatchInstanceNorm(Affine):
    """arXiv 1805.07925, equation 3."""

    def __init__(self, channels, **kwargs):
        super().__init__(channels, **kwargs)
        self.rho = nn.Parameter(torch.full((channels,), 0.7))

    def merge(self, mean, var, count):
        batch_mean, batch_var = merge_moments(mean, var, 0)
        batch = self.weight * self.rho * (batch_var + self.eps).rsqrt()
        instance = self.weight * (1 - self.rho) * (var + self.eps).rsqrt()
        return batch + instance, mean, self.bias + batch * (mean - batch_mean)

    def definition(self, x):
        y = nn.functional.batch_norm(x, None, None, training=True, eps=self.eps)
        z = nn.functional.instance_norm(x, eps=self.eps)
        rho, weight, bias = (p[:, None, None] for p in (self.rho, self.weight, self.bias))
        return weight * (rho * y + (1 - rho) * z) + bias


class BatchRenorm(Affine):
    """arXiv 1702.03275, algorithm 1: the running statistics, with the batch's gradients."""

    def __init__(self, channels, r_max=1.5, d_max=0.5, momentum=0.1, **kwargs):
        super().__init__(channels, **kwargs)
        self.r_max, self.d_max, self.momentum = r_max, d_max, momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_std", torch.ones(channels))

    def merge(self, mean, var, count):
        if not self.training:
            scale = self.weight.double() / self.running_std
            return scale, self.running_mean, self.bias
        mean, var = merge_moments(mean, var, 0)
        std = (var + self.eps).sqrt()
        r, d = self.correction(mean.detach(), std.detach())
        with torch.no_grad():
            self.running_mean.lerp_(mean[0].to(self.running_mean.dtype), self.momentum)
            self.running_std.lerp_(std[0].to(self.running_std.dtype), self.momentum)
        return self.weight * r / std, mean, self.weight * d + self.bias

    def correction(self, mean, std):
        r = (std / self.running_std).clamp(1 / self.r_max, self.r_max)
        d = ((mean - self.running_mean) / self.running_std).clamp(-self.d_max, self.d_max)
        return r, d

    def definition(self, x):
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        std = (var + self.eps).sqrt()
        r, d = (t[:, None, None] for t in self.correction(mean.detach(), std.detach()))
        x_hat = (x - mean[:, None, None]) / std[:, None, None] * r + d
        return x_hat * self.weight[:, None, None] + self.bias[:, None, None]


class BatchGroupNorm(Affine):
    """Statistics of G groups of channels over the whole batch (arXiv 2012.02782 with its groups
    along channels alone)."""

    def __init__(self, channels, groups=2, **kwargs):
        super().__init__(channels, **kwargs)
        self.groups = groups

    def merge(self, mean, var, count):
        N, C = mean.shape
        grouped = (t.view(N, self.groups, -1) for t in (mean, var))
        mean, var = (t.expand(N, -1, C // self.groups).reshape(N, C)
                     for t in merge_moments(*grouped, (0, 2)))  # fmt: skip
        return self.weight * (var + self.eps).rsqrt(), mean, self.bias

    def definition(self, x):
        N, C = x.shape[:2]
        grouped = x.reshape(N, self.groups, C // self.groups, -1)
        var, mean = torch.var_mean(grouped, (0, 2, 3), correction=0, keepdim=True)
        y = ((grouped - mean) / (var + self.eps).sqrt()).view_as(x)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


OWN_NORMS = (FilterResponseNorm, BatchInstanceNorm, BatchRenorm, BatchGroupNorm)
