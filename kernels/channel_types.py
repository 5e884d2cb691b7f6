"""Types for the kernels of channels: their arguments, their constants, and values inside them."""

from typing import Any, NamedTuple

SIZES = ["N", "C", "S", "D", "W", "u_blocks", "parts", "steps"]


class Choices(NamedTuple):
    """K of every kernel of channels: its compile-time constants. None depends on N."""

    BATCH: bool  # the sets that a launch merges run over the batch
    STATS_OF_BATCH: bool  # the statistics are only the batch's, whatever a launch merges
    MIX: bool  # the batch's statistics are mixed with each instance's
    VARIANCE: bool  # else only means are taken, and rstd is 1
    OF_SAMPLES: bool  # weight and bias are those of each (n, c), and so are their gradients
    GIVEN: bool  # centers, scales and shifts were merged outside of the kernels
    TRAINING: bool  # else the batch's statistics are the running ones
    ACTIVATION: str | None
    PARAMETER: float  # of the activation
    CHANNELS_LAST: bool
    ALIGN_C: int  # these divide C, S and W, which kernels are given as multiples of them
    ALIGN_S: int
    ALIGN_W: int
    SETS: int  # of a unit: 0 if each channel is a set, else 1 or their number, padded
    BLOCK_N: int
    BLOCK_C: int
    BLOCK_S: int
    LANES: int  # of a tile: BLOCK_N * BLOCK_C or, folded, all positions of BLOCK_C channels
    INNER: int  # positions of a tile's inner axis, or of its middle axis if the lanes are inner
    # Contiguous sets over the batch: a tile's lanes are all positions of its channels, a run of
    # memory; its positions are instances. A thread has RUN neighbouring lanes, of at most two
    # channels. PADDED: the most runs that a channel has a part of, padded.
    FOLDED: bool = False
    RUN: int = 1
    PADDED: int = 0
    # Other contiguous sets, only over the batch: a tile's positions are rows of ROW positions, each
    # of one instance, and its lanes are channels. 0 if a tile's positions are of one instance.
    ROW: int = 0
    # Sets in several tiles of one program: their number, and how many have the same channels.
    TILES: int = 0
    TILES_S: int = 0
    WHOLE: bool = False  # and no tile lacks elements
    CLUSTER: bool = False  # members wait for one another
    GATHERS: bool = False  # a backward's instances leave their own sums, and the last adds them up
    STAGES: int = 1  # of moments: 1 plus the tiles that are loaded while one is worked on


class Forward(NamedTuple):
    """The tensors that the forward kernels read and write; optional ones may be None."""

    x: Any  # (N, C, S) in either layout
    residual: Any = None  # as x
    weight: Any = None  # (C,) or, OF_SAMPLES, (N, C)
    bias: Any = None  # as weight
    rho: Any = None  # (C,)
    running_mean: Any = None  # (C,)
    running_var: Any = None  # (C,)
    y: Any = None  # as x
    bits: Any = None  # whether ReLU let z through
    stats: Any = None  # planes of statistics, `channel_stats.load_stats`
    # Scratch: moments of parts of units (3, n, parts, C), of a cluster's members (3, unit, member);
    # counters for `sync.py`.
    table: Any = None
    tickets: Any = None
    barriers: Any = None


class Backward(NamedTuple):
    """The tensors that the backward kernels read and write."""

    x: Any  # (N, C, S) in either layout
    dy: Any  # as x
    residual: Any = None  # as x: only for smooth activations
    bits: Any = None
    weight: Any = None  # (C,) or, OF_SAMPLES, (N, C)
    bias: Any = None  # as weight
    rho: Any = None  # (C,)
    stats: Any = None  # planes of statistics
    dx: Any = None  # as x
    dresidual: Any = None  # as x
    dweight: Any = None  # as weight
    dbias: Any = None  # as bias
    drho: Any = None  # (C,)
    # Scratch: planes of sums over sets, `channel_gradients.load_sums`; sums of parts of units
    # (2, n, parts, C) and behind them of instances (2, n, C); in a cluster of members (2, unit,
    # member) and of parts of instances (2, n, parts, C); counters for `sync.py`.
    sums: Any = None
    table: Any = None
    tickets: Any = None
    barriers: Any = None


class Sizes(NamedTuple):
    N: Any
    C: Any
    S: Any
    D: Any  # channels of a set
    W: Any  # channels of a unit
    u_blocks: Any  # units of an instance's channels
    parts: Any  # of a unit: of its positions and, over a batch, of its instances
    steps: Any  # tiles of a part


class Member(NamedTuple):
    """A program's share of a unit."""

    index: Any
    n: Any  # the unit's instance (int64), 0 if units run over the batch
    u: Any  # the unit's index among those of its instance
    block: Any  # of channels
    part: Any
    start: Any  # the first position (int64), if it has several tiles


class Lanes(NamedTuple):
    n: Any  # int64
    c: Any
    mask: Any
    first: Any  # the first lane of the same channel, counted in the tile


class Channels(NamedTuple):
    """A block of channels of a unit."""

    local: Any  # counted in the unit
    c: Any
    mask: Any


class Tile(NamedTuple):
    at: Any  # the Member that has it
    n: Any  # the first instance
    start: Any  # the first position (int64)
    lanes: Any
    mask: Any  # of the tile's shape, as offsets (of elements) are
    offsets: Any
