"""A norm of (N, C, S) in one launch, for sets too large for one program: the members of a cluster
keep several tiles each, publish their results, wait for one another, and merge.

For contiguous sets over the batch or within an instance, without a residual, a scale and shift of
samples, or running averages over instances. A member's tiles are of one channel. Clusters of
programs that are on the GPU together walk over the units. Members of different clusters share an
SM: one loads while the other waits. The backward is below.
"""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, centred, product, store_gradient, sum_both
from .channel_activation import depends_on_x, store_output
from .channel_gradients import (
    Sums,
    about_mean,
    instance_weight,
    slopes_of,
    store_batch_gradients,
)
from .channel_lanes import (
    block_of_channels,
    channel_blocks,
    is_first,
    merged_at_once,
    place,
    sizes,
    unit_channels,
)
from .channel_moments import Moments
from .channel_stats import (
    affine_of,
    load_running,
    load_stats,
    stats_of,
    store_stats,
    update_batch,
)
from .channel_tiles import load_pivot, spread
from .channel_types import SIZES, Member
from .channels_several_tiles import (
    block_sums,
    load_set,
    set_moments,
    set_tile,
    store_gradients,
    widened_anew,
)
from .sync import arrived_last, wait_for_members, widen
from .tables import part_pairs

PADDED_MEMBERS = tl.constexpr(512)  # at least `tilings.MOST_MEMBERS`

# --- members and their tiles ---


@triton.jit
def members_of(s, K: tl.constexpr):
    """The members of each unit."""
    return channel_blocks(s, K) * s.parts


@triton.jit
def units_of(s, K: tl.constexpr):
    """The units of the tensor (int64)."""
    if K.BATCH:
        return s.u_blocks.to(tl.int64)
    else:
        return s.N.to(tl.int64) * s.u_blocks


@triton.jit
def set_elements(s, K: tl.constexpr, ACC: tl.constexpr):
    """The elements of a set."""
    if K.BATCH:
        return s.N.to(ACC) * s.S
    else:
        return s.D.to(ACC) * s.S


@triton.jit
def first_tile(at, s, K: tl.constexpr):
    """A member's place with the first instance and position of its tiles."""
    n, start = at.n, tl.full([], K.TILES * K.BLOCK_S, tl.int64) * at.part
    if K.BATCH:
        n, start = tile_numbered(at.part * K.TILES, s, K)
    return Member(at.index, n, at.u, at.block, at.part, start)


