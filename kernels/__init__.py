"""Triton kernels of fastnorm and their launchers. Nothing here knows autograd or dispatch.

    norms            the engine, as `fastnorm.contract` wants one, on channels and rows below
    stages           moments and apply by themselves, for merges made elsewhere
    weight           weight normalisation, on the tiles of rows
    routing          what both engines do alike: rows or channels, empty tensors, layouts; masks,
                     tensors and records, the names of what ran, are theirs as well

The engine of channels sees x as (N, C, S) and serves batch, instance, batch-instance, mean-only and
group norm; that of rows sees it as (R, L) and serves layer and RMS norm:

                     channels                                  rows
    calls            channels                                  rows, gated
    their launches   plans                                     row_plans
    chosen sizes     geometry, tilings                         row_geometry
    one launch       channels_one_launch                       row_one_launch
    two launches     channels_two_launches                     row_two_launches
    what is given    channel_types                             row_types
    a tile           channel_tiles, channel_activation         row_tiles, row_outputs
    stage two        channel_moments, channel_stats,           row_sums, row_shares
                     channel_gradients, channel_samples

One launch: the tensor stays in registers from statistics to output. Two: moments, then apply. Stage
two merges what programs found.

Weight and bias of channels are (C,) or those of each sample, (N, C). Of the latter each instance's
sums are the gradients, and the batch's are weighted before they are added up: so passes that take
parameters never see the batch as one instance, nor fold its tiles. Moments take none.

Under both engines:

    tiers            which of three ways a norm takes, by the size of its sets
    activation       activations and their gradients
    arithmetic       moments and their merge, rounding
    tables           reading what programs leave for one another
    sync             tickets and barriers
    clusters         launching programs that wait for one another, as many as `occupancy` allows
    launch           compiled handles, shared counters, the record of launches
    tensors, masks   on the host: layouts and dtypes; who keeps a mask of bits, and its size

The words of the kernels:

    set              what shares statistics: D channels of one instance, or of all; a row
    unit             what is merged together: one or several whole sets of neighbouring channels
    member           one of the programs that share a unit; in a cluster they wait for one another
    block            of channels or rows: as many as a tile has
    part             of a set: a program's share of its positions and instances, or of a row
    tile, lane       what is in registers at a time; a lane is one (n, c) of it, in a folded tile
                     one (c, position), where all n of it share statistics
    center, offset   the mean, as its rounded value and the remainder; rstd: 1 / sqrt(var + eps)
    scale, shift     y = (x - center) * scale + shift
    q, r             dx = scale g + q (x - center) + r
    stats            what a forward keeps for the backward: center, offset and rstd of each set

Whether the kernels are compiled or interpreted (TRITON_INTERPRET=1) is settled when this package is
imported; `INTERPRETED` says which.
"""

import importlib
from typing import Any

# Where each name comes from. Loaded when first asked for: fastnorm.kernels.cpu has no Triton in it.
_MODULES = {
    "ENGINE": "norms",
    "INTERPRETED": "launch",
    "launch": "",
    "tiers": "",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """What `__all__` has, from the module that has it (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_MODULES[name] or name}", __name__)
    found = getattr(module, name) if _MODULES[name] else module
    globals()[name] = found
    return found
