/* Runs of memory that share their coefficients: (N, C, S) tensors. */

/* The place of a norm's sets of values: set k of unit u is `rows` runs of `length` elements. */
struct sets {
    size units, per_unit, unit_stride, set_stride, rows, row_stride, length;
    size block_rows, blocks, pieces; /* blocks fit L1; pieces have BLOCKS blocks */
};

#define BLOCK (16384 / (size)sizeof(elem)) /* elements: half of a small L1 */
#define BLOCKS 8                           /* in a piece, the unit of work of one thread */

struct moments {
    double count, mean, m2;
};

static struct sets with_blocks(struct sets s) {
    s.block_rows = MAX(1, BLOCK / s.length);
    s.blocks = ceil_div(s.rows, s.block_rows) * ceil_div(s.length, BLOCK);
    s.pieces = ceil_div(s.blocks, BLOCKS);
    return s;
}

/* Some rows of a set, or some columns of one row. Divisions take longer than the values of a short
   set: most sets are one block, and need none. */
struct block {
    size row, rows, column, length;
};

static INLINE struct block block_of(const struct sets *s, size b) {
    size row = 0, column = 0;
    if (s->blocks > 1) {
        size across = ceil_div(s->length, BLOCK);
        row = b / across * s->block_rows, column = b % across * BLOCK;
    }
    struct block found = {row, MIN(s->block_rows, s->rows - row), column,
                          MIN(BLOCK, s->length - column)};
    return found;
}

/* Chan, Golub & LeVeque (1979). */
static INLINE struct moments merged(struct moments a, struct moments b) {
    double count = a.count + b.count, delta = b.mean - a.mean, share = b.count / count;
    if (a.count == 0) return b;
    struct moments both = {count, a.mean + delta * share,
                           a.m2 + b.m2 + delta * (a.count * share) * delta};
    return both;
}

/* The exact mean, then the squares of the deviations from it. The sum of the deviations is the
   mean's own rounding error, to the last bit if all values are equal. Each value is weighted before
   it is added: a plain sum would overflow though the mean does not. */
static INLINE struct moments block_moments(const elem *x, struct block b, size row_stride) {
    x += b.row * row_stride + b.column;
    const acc share = (acc)1 / (acc)(b.rows * b.length);
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (size r = 0; r < b.rows; r++) {
        const elem *p = x + r * row_stride;
        size i = 0;
        for (; i + 4 * VL <= b.length; i += 4 * VL) {
            s0 += get(p + i, VL) * share;
            s1 += get(p + i + VL, VL) * share;
            s2 += get(p + i + 2 * VL, VL) * share;
            s3 += get(p + i + 3 * VL, VL) * share;
        }
        for (; i + VL <= b.length; i += VL) s0 += get(p + i, VL) * share;
        if (i < b.length) s1 += get(p + i, (int)(b.length - i)) * share;
    }
    const acc mean = sum((s0 + s1) + (s2 + s3));
    vec e0 = {0}, e1 = {0}, q0 = {0}, q1 = {0};
    for (size r = 0; r < b.rows; r++) {
        const elem *p = x + r * row_stride;
        size i = 0;
        for (; i + 2 * VL <= b.length; i += 2 * VL) {
            vec d0 = get(p + i, VL) - mean, d1 = get(p + i + VL, VL) - mean;
            e0 += d0;
            q0 += d0 * d0;
            e1 += d1;
            q1 += d1 * d1;
        }
        for (; i < b.length; i += VL) {
            int k = (int)MIN(VL, b.length - i);
            vec d = get(p + i, k) - mean;
            if (k < VL) d = keep(first_lanes(k), d);
            e0 += d;
            q0 += d * d;
        }
    }
    const double count = (double)(b.rows * b.length), error = error_of_mean(sum(e0 + e1), count);
    const double m2 = sum(q0 + q1) - count * error * error;
    struct moments found = {count, mean + error, m2 < 0 ? 0 : m2};
    return found;
}

/* A piece of a set: its unit, the set's index in it, the piece's index, its results' index. */
struct piece {
    size unit, set, index, at;
};

/* The i-th item of a stage. If a unit's sets are neighbouring rows, items are in order of units.
   If they are one channel of each instance, in order of memory. */
