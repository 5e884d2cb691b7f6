"""What the kernels of channels are given, what they are compiled for, and what they make of it."""

from typing import Any, NamedTuple

SIZES = ["N", "C", "S", "D", "W", "u_blocks", "parts", "steps", "groups"]


class Choices(NamedTuple):
    """K of every kernel of channels: what it is compiled for. Nothing here follows from N."""

    BATCH: bool  # the sets that a launch merges run over the batch
    STATS_OF_BATCH: bool  # the statistics are the batch's alone, whatever a launch merges
    MIX: bool  # the batch's statistics are mixed with each instance's
    VARIANCE: bool  # else means alone are taken, and rstd is 1
    OF_SAMPLES: bool  # weight and bias are those of each (n, c), and so are their gradients
    GIVEN: bool  # centers, scales and shifts were merged outside of the kernels
    TRAINING: bool  # else the batch's statistics are the running ones
    ACTIVATION: str | None
    PARAMETER: float  # of the activation
    CHANNELS_LAST: bool
    ALIGN_C: int  # divide C, S and W, which kernels are given in multiples of them
    ALIGN_S: int
    ALIGN_W: int
    SETS: int  # of a unit: 0 where each channel is one, else 1 or their number, padded
    BLOCK_N: int
    BLOCK_C: int
    BLOCK_S: int
    LANES: int  # of a tile: BLOCK_N * BLOCK_C or, folded, all positions of BLOCK_C channels
    INNER: int  # positions of a tile's inner axis; of its middle one where lanes are the inner
    # Contiguous sets over the batch: a tile's lanes are all positions of its channels, a run of
    # memory, and its positions are instances. PADDED: a channel's positions.
    FOLDED: bool = False
    PADDED: int = 0
    # Other contiguous sets over the batch alone: a tile's positions are rows of so many, each of
    # an instance, and its lanes are channels. 0 where a tile has positions of one instance.
    ROW: int = 0
    CLUSTER: bool = False  # members wait for one another
    GATHERS: bool = False  # a backward's instances leave sums of their own, which the last adds up
    STAGES: int = 1  # of moments: 1 plus the tiles that are on their way while one is worked on


class Forward(NamedTuple):
    """What the forward kernels read and write; optional tensors are None where there are none."""

    x: Any  # (N, C, S) in either layout
    residual: Any = None  # as x
    weight: Any = None  # (C,) or, OF_SAMPLES, (N, C)
    bias: Any = None  # as weight
    rho: Any = None  # (C,)
    running_mean: Any = None  # (C,)
    running_var: Any = None  # (C,)
    y: Any = None  # as x
    bits: Any = None  # where ReLU let z through
    stats: Any = None  # planes of statistics, `channel_stats.load_stats`
    # Scratch: moments of parts of units (3, n, parts, C); counters for `sync.py`.
    table: Any = None
    tickets: Any = None
    barriers: Any = None


class Backward(NamedTuple):
    """What the backward kernels read and write."""

    x: Any  # (N, C, S) in either layout
    dy: Any  # as x
    residual: Any = None  # as x: smooth activations' alone
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
    # (2 or 4, n, parts, C), behind them those of instances or of lanes; counters for `sync.py`.
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
    u_blocks: Any  # units that the channels are cut into
    parts: Any  # that the positions, and over a batch the instances, of a unit are cut into
    steps: Any  # tiles of a part
    groups: Any  # clusters that take units in turns


class Member(NamedTuple):
    """A program's share of a unit."""

    index: Any
    n: Any  # the unit's instance (int64), 0 where units run over the batch
    u: Any  # the unit's place among those of its instance
    block: Any  # of channels
    part: Any


class Lanes(NamedTuple):
    n: Any  # int64
    c: Any
    mask: Any
    first: Any  # counted from the tile's first lane, the first that its channel has


class Channels(NamedTuple):
    """A block of channels of a unit."""

    local: Any  # counted in the unit
    c: Any
    mask: Any


class Tile(NamedTuple):
    at: Any  # the Member whose it is
    n: Any  # the first instance
    start: Any  # the first position (int64)
    lanes: Any
    mask: Any  # of the tile's shape, as offsets (of elements) are
    offsets: Any
