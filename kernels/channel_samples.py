"""Gradients of parameters of samples. In one launch over the batch the lanes are (n, c)."""

import triton
import triton.language as tl

from .arithmetic import load_or, store_gradient
from .channel_lanes import parameter_slot
from .channel_mixtures import mixed_hat, mixed_sums
from .channel_stats import load_batch_stats


@triton.jit
def store_sample_gradients(t, sums, stats, n, c, mask, s, K: tl.constexpr):
    """dgamma and dbeta of each (n, c) from its sums of g and g (x - center)."""
    slot = parameter_slot(n, c, s, K)
    if K.MIX:
        batch = load_batch_stats(t, c, mask, s, K)
        rho = load_or(t.rho, c, mask, 0.0, sums.g.dtype)
        hat = mixed_hat(mixed_sums(sums, stats, batch), batch, rho)
    else:
        hat = stats.rstd * (sums.gx - stats.offset * sums.g)
    store_gradient(t.dweight, slot, mask, hat)
    store_gradient(t.dbias, slot, mask, sums.g)


@triton.jit
def lane_weight(t, lanes, s, K: tl.constexpr, ACC: tl.constexpr):
    """gamma of each lane."""
    return load_or(t.weight, parameter_slot(lanes.n, lanes.c, s, K), lanes.mask, 1.0, ACC)