static struct piece piece_at(const struct sets *s, size i) {
    struct piece p = {i, 0, 0, i};
    if (s->pieces > 1) p.unit = i / s->pieces, p.index = i % s->pieces;
    if (s->per_unit > 1) {
        size set = p.unit;
        if (s->set_stride > s->unit_stride)
            p.unit = set % s->units, p.set = set / s->units;
        else
            p.unit = set / s->per_unit, p.set = set % s->per_unit;
        p.at = (p.unit * s->per_unit + p.set) * s->pieces + p.index;
    }
    return p;
}

#define FOR_PIECES(p, s, u)                                                                   \
    for (struct piece p = {u, 0, 0, (u) * (s)->per_unit * (s)->pieces}; p.set < (s)->per_unit; \
         p.set++, p.index = 0)                                                                \
        for (; p.index < (s)->pieces; p.index++, p.at++)

static struct moments piece_moments(const elem *x, const struct sets *s, const struct piece *p) {
    struct moments all = {0, 0, 0};
    x += p->unit * s->unit_stride + p->set * s->set_stride;
    if (s->blocks == 1) {
        const struct block whole = {0, s->rows, 0, s->length};
        return block_moments(x, whole, s->row_stride);
    }
    for (size b = p->index * BLOCKS; b < MIN((p->index + 1) * BLOCKS, s->blocks); b++)
        all = merged(all, block_moments(x, block_of(s, b), s->row_stride));
    return all;
}

/* A run of a row: elements [first, end) of the S that start at `start`; `row` gives its bits. */
struct run {
    size start, first, end, S, row;
};

static INLINE uint8_t *bits_at(uint8_t *bits, struct run r, size i) {
    return bits ? bits + r.row * ceil_div(r.S, 8) + i / 8 : NULL;
}

static INLINE void run_forward(const struct tensors *t, struct run r, struct coefficients a,
                               int activation, int added) {
    size i = r.first;
    for (; i + VL <= r.end; i += VL)
        forward_step(t, r.start + i, bits_at(t->bits, r, i), VL, a, activation, added);
    if (i < r.end)
        forward_step(t, r.start + i, bits_at(t->bits, r, i), (int)(r.end - i), a, activation, added);
}

/* Sums of g and of g (x - center). */
struct sums {
    double g, gx;
};

/* The same sums while they grow, in two chains each. */
struct chains {
    vec g[2], gx[2];
};

static INLINE void run_sums(const struct tensors *t, struct run r, struct coefficients a,
                            struct chains *found, int activation, int added) {
    vec g0 = found->g[0], g1 = found->g[1], x0 = found->gx[0], x1 = found->gx[1], d0, d1;
    size i = r.first;
    for (; i + 2 * VL <= r.end; i += 2 * VL) {
        vec a0 = summed_step(t, r.start + i, bits_at(t->bits, r, i), VL, a, activation, added, &d0);
        vec a1 = summed_step(t, r.start + i + VL, bits_at(t->bits, r, i + VL), VL, a, activation,
                             added, &d1);
        g0 += a0;
        x0 += a0 * d0;
        g1 += a1;
        x1 += a1 * d1;
    }
    for (; i < r.end; i += VL) {
        int k = (int)MIN(VL, r.end - i);
        vec g = summed_step(t, r.start + i, bits_at(t->bits, r, i), k, a, activation, added, &d0);
        if (k < VL) g = keep(first_lanes(k), g), d0 = keep(first_lanes(k), d0);
        g0 += g;
        x0 += g * d0;
    }
    found->g[0] = g0, found->g[1] = g1, found->gx[0] = x0, found->gx[1] = x1;
}

static INLINE void run_backward(const struct tensors *t, struct run r, struct coefficients a,
                                struct slopes d, int activation, int added) {
    size i = r.first;
    for (; i + VL <= r.end; i += VL)
        backward_step(t, r.start + i, bits_at(t->bits, r, i), VL, a, d, activation, added);
    if (i < r.end)
        backward_step(t, r.start + i, bits_at(t->bits, r, i), (int)(r.end - i), a, d, activation,
                      added);
}
