"""Gradients of a mixture of the batch's statistics and each instance's: its sums, the slopes that
the batch adds, and the parameters' gradients.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import load_or, product, store_gradient
from .channel_gradients import Sums, slopes_of
from .channel_stats import Stats, kept_plane, load_batch_stats


class MixedSums(NamedTuple):
    """A mixture's sums; m_b and rstd_b are the batch's, m_i and rstd_i an instance's."""

    g: Any
    gx: Any  # g (x - m_b)
    hat: Any  # rstd_i g (x - m_i)
    gap: Any  # rstd_b g (x - m_b) - rstd_i g (x - m_i): the two nearly cancel


@triton.jit
def weighted_mixed(weight, sums):
    return MixedSums(
        product(weight, sums.g),
        product(weight, sums.gx),
        product(weight, sums.hat),
        product(weight, sums.gap),
    )


@triton.jit
def store_batch_sums(t, c, mask, sums, s, K: tl.constexpr):
    """A mixture's sums over the batch, behind the instances'; weighted only if OF_SAMPLES."""
    if t.sums is not None:
        batch = t.sums + 2 * kept_plane(s, K)
        tl.store(batch + c, sums.g, mask=mask)
        tl.store(batch + s.C + c, sums.gx, mask=mask)


@triton.jit
def load_batch_sums(t, c, mask, s, K: tl.constexpr):
    batch = t.sums + 2 * kept_plane(s, K)
    g = tl.load(batch + c, mask=mask, other=0.0)
    return Sums(g, tl.load(batch + s.C + c, mask=mask, other=0.0))


@triton.jit
def mixed_sums(sums, stats, batch):
    """An instance's contribution to the mixture's sums."""
    to_batch = (batch.center - stats.center) + batch.offset
    level_gap = batch.rstd * to_batch - stats.rstd * stats.offset
    hat = product(stats.rstd, sums.gx - stats.offset * sums.g)
    gap = (batch.rstd - stats.rstd) * sums.gx - level_gap * sums.g
    return MixedSums(sums.g, sums.gx - to_batch * sums.g, hat, gap)


@triton.jit
def mixed_hat(sums, batch, rho):
    """Sums of g x_hat of the mixture."""
    return rho * (batch.rstd * sums.gx) + (1.0 - rho) * sums.hat


@triton.jit
def mixed_batch_slopes(t, sums, center, lanes, s, K: tl.constexpr):
    """The slopes that the mixture's batch statistics add for an instance's center, from the batch's
    sums of g and g (x - m_b)."""
    if not K.OF_SAMPLES:  # with OF_SAMPLES the sums were weighted before they were added
        gamma = load_or(t.weight, lanes.c, lanes.mask, 1.0, center.dtype)
    rho = load_or(t.rho, lanes.c, lanes.mask, 0.0, center.dtype)
    batch = load_batch_stats(t, lanes.c, lanes.mask, s, K)
    batch = Stats(batch.center, (batch.center - center) + batch.offset, batch.rstd)
    share = rho if K.OF_SAMPLES else gamma * rho
    sums = Sums(share * sums.g, share * sums.gx)
    return slopes_of(batch, sums, s.N.to(center.dtype) * s.S, K)


@triton.jit
def store_mixed_gradients(t, sums, c, mask, s, K: tl.constexpr):
    """dgamma, dbeta and drho of the mixture from its sums over the batch. OF_SAMPLES: only drho,
    from weighted sums."""
    if K.OF_SAMPLES:
        store_gradient(t.drho, c, mask, sums.gap)
    else:
        batch = load_batch_stats(t, c, mask, s, K)
        rho = load_or(t.rho, c, mask, 0.0, sums.g.dtype)
        gamma = load_or(t.weight, c, mask, 1.0, sums.g.dtype)
        store_gradient(t.dweight, c, mask, mixed_hat(sums, batch, rho))
        store_gradient(t.drho, c, mask, gamma * sums.gap)
        store_gradient(t.dbias, c, mask, sums.g)