@triton.jit
def tile_numbered(number, s, K: tl.constexpr):
    """(first instance, first position) of a tile of sets over the batch, both int64."""
    blocks = tl.cdiv(s.S, K.ROW)
    n = (number // blocks).to(tl.int64) * (K.BLOCK_S // K.ROW)
    return n, (number % blocks * K.ROW).to(tl.int64)


@triton.jit
def elements_before(number, s, K: tl.constexpr):
    """The elements of a channel's tiles before the one with this number, in order (int64)."""
    INSTANCES: tl.constexpr = K.BLOCK_S // K.ROW
    n, start = tile_numbered(number, s, K)
    instances = tl.minimum(tl.maximum(s.N - n, 0), INSTANCES)
    return tl.minimum(n, s.N) * s.S + start * instances


@triton.jit
def member_elements(at, s, K: tl.constexpr):
    """How many elements a member has (int64)."""
    if K.BATCH:
        first = at.part * K.TILES
        return elements_before(first + K.TILES, s, K) - elements_before(first, s, K)
    else:
        WIDTH: tl.constexpr = K.TILES * K.BLOCK_S
        return tl.minimum(s.S - tl.full([], WIDTH, tl.int64) * at.part, WIDTH)


# --- results that members leave for one another: planes (unit, member) of the table ---


@triton.jit
def exchange(t, values, unit, group, at, s, K: tl.constexpr):
    """Leave a tuple of a member's results, and wait for the other members."""
    members = members_of(s, K)
    slot = unit * members.to(tl.int64) + at.index
    for i in tl.static_range(len(values)):
        tl.store(t.table + i * units_of(s, K) * members + slot, values[i])
    wait_for_members(t.barriers + group, at.index, members)


@triton.jit
def of_members(t, plane: tl.constexpr, unit, s, K: tl.constexpr):
    """One of the results of all members of a unit, read past the L1 cache: other programs' stores
    do not reach that."""
    members = members_of(s, K)
    member = tl.arange(0, PADDED_MEMBERS)
    first = t.table + (plane * units_of(s, K) + unit) * members
    return tl.load(first + member, mask=member < members, other=0.0, cache_modifier=".cg")


@triton.jit
def merged_moments(t, unit, s, K: tl.constexpr):
    """Moments of a unit's set, merged as by `arithmetic.merge_along`."""
    count, mean, m2 = (
        of_members(t, 0, unit, s, K),
        of_members(t, 1, unit, s, K),
        of_members(t, 2, unit, s, K),
    )
    total = set_elements(s, K, mean.dtype)
    share = count * (1.0 / total)
    centre = tl.sum(product(share, mean), axis=0)
    deviation = mean - centre
    squares = m2 + count * deviation * deviation  # a missing member counts 0
    error, squares = sum_both(product(share, deviation), squares, 0)
    mean, m2 = centred(centre, error * total, squares, total)
    return Moments(total, mean, m2)


@triton.jit
def merged_sums(t, unit, s, K: tl.constexpr):
    """Sums of g and of g (x - center) of a unit's set."""
    return Sums(*sum_both(of_members(t, 0, unit, s, K), of_members(t, 1, unit, s, K), 0))


@triton.jit(do_not_specialize=SIZES)
def cluster_kernel(
    t, momentum: tl.float64, eps: tl.float64, N, C, S, D, W, u_blocks, parts, steps,
    K: tl.constexpr,
):  # fmt: skip
    """y = act(norm(x)), the statistics for the backward, and the running ones."""
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    members = members_of(s, K)
    group, member = tl.program_id(0) // members, tl.program_id(0) % members
    for unit in range(group, units_of(s, K).to(tl.int32), tl.num_programs(0) // members):
        normalise_part(t, unit, member, group, momentum, eps, s, K)


@triton.jit
def normalise_part(t, unit, member, group, momentum, eps, s, K: tl.constexpr):
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    TILES: tl.constexpr = K.TILES
    at = place(unit, member, s, K, K.BATCH)
    own = first_tile(at, s, K)
    tiles = load_set(t.x, own, s, K)
    channels = unit_channels(at.u, at.block, s, K)
    first = is_first(at.index, channels.c)  # this member keeps the set's statistics
    n = at.n + tl.zeros_like(channels.c).to(tl.int64)
    pivot = load_pivot(t, n, channels.c, channels.mask, s, K)
    if K.BATCH:
        old = load_running(t, channels.c, first)
    rough, m = set_moments(tiles, member_elements(at, s, K).to(ACC), own, s, K)
    mean = m.mean + (rough - tl.sum(pivot, axis=0))  # one channel
    exchange(t, (m.count, mean, m.m2), unit, group, at, s, K)
    m = merged_moments(t, unit, s, K)
    stats = stats_of(pivot, Moments(m.count, m.mean, tl.zeros_like(pivot) + m.m2), eps, K)
    if K.BATCH:
        update_batch(t, old, m, stats.center, channels.c, first, momentum)
    store_stats(t, at.n, channels.c, first, stats, s, K)
    affine = affine_of(t, stats, at.n, channels.c, channels.mask, s, K)
    tiles = widened_anew(tiles)
    for i in tl.static_range(TILES):
        x = widen(tiles[i], ACC) - spread(affine.center, K)
        store_output(t, x, affine, set_tile(i, own, s, K), s, K)


# --- backward ---


@triton.jit(do_not_specialize=SIZES)
def cluster_backward_kernel(
    t, N, C, S, D, W, u_blocks, parts, steps, K: tl.constexpr
):  # fmt: skip
    """dx = scale g + q (x - center) + r, g = dy * act'; and the parameters' gradients."""
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    members = members_of(s, K)
    group, member = tl.program_id(0) // members, tl.program_id(0) % members
    for unit in range(group, units_of(s, K).to(tl.int32), tl.num_programs(0) // members):
        differentiate_part(t, unit, member, group, s, K)


@triton.jit
def differentiate_part(t, unit, member, group, s, K: tl.constexpr):
    at = place(unit, member, s, K, K.BATCH)
    own = first_tile(at, s, K)
    dys = load_set(t.dy, own, s, K)
    if depends_on_x(K.VARIANCE, t.dweight is not None, K.ACTIVATION, t.bits is not None):
        tiles = load_set(t.x, own, s, K)
    else:
        tiles = dys
    channels = unit_channels(at.u, at.block, s, K)
    stats = load_stats(t, at.n, channels.c, channels.mask, s, K)
    affine = affine_of(t, stats, at.n, channels.c, channels.mask, s, K)
    g, gx = block_sums(t, tiles, dys, 0, affine, own, s, K)
    slopes = merged_slopes(t, Sums(g, gx), stats, unit, group, at, channels, s, K)
    tiles, dys = widened_anew(tiles), widened_anew(dys)
    store_gradients(t, tiles, dys, 0, affine, slopes, own, s, K)
    # Parameters of norms within an instance need sums over instances: the last one adds them up.
    if K.GATHERS:
        if arrived_last(t.tickets + at.u, members_of(s, K) * s.N):
            add_parts(t, at.u, s, K)


@triton.jit
def merged_slopes(t, sums, stats, unit, group, at, channels, s, K: tl.constexpr):
    """The slopes of a member's channel, from the sums of all members. Over the batch the first
    member stores dgamma and dbeta; within an instance each member leaves its part of them."""
    ACC: tl.constexpr = sums.g.dtype
    c, mask = channels.c, channels.mask
    weight = instance_weight(t, at.n, c, mask, s, K, ACC)
    if not K.BATCH:
        if K.GATHERS:
            leave_part(t, about_mean(sums, stats), stats, at, channels, s, K)
        sums = Sums(weight * sums.g, weight * sums.gx)
    own = (tl.sum(sums.g, axis=0), tl.sum(sums.gx, axis=0))  # of one channel
    exchange(t, own, unit, group, at, s, K)
    sums = about_mean(merged_sums(t, unit, s, K), stats)
    if K.BATCH:
        store_batch_gradients(t, sums, stats, c, is_first(at.index, c))
        sums = Sums(weight * sums.g, weight * sums.gx)
    return slopes_of(stats, sums, set_elements(s, K, ACC), K)


@triton.jit
def part_planes(t, s, K: tl.constexpr):
    """Pointers to (n, part, c) of the sums of g and of g x_hat, behind the members' results."""
    first = t.table + 2 * units_of(s, K) * members_of(s, K)
    return first, first + s.N.to(tl.int64) * s.parts * s.C


@triton.jit
def leave_part(t, sums, stats, at, channels, s, K: tl.constexpr):
    """Leave a member's part of the sums for dgamma and dbeta of its channel."""
    of_g, of_hat = part_planes(t, s, K)
    slot = (at.n * s.parts + at.part) * s.C + channels.c
    tl.store(of_g + slot, sums.g, mask=channels.mask)
    tl.store(of_hat + slot, stats.rstd * sums.gx, mask=channels.mask)


@triton.jit
def add_parts(t, u, s, K: tl.constexpr):
    """dgamma and dbeta of a set's channels, from all instances' parts in order."""
    BLOCK: tl.constexpr = merged_at_once(K.BLOCK_C, K.SETS)
    of_g, of_hat = part_planes(t, s, K)
    for block in range(tl.cdiv(s.W, BLOCK)):
        channels = block_of_channels(u, block, BLOCK, s)
        c, mask = channels.c, channels.mask
        g, hat = part_pairs(of_g, of_hat, 0, c, mask, s.C, s.N * s.parts, BLOCK)
        store_gradient(t.dweight, c, mask, hat)
        store_gradient(t.dbias, c, mask, g)
