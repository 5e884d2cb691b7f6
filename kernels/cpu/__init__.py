"""The three stages in C for CPUs: moments, merge, apply, compiled when a dtype is first needed.

    norms            the engine, as `fastnorm.contract` wants one
    channels, rows   norms of (N, C, S) and of (R, L); stages and weight as in fastnorm.kernels
    gated            RMS norm of rows with a gate
    calls            the structs that the engine is called with
    build            the compiler, and where libraries are kept

and in C, each file included by engine.h, once for a dtype:

    job              what a call is                  common        threads, parameters
    vec              vectors of a dtype              activation    what follows a norm
    steps            what is done to one vector
    contiguous       runs of neighbours              last          channels last
    call             sizes and coefficients          forward, backward
    parameter_rows   gamma and beta of rows        rows, rows_backward   layer, RMS norm
    gated            RMS norm with a gate          weight                weight normalisation

The tensor is cut into pieces that no number of threads changes, and what is found of them is merged
in their order, in float64: results do not depend on the number of threads, to the bit. A block that
sits in the first cache gives its exact mean, then its squared deviations, so that memory is read
once for statistics. Units that fit a core's own cache go through all stages there.
"""

from . import build, calls
from .norms import ENGINE

__all__ = ["ENGINE", "build", "calls"]
