"""How large units and tiles are: a geometry for each tier, by the sizes of the tensor and its sets.

No compile-time constant depends on the batch size: a tile has room for some instances, and a larger
batch takes the next larger tile, the next tier, or more programs. One exception: fewer than 16
instances may take wider rows of each, see `_row`.
"""

import math

import triton

from . import launch, tiers
from .geometry import Geometry, Sets, View, alignment

# Elements of a tile that a program keeps if it holds whole sets, and its warps.
ONE_PROGRAM_TILES = {2048: 4, 4096: 4, 8192: 8, 16384: 16}
# The same for a single contiguous set: one warp, which waits for no other; its sums need no shared
# memory.
ONE_WARP_TILE = 1024
# Other warps if lanes crowd the registers, see `Geometry.crowded`. An SM has 16 warps of 128
# registers either way. But with 8 warps, two programs of 8,192 elements each spilled up to 472
# bytes a thread; one with 16 warps spilled nothing, or up to 120 for a channels-last mixture.
CROWDED_TILES = {8192: 16}
# Elements of each of several tiles, all of one contiguous set, that a program keeps, by its warps:
# as few warps as there is room for. The registers of a thread for all of the tiles, and the most
# tiles of two warps: more would leave an SM too few warps. And the share of one tile's elements
# below which they take its place, if they need as many warps.
SEVERAL_TILES = {2: 512, 4: 1024, 8: 2048, 16: 4096}
REGISTERS_OF_TILES = 80
MOST_OF_TWO_WARPS = 7
LESS_PADDED = 0.9
# The same if each element is loaded by its own address: 8 a thread.
UNALIGNED_TILES = {1024: 4}
# Warps of a member of a cluster, of which four share an SM, and the registers of a thread for all
# of its tiles. With more registers it spills, and the spills cost more than the bytes gain.
CLUSTER_WARPS = 4
REGISTERS_IN_CLUSTERS = 64
# Members of a cluster: two clusters on 132 SMs, so that one loads while the other waits.
MOST_MEMBERS = 264
# Elements of a tile that is read and not kept: 4 warps.
STREAMING_TILE = 4096
# Programs that a pass is split into if its units alone are too few. That many run at once: 3 for
# each of 132 SMs, more if an SM has more at a time.
ENOUGH_PROGRAMS = 396
# Short channels of contiguous sets over the batch. Their length; warps, whose threads each take 16
# bytes of an instance; and instances of a tile, in passes that reduce and in passes that do not.
LONGEST_FOLDED = 255
FOLDED_WARPS = 8
FOLDED_STEP = 4
FOLDED_TILE = (8, 4)  # forward, backward
# Bytes of neighbouring channels in a pass that reduces, channels last. With fewer channels a unit,
# more programs merge, each from fewer parts.
REDUCED_LANES = 64
MOMENTS_STAGES = 3  # of the loop over tiles: two are loaded while one is worked on
# In the interpreter a program costs milliseconds and an element nanoseconds: few, large tiles.
INTERPRETER_TILE = 1 << 18
# Channels of units with several sets in one tile.
MOST_LANES = 256
# Sets that share a tile, told apart by comparing each channel with each set.
MOST_SETS = 32
WIDEST_ROW = 1024  # positions of a tile's row if there are several rows
WASTED_OF_A_ROW = 1 / 12  # the share of positions in rows of instances that wider rows may waste

Blocks = tuple[int, int, int, int]  # W, BLOCK_N, BLOCK_C, BLOCK_S


def choose(
    view: View,
    sets: Sets,
    has_residual: bool,
    backward: bool,
    state: tiers.State,
    averages: bool = False,
) -> tuple[str, Geometry]:
    """The tier for these sets and its geometry; `averages` if instance norm keeps running
    statistics."""
    return tiers.first_with_room(
        state,
        {
            "one_program": lambda: one_program(view, sets, has_residual, backward),
            "cluster": lambda: cluster(view, sets, has_residual or averages, backward),
            "streaming": lambda: streaming(view, sets, backward),
        },
        f"sets {sets} of a tensor {view}",
    )


def one_program(view: View, sets: Sets, has_residual: bool, backward: bool) -> Geometry | None:
    """Units that one program holds whole, or None if sets are too large for it."""
    in_one = _in_one_tile(view, sets, backward)
    within = not (view.channels_last or sets.batch or sets.mix or _each_addressed(view))
    if not within or (has_residual and (backward or in_one is None)):
        return in_one
    in_several = _in_several_tiles(view, sets, backward)
    if in_several is None or in_one is None:
        return in_one or in_several
    if launch.INTERPRETED or in_one.W > sets.depth:
        return in_one
    if backward and in_one.num_warps <= 4 and not in_one.crowded(backward):
        return in_one  # few programs would wait for a sum for each channel
    less = in_several.elements < in_one.elements * LESS_PADDED
    return in_several if less or in_one.num_warps > in_several.num_warps else in_one


