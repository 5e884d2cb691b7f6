"""Triton kernels of fastnorm and their launchers. Nothing here knows autograd or dispatch.

    norms            the engine, as `fastnorm.contract` wants one, on channels and rows below
    stages           moments and apply by themselves, for merges made elsewhere
    weight           weight normalisation, on the tiles of rows
    routing          what both engines do alike: rows or channels, empty tensors, layouts; masks,
                     tensors and records, the names of what ran, are theirs as well

The engine of channels sees x as (N, C, S) and serves batch, instance, batch-instance, mean-only and
group norm; that of rows sees it as (R, L) and serves layer and RMS norm:

                     channels                         rows
    calls            channels                         rows
    their launches   plans                            row_plans
    chosen sizes     geometry, tilings                row_geometry
    one launch       resident, resident_backward      row_kernels
    two launches     streaming, streaming_backward    row_kernels
    a tile           tiles                            row_tiles
    stage two        merge, gradients                 row_tiles

One launch: the tensor stays in registers from statistics to output. Two: moments, then apply. Stage
two merges what programs found. Under both engines:

    tiers            which of three ways a norm takes, by the size of its sets
    activation       a tile's output, ReLU's mask of bits, the gradient of what is activated
    arithmetic       moments and their merge, rounding
    tables           where statistics lie, and what programs leave for one another
    sync             tickets and barriers
    clusters         launching programs that wait for one another, as many as `occupancy` allows
    launch           compiled handles, shared counters, the record of launches
    tensors, masks   on the host: layouts and dtypes; who keeps a mask of bits, and its size

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
