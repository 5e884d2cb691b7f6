"""The longest rows that one program keeps, by the other tensors and values that it keeps too.

The limits are where two launches become faster, by estimates: a program with more spills, and what
it spills leaves the L1 cache (benchmarks/NOTES.md).
"""

from .row_geometry import Room, RowSpec
from .row_types import Backward, Forward

# Elements of a row. Forward: x. Backward, by x's bytes an element: x, dy and sums of columns.
LONGEST_ROW = 16384
LONGEST_ROW_BACKWARD = {2: 16384, 4: 16384, 8: 8192}
# Rows of just this length, if there is little beside them: no columns are missing there, so threads
# keep no masks.
LONGEST_WHOLE_ROW = 32768
# Backward, if an activation takes too many registers besides.
LONGEST_CROWDED = 8192
# Forward of 16 bits, in several tiles: x, weight and bias. Longer layer norms of a sum would spill
# up to 400 bytes a thread.
LONGEST_OF_TILES = 32768
LONGEST_SUM_OF_TILES = 24576


def forward_room(t: Forward, R: int, spec: RowSpec) -> Room:
    """For the forward of R rows; `t` has the dtypes of the tensors."""
    if spec.gate is not None:
        return Room(LONGEST_ROW // 2)
    alone = t.addend is None and t.residual is None
    whole = LONGEST_WHOLE_ROW if t.x.itemsize == 4 and alone else 0
    return Room(LONGEST_ROW, whole, _in_tiles(t, R, spec))


def _in_tiles(t: Forward, R: int, spec: RowSpec) -> int:
    """Tiles of 16 bits, and parameters that all rows share, fit the registers together."""
    narrow = all(each is None or each.itemsize == 2 for each in (t.x, t.weight, t.bias))
    if not narrow or spec.parameters(R) != "shared":
        return 0
    of_sum = t.addend is not None and spec.norm == "layer"
    return LONGEST_SUM_OF_TILES if of_sum else LONGEST_OF_TILES


def backward_room(t: Backward, spec: RowSpec, both: bool) -> Room:
    """For the backward; `t` has the dtypes of the tensors. `both`: programs sum columns for dweight
    and for dbias."""
    longest = LONGEST_ROW_BACKWARD[t.x.itemsize]
    if spec.gate is not None:
        return Room(longest // 2)
    exact = is_exact(spec)
    if t.x.itemsize != 2:
        return Room(longest if exact or not both else LONGEST_CROWDED)
    if not exact or (both and spec.activation is not None and t.bits is None):
        return Room(LONGEST_CROWDED)
    narrow = t.weight is None or t.weight.itemsize == 2
    little = narrow and not both and spec.activation is None and spec.parameter_rows == 1
    return Room(longest, LONGEST_WHOLE_ROW if little else 0)


def is_exact(spec: RowSpec) -> bool:
    """Whether the gradient before the affine map has dy's dtype (`row_outputs.affine_gradient`)."""
    return spec.gate is None and spec.activation in (None, "relu")