def _in_one_tile(view: View, sets: Sets, backward: bool) -> Geometry | None:
    tiles = {INTERPRETER_TILE: 4} if launch.INTERPRETED else ONE_PROGRAM_TILES
    if not (launch.INTERPRETED or sets.batch or view.channels_last or _each_addressed(view)):
        blocks = _whole_sets(view, sets, ONE_WARP_TILE)
        if blocks is not None and blocks[2] == 1:
            return Geometry(view, sets, *blocks, parts=1, steps=1, num_warps=1)
    for tile, warps in (UNALIGNED_TILES if _each_addressed(view) else tiles).items():
        blocks = _whole_sets(view, sets, tile)
        if blocks is not None:
            found = Geometry(view, sets, *blocks, parts=1, steps=1, num_warps=warps)
            if found.crowded(backward):
                found = found._replace(num_warps=CROWDED_TILES.get(tile, warps))
            return found
    return None


def _in_several_tiles(view: View, sets: Sets, backward: bool) -> Geometry | None:
    """One contiguous set in several tiles, in as few elements as possible."""
    for warps, tile in SEVERAL_TILES.items():
        most = REGISTERS_OF_TILES * 4 * 32 * warps // (tile * view.itemsize * (1 + backward))
        most = min(most, MOST_OF_TWO_WARPS) if warps == 2 else most
        rows = [tile >> k for k in range(6) if k == 0 or (sets.depth > 1 and tile >> k >= 8)]
        tiles = {w: triton.cdiv(sets.depth, tile // w) * triton.cdiv(view.S, w) for w in rows}
        BLOCK_S = min(rows, key=lambda w: (tiles[w], -w))
        if 1 < tiles[BLOCK_S] <= most:
            blocks = (sets.depth, 1, tile // BLOCK_S, BLOCK_S)
            steps = tiles[BLOCK_S]
            in_blocks = triton.cdiv(sets.depth, tile // BLOCK_S)
            return Geometry(view, sets, *blocks, 1, steps, warps, several=True, blocks=in_blocks)
    return None


def cluster(view: View, sets: Sets, has_more: bool, backward: bool) -> Geometry | None:
    """Contiguous sets whose members keep several tiles each, one channel a member.

    None if a set has more than MOST_MEMBERS, or would not fill half of its members' room, or if the
    norm `has_more` to do, such as adding a residual: two launches are then quicker.
    """
    simple = not (sets.mix or sets.samples or view.channels_last or has_more)
    if not simple or _each_addressed(view) or launch.INTERPRETED:
        return None
    tile = SEVERAL_TILES[CLUSTER_WARPS]
    each = tile * view.itemsize * (1 + backward)
    most = REGISTERS_IN_CLUSTERS * 4 * 32 * CLUSTER_WARPS // each
    if sets.batch:
        BLOCK_S = _row(view.S, tile, view.N)
        blocks, steps = (1, tile // BLOCK_S, 1, BLOCK_S), most
        parts = triton.cdiv(_tiles(view, sets, tile // BLOCK_S, BLOCK_S), most)
    else:
        tiles = triton.cdiv(view.S, tile)
        parts = triton.cdiv(tiles, most)
        steps = triton.cdiv(tiles, parts)
        blocks = (sets.depth, 1, 1, tile)
    found = Geometry(view, sets, *blocks, parts, steps, CLUSTER_WARPS, several=True)
    half_full = parts * most * tile < 2 * view.S * (view.N if sets.batch else 1)
    return found if half_full and found.members <= MOST_MEMBERS else None


def streaming(view: View, sets: Sets, backward: bool, masked: bool = False) -> Geometry:
    """Units in parts, as few as keep the GPU busy. A mixture, and sums for parameters of samples,
    are streamed instance by instance."""
    sets = sets._replace(batch=sets.one_instance)
    found = _folded(view, sets, FOLDED_STEP, masked)
    if found is not None:
        return _in_parts(found, triton.cdiv(view.N, found.BLOCK_S), backward)
    blocks = _streamed_tile(view, sets, REDUCED_LANES // view.itemsize)
    _, BLOCK_N, _, BLOCK_S = blocks
    tiles = _tiles(view, sets, BLOCK_N, BLOCK_S)
    return _in_parts(Geometry(view, sets, *blocks, 1, steps=1, num_warps=4), tiles, backward)


def _in_parts(whole: Geometry, tiles: int, backward: bool) -> Geometry:
    """A unit's tiles cut into just as many parts as keep the GPU busy."""
    at_once = ENOUGH_PROGRAMS * whole.reducing_at_once(backward) // 3
    wanted = 1 if launch.INTERPRETED else max(at_once // (whole.units * whole.members), 1)
    steps = triton.cdiv(tiles, min(wanted, tiles))
    return whole._replace(parts=triton.cdiv(tiles, steps), steps=steps)


def pointwise(view: View, sets: Sets, backward: bool, masked: bool = False) -> Geometry:
    """One tile for each program, in the order of memory, whatever the sets."""
    found = _folded(view, sets, FOLDED_TILE[backward], masked)
    if found is not None:
        return found._replace(parts=triton.cdiv(view.N, found.BLOCK_S))
    _, _, BLOCK_C, BLOCK_S = _streamed_tile(view, Sets(1, False, sets.mix), 64)
    parts = triton.cdiv(view.S, BLOCK_S)
    sets = sets._replace(batch=False)
    return Geometry(view, sets, BLOCK_C, 1, BLOCK_C, BLOCK_S, parts, steps=1, num_warps=4)


def _folded(view: View, sets: Sets, instances: int, masked: bool) -> Geometry | None:
    """A tile of `instances` of some channels, each with all its positions: one run of memory. It is
    for contiguous sets over the batch with short channels. Not with ReLU's bits: each channel has
    its own bytes of them. Not with parameters of samples: lanes would differ between instances."""
    _, C, S, channels_last, itemsize = view
    if channels_last or masked or not sets.one_instance or S > LONGEST_FOLDED or C * S >= 2**24:
        return None
    vector = 16 // itemsize  # elements that a thread loads at a time
    columns = FOLDED_WARPS * 32 * vector
    if launch.INTERPRETED:
        columns = min(INTERPRETER_TILE, triton.next_power_of_2(max(C * S, vector)))
    channels = vector // math.gcd(S, vector)  # the least number that fills whole vectors
    W = min(columns // S // channels * channels, triton.cdiv(C, channels) * channels)
    if W == 0 or C % channels:
        return None
    if launch.INTERPRETED:
        instances = min(INTERPRETER_TILE // columns, triton.next_power_of_2(view.N))
    BLOCK_C = triton.next_power_of_2(W)
    return Geometry(view, sets, W, 1, BLOCK_C, instances, 1, 1, FOLDED_WARPS, columns)


def _streamed_tile(view: View, sets: Sets, lanes: int) -> Blocks:
    """A tile that is read and not kept; `lanes` with channels last."""
    tile = INTERPRETER_TILE if launch.INTERPRETED else STREAMING_TILE
    tile = tile // 4 if _each_addressed(view) else tile
    blocks = _parts_of_sets(view, sets, tile, lanes if view.channels_last else 64)
    assert blocks is not None, "only mixtures over the batch ask for whole instances"
    return blocks


def _whole_sets(view: View, sets: Sets, tile: int) -> Blocks | None:
    """A tile that holds whole sets, as many as fit; None if not even one fits."""
    N, C, S, channels_last, itemsize = view
    BLOCK_S = max(triton.next_power_of_2(S), 8)
    if sets.batch:
        for lanes in (64, 32, 16) if channels_last else (_channels_at_once(view, tile, BLOCK_S),):
            BLOCK_C = min(lanes, max(triton.next_power_of_2(C), 8))
            if channels_last and sets.one_instance:  # N and S are one axis
                BLOCK_S = _room(tile // BLOCK_C, S)
            BLOCK_N = tile // (BLOCK_C * BLOCK_S)
            if BLOCK_S >= S and BLOCK_N >= N:
                return BLOCK_C, _room(BLOCK_N, N), BLOCK_C, BLOCK_S
        return None
    depth = sets.depth
    most = min(tile // BLOCK_S // depth, C // depth, 64 if depth == 1 else MOST_SETS)
    if channels_last and most < C // depth:
        most -= most % _byte_groups(depth)
        if most * depth * itemsize < 32:  # less than a sector of memory in one piece
            return None
    if most == 0:
        return None
    BLOCK_C = max(triton.next_power_of_2(most * depth), 8 if channels_last else 1)
    return (most * depth, 1, BLOCK_C, BLOCK_S) if BLOCK_C * BLOCK_S <= tile else None


def _parts_of_sets(view: View, sets: Sets, tile: int, lanes: int) -> Blocks | None:
    """A tile of one set, or of neighbouring ones: up to about `lanes` channels.

    None only for a mixture over the batch, whose tile has to hold whole instances.
    """
    _, C, S, channels_last, _ = view
    depth, whole = sets.depth, max(triton.next_power_of_2(S), 8)
    if channels_last:
        W = depth if depth > 1 else min(lanes, max(triton.next_power_of_2(C), 8))
        if depth > 1:  # whole groups, and whole bytes of the ReLU mask
            W = _groups_together(C, depth, lanes)
        BLOCK_C = max(triton.next_power_of_2(W), 8)
        if W == depth:
            BLOCK_C = min(BLOCK_C, max(lanes, 8))
        room = tile // BLOCK_C
        BLOCK_S = room if sets.batch and not launch.INTERPRETED else min(room, whole)
        if sets.batch and not sets.one_instance and whole <= room:
            return W, _room(room // whole, view.N), BLOCK_C, whole
        if sets.batch and sets.mix:
            return None
        return W, 1, BLOCK_C, BLOCK_S
    BLOCK_S = min(whole, tile if launch.INTERPRETED else WIDEST_ROW)
    if sets.one_instance and not launch.INTERPRETED:
        BLOCK_S = min(whole, _row(S, tile, view.N))
    if sets.batch:
        if sets.mix:
            BLOCK_S = whole
        if BLOCK_S > tile:
            return None
        BLOCK_C = _channels_at_once(view, tile, BLOCK_S)
        return BLOCK_C, _room(tile // BLOCK_S // BLOCK_C, view.N), BLOCK_C, BLOCK_S
    rows = triton.next_power_of_2(depth) if depth > 1 else min(lanes, triton.next_power_of_2(C))
    BLOCK_C = min(tile // BLOCK_S, rows)
    return depth if depth > 1 else BLOCK_C, 1, BLOCK_C, min(whole, tile // BLOCK_C)


def _row(S: int, tile: int, N: int) -> int:
    """Positions of each instance in a tile of several: the widest row that wastes little of the
    last row, or else the least. Fewer than 16 instances take wider rows, so that a tile has fewer
    rows: else most of it would be empty."""
    widths = [w for w in (WIDEST_ROW >> k for k in range(4)) if 8 <= w <= tile]
    filled = [w for w in widths if tile // w <= triton.next_power_of_2(N)] or widths[:1]
    wasted = {w: (triton.cdiv(S, w) * w - S) / S for w in filled}
    best = max(min(wasted.values()), WASTED_OF_A_ROW)
    return max(w for w in filled if wasted[w] <= best)


def _channels_at_once(view: View, tile: int, BLOCK_S: int) -> int:
    """Channels of a contiguous tile over the batch: one, but in the interpreter many."""
    if not launch.INTERPRETED:
        return 1
    room = max(tile // (BLOCK_S * triton.next_power_of_2(view.N)), 1)
    return min(room, triton.next_power_of_2(view.C))


def _room(room: int, needed: int) -> int:
    """On a GPU `room`, even if less is needed: another size would be compiled again."""
    return min(room, triton.next_power_of_2(needed)) if launch.INTERPRETED else room


def _byte_groups(depth: int) -> int:
    """The number of sets of `depth` channels that fill whole bytes, a bit for each channel."""
    return 8 // math.gcd(depth, 8)


def _groups_together(C: int, depth: int, lanes: int) -> int:
    """Channels of several groups that fill lanes best, at least about `lanes`; rather one group,
    in blocks, than more than MOST_LANES."""
    together = _byte_groups(depth) * depth
    wide = [W for W in range(together, MOST_LANES + 1, together) if W >= min(lanes, C)]
    if not wide:
        return depth
    wide = [min(W, C) for W in wide]
    return min(wide, key=lambda W: (triton.cdiv(C, W) * triton.next_power_of_2(W), W))


def _each_addressed(view: View) -> bool:
    """Whether elements are loaded one by one, each by its own address, which needs registers."""
    axis = view.C if view.channels_last else view.S
    return not launch.INTERPRETED and alignment(axis) * view.itemsize < 8


def _tiles(view: View, sets: Sets, BLOCK_N: int, BLOCK_S: int) -> int:
    s_blocks = triton.cdiv(view.S, BLOCK_S)
    return s_blocks * triton.cdiv(view.N, BLOCK_N) if sets.batch else s_blocks
