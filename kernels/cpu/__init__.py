"""The three stages in C for CPUs: moments, merge, apply. Compiled when a dtype is first needed.

    norms            the engine for `fastnorm.contract`
    channels, rows   norms of (N, C, S) and of (R, L); stages and weight as in fastnorm.kernels
    gated            RMS norm of rows with a gate
    calls            the structs that are passed to the engine
    build            the compiler, and the folder of libraries

The C files, each included by engine.h once for each dtype:

    job              the arguments of a call         common        threads, parameters
    vec              vectors of a dtype              activation    the activation of a norm
    steps            the steps for one vector
    contiguous       runs of neighbours              last          channels last
    call             sizes and coefficients          forward, backward
    parameter_rows   gamma and beta of rows        rows, rows_backward   layer, RMS norm
    gated            RMS norm with a gate          weight                weight normalisation

The tensor is cut into pieces that do not depend on the number of threads. Their results are merged
in their order, in float64: so results are the same, to the bit, for any number of threads. A block
that fits the first cache gives its exact mean, then its squared deviations: so memory is read once
for statistics. Units that fit a core's own cache go through all stages there.
"""

from . import build, calls
from .norms import ENGINE

__all__ = ["ENGINE", "build", "calls"]
