"""Triton kernels of fastnorm and their launchers. They know nothing of autograd or dispatch.

    norms            the engine for `fastnorm.contract`, on channels and rows below
    stages           moments and apply as two calls, for merges made elsewhere
    weight           weight normalisation, on the tiles of rows
    routing          shared by both engines: rows or channels, empty tensors, layouts. masks,
                     tensors and records (the names of functions that ran) are shared as well

The engine for channels sees x as (N, C, S) and serves batch, instance, batch-instance, mean-only
and group norm. The engine for rows sees x as (R, L) and serves layer and RMS norm:
                     channels                                  rows
    calls            channels                                  rows, gated
    their launches   plans                                     row_plans
    chosen sizes     geometry, tilings                         row_geometry, row_room
    one launch       channels_one_launch,                      row_one_launch,
                     channels_several_tiles,                   row_several_tiles
                     channels_cluster
    two launches     channels_two_launches                     row_two_launches
    arguments        channel_types                             row_types
    a tile           channel_lanes, channel_tiles,             row_tiles, row_outputs
                     channel_activation
    stage two        channel_moments, channel_stats,           row_sums, row_shares
                     channel_gradients, channel_mixtures,
                     channel_samples, channel_instances

One launch: the tensor stays in registers from statistics to output. Two: moments, then apply. Stage
two merges the results of programs.

Weight and bias of channels are (C,), or (N, C) if each sample has its own. In the second case the
sums of an instance are the gradients, and the batch's sums are weighted before they are added. So
passes that take parameters never see the batch as one instance, and never fold its tiles. Moments
take no parameters.

Used by both engines:

    tiers            which of three ways a norm takes, by the size of its sets
    activation       activations and their gradients
    arithmetic       moments and their merge, rounding
    tables           reading the results that programs leave for one another
    sync             tickets and barriers; tiles that stay packed
    clusters         launches programs that wait for one another, as many as `occupancy` allows
    launch           compiled handles, shared counters, the record of launches
    tensors, masks   on the host: layouts and dtypes; which norms keep a mask of bits, and its size

The words of the kernels:

    set              values that share statistics: D channels of one instance, or of all; a row
    unit             sets that are merged together: one or more whole sets of neighbouring channels
    member           one of the programs that share a unit; in a cluster they wait for one another
    block            the channels or rows of one tile
    part             of a set: a program's share of its positions and instances, or of a row
    tile             the elements that are in registers at one time
    lane             one (n, c) of a tile; in a folded tile one (c, position), whose n share
                     statistics
    center, offset   the mean, as its rounded value and the remainder; rstd: 1 / sqrt(var + eps)
    scale, shift     y = (x - center) * scale + shift
    q, r             dx = scale g + q (x - center) + r
    stats            a forward keeps these for the backward: center, offset and rstd of each set

When this package is imported, it is settled whether the kernels are compiled or interpreted
(TRITON_INTERPRET=1); `INTERPRETED` says which.
"""

import importlib
from typing import Any

# The module of each name. It is loaded on first use: fastnorm.kernels.cpu needs no Triton.
_MODULES = {
    "ENGINE": "norms",
    "INTERPRETED": "launch",
    "launch": "",
    "tiers": "",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from the module that defines it (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_MODULES[name] or name}", __name__)
    found = getattr(module, name) if _MODULES[name] else module
    globals()[name] = found
    return found
