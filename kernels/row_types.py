"""Types for the kernels of rows: their arguments, their constants, and values inside them."""

from typing import Any, NamedTuple

SIZES = ["R", "L", "row_blocks", "parts", "groups", "A", "inner"]  # a kernel's; not specialised


class Choices(NamedTuple):
    """K of every kernel of rows: its compile-time constants. None depends on R or on the number of
    parameter rows."""

    CENTRED: bool  # layer norm: it has a mean; RMS norm's is 0
    ACTIVATION: str | None
    PARAMETER: float  # of the activation
    ALIGN: int  # divides L, which kernels are given as a multiple of it
    WHOLE: bool  # BLOCK_L divides L
    BLOCK_R: int
    BLOCK_L: int
    INNER: int  # columns of the inner axis
    STAGES: int = 1  # 1 plus the tiles that are loaded while one is worked on
    TILES: int = 1  # of a row, that one program keeps
    PACKED: bool = False  # tiles and shared parameters stay as they are stored between two uses
    FEW_PARTS: int = 0  # of a row, at most: sums over them need no loop; 0: any number
    # How weight and bias, (A, L), go with the rows. "shared" by all: A = 1. "grouped": row r takes
    # row (r // inner) % A, and a tile's rows have the same. "own" for each row: A = R.
    PARAMETERS: str = "shared"
    # RMS norm's gate: "before", x silu(gate) is normalised; "after", the result is multiplied.
    GATE: str | None = None


class Forward(NamedTuple):
    """The tensors that the forward kernels read and write; optional ones may be None."""

    x: Any  # (R, L)
    addend: Any  # (R, L) or None: x + addend is normalised instead of x
    total: Any  # (R, L) or None: that sum
    residual: Any  # (R, L) or None
    weight: Any  # (A, L) or None
    bias: Any  # (A, L) or None
    y: Any  # (R, L)
    bits: Any  # (R, ceil(L / 8)) or None: whether ReLU let z through
    stats: Any = None  # (2, R): rstd and mean; RMS norm's (R,)
    # Scratch: moments of parts of rows (3, parts, R), RMS norm's (parts, R); tickets.
    table: Any = None
    tickets: Any = None
    gate: Any = None  # (R, L)


class Backward(NamedTuple):
    """The tensors that the backward kernels read and write."""

    x: Any  # (R, L)
    dy: Any  # (R, L)
    residual: Any  # (R, L) or None: only for smooth activations
    bits: Any  # (R, ceil(L / 8)) or None
    weight: Any  # (A, L) or None
    bias: Any  # (A, L) or None
    stats: Any  # (2, R); RMS norm's (R,)
    dsum: Any  # (R, L) or None: an additional gradient of x
    dx: Any  # (R, L) or None
    dresidual: Any  # (R, L) or None
    dweight: Any  # (A, L) or None
    dbias: Any  # (A, L) or None
    # Scratch: shares of dweight and dbias (2, shares, L), without a bias (shares, L); sums of parts
    # of rows (2, parts, R), RMS norm's (parts, R).
    partial: Any = None
    table: Any = None
    gate: Any = None  # (R, L)
    dgate: Any = None  # (R, L)


class Shares(NamedTuple):
    """The fields of Backward for the parameters' gradients."""

    partial: Any
    dweight: Any
    dbias: Any


class Sizes(NamedTuple):
    R: Any
    L: Any
    parts: Any  # of a row
    # For grouped parameters: the number of their rows; the rows that share one before the next has
    # its turn; the blocks of all rows that share one. Else 0.
    A: Any
    inner: Any
    blocks: Any


class Tile(NamedTuple):
    row: Any  # of the tile's shape, with 1 column, as all values of rows are
    start: Any  # the first column
    mask: Any  # of the tile's shape, or with 1 column
    offsets: Any  # of the tile's shape, of elements


class Stats(NamedTuple):
    mean: Any  # of each row
    rstd: Any


class Affine(NamedTuple):
    gamma: Any  # of the tile's shape, the same in each row
    beta: Any
