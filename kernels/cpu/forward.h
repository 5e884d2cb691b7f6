/* A norm of channels, forward: moments, merge, apply. */

/* Moments of the i-th piece of positions, channels last. */
static void positions_item(struct call *k, size i) {
    size n = i / k->pieces, first = i % k->pieces * k->piece;
    positions_moments(k->t.x + (n * k->S + first) * k->C, k->C, MIN(k->piece, k->S - first),
                      k->lanes_a + i * k->C, k->lanes_b + i * k->C);
}

/* Moments of a piece. */
static void moments_item(void *context, size i) {
    struct call *k = context;
    if (k->last) {
        positions_item(k, i);
        return;
    }
    struct piece p = piece_at(&k->sets, i);
    k->pieces_found[p.at] = piece_moments(k->t.x, &k->sets, &p);
}

/* Moments of a unit's pieces, one after the other. */
static void unit_moments(struct call *k, size u) {
    if (k->last) {
        for (size i = 0; i < k->items; i++) positions_item(k, u * k->items + i);
        return;
    }
    FOR_PIECES(p, &k->sets, u) k->pieces_found[p.at] = piece_moments(k->t.x, &k->sets, &p);
}

/* Moments of (n, c), merged from those of its pieces in their order. */
static struct moments lanes_found(const struct call *k, size n, size c) {
    struct moments all = {0, 0, 0};
    for (size p = 0; p < k->pieces; p++) {
        size at = (n * k->pieces + p) * k->C + c;
        struct moments part = {(double)MIN(k->piece, k->S - p * k->piece), k->lanes_a[at],
                               k->lanes_b[at]};
        all = merged(all, part);
    }
    return all;
}

/* Moments of `count` sets, neighbours in the order of units, merged. */
static struct moments sets_found(const struct call *k, size set, size count) {
    struct moments all = {0, 0, 0};
    for (size p = 0; p < count * k->sets.pieces; p++)
        all = merged(all, k->pieces_found[set * k->sets.pieces + p]);
    return all;
}

static void update(void *running, const struct job *j, size c, double value) {
    if (!running) return;
    double old = load_value(running, j->running_type, c);
    store_value(running, j->running_type, c, (1 - j->momentum) * old + j->momentum * value);
}

static void set_stats(const struct call *k, size set, struct moments m) {
    *mean_of(k, set) = m.mean;
    *rstd_of(k, set) = k->kind == MEAN_ONLY ? 1 : 1 / sqrt(m.m2 / m.count + k->job->eps);
}

/* Store the batch statistics of channel c, whose moments are `m`. */
static void set_batch(struct call *k, size c, struct moments m) {
    const struct job *j = k->job;
    update(j->running_mean, j, c, m.mean);
    update(j->running_var, j, c, m.m2 / MAX(m.count - 1, 1));
    if (k->kind != MIXED) {
        set_stats(k, c, m);
        return;
    }
    *batch_mean(k, c) = m.mean;
    *batch_rstd(k, c) = 1 / sqrt(m.m2 / m.count + j->eps);
}

/* Statistics and coefficients of channel c in all instances, if a unit is one channel. */
static void merge_channel(struct call *k, size c) {
    const size own = k->job->own_stats;
    struct moments all = {0, 0, 0};
    if (of_batch(k->kind)) {
        const size sets = k->sets.per_unit;
        set_batch(k, c, k->last ? lanes_found(k, 0, c) : sets_found(k, c * sets, sets));
        for (size n = 0; n < k->samples; n++) set_coefficients(k, n, c, c);
        return;
    }
    double first = 0;
    for (size n = 0; n < k->N; n++) {
        struct moments m = k->last ? lanes_found(k, n, c) : sets_found(k, c * k->N + n, 1);
        set_stats(k, n * k->C + c, m);
        if (n == 0) first = m.mean;
        all.count += m.count, all.mean += m.mean - first, all.m2 += m.m2;
    }
    if (own) {
        /* Chan's merge for sets of one size. Relative to the first, so equal means stay exact. */
        all.mean = first + all.mean / (double)k->N;
        for (size n = 0; n < k->N; n++) {
            const double delta = *mean_of(k, n * k->C + c) - all.mean;
            all.m2 += (double)k->S * delta * delta;
        }
        set_batch(k, c, all);
    }
    for (size n = 0; n < k->N; n++) set_coefficients(k, n, c, n * k->C + c);
}

/* The same for the channels of a group; instance norm's groups have one. */
static void merge_group(struct call *k, size n, size g) {
    const size D = k->D, first = g * D, set = n * k->G + g;
    struct moments m = {0, 0, 0};
    if (k->last)
        for (size c = first; c < first + D; c++) m = merged(m, lanes_found(k, n, c));
    else
        m = sets_found(k, set, 1);
    k->found[set] = m;
    if (k->kind == MOMENTS) return;
    set_stats(k, set, m);
    for (size c = first; c < first + D; c++) set_coefficients(k, n, c, set);
}

/* An item of a merge is a unit. If channels lie last and are merged over instances, it is some of
   them. */
#define MERGED 8

static size merge_items(const struct call *k) {
    return k->last && of_channels(k->kind) ? ceil_div(k->C, MERGED) : k->units;
}

/* The i-th item, forward or backward: `channel` or `group` merges one set. */
static INLINE void merge_sets(struct call *k, size i, void (*channel)(struct call *, size),
                              void (*group)(struct call *, size, size)) {
    if (k->last && of_channels(k->kind)) {
        for (size c = i * MERGED; c < MIN((i + 1) * MERGED, k->C); c++) channel(k, c);
    } else if (of_channels(k->kind)) {
        channel(k, i);
    } else if (k->last) {
        for (size g = 0; g < k->G; g++) group(k, i, g);
    } else {
        group(k, i / k->G, i % k->G);
    }
}

static void merge_item(void *context, size i) {
    merge_sets(context, i, merge_channel, merge_group);
}

/* All items of a unit. */
static void merge_unit(struct call *k, size u, void (*item)(void *, size)) {
    if (k->last && of_channels(k->kind))
        for (size i = 0; i < merge_items(k); i++) item(k, i);
    else
        item(k, u);
}

/* Positions from `first` on, up to `end`, that share coefficients. */
static INLINE struct stretch stretch_of(const struct call *k, size first, size end) {
    const size sample = first / k->span;
    struct stretch s = {first, MIN(end, (sample + 1) * k->span), k->C, sample * k->C};
    return s;
}

/* y of positions [first, end), counted over all instances. */
static void apply_positions(const struct call *k, size first, size end) {
    for (struct stretch s; first < end; first = s.end) {
        s = stretch_of(k, first, end);
        SPECIALISED(stretch_forward, k->job->activation, k->t.residual != NULL, &k->t, &k->a, s)
    }
}

/* Coefficients of a row (n, c). */
static INLINE struct coefficients coefficients_of(const struct table *a, size at) {
    struct coefficients found = {splat(a->center[at]), splat(a->scale[at]), splat(a->shift[at])};
    return found;
}

static INLINE void rows_forward(const struct call *k, size row, size rows, size first, size end,
                                int activation, int added) {
    const struct tensors t = k->t; /* copies: no store can change them */
    const struct table a = k->a;
    const size C = k->C, S = k->S;
    size n = row / C, c = row % C;
    for (size i = 0; i < rows; i++, row++) {
        struct run r = {row * S, first, end, S, row};
        run_forward(&t, r, coefficients_of(&a, slot(k, n, c)), activation, added);
        if (++c == C) c = 0, n++;
    }
}

/* y of elements [first, end) of each of `rows` neighbouring rows (n, c). */
static void apply_rows(const struct call *k, size row, size rows, size first, size end) {
    SPECIALISED(rows_forward, k->job->activation, k->t.residual != NULL, k, row, rows, first, end)
}

/* How a stage that writes is shared out: in the order of memory, and in runs of many elements.
   Items are taken from the last to the first, and data ahead of a run is fetched in time. */
static size apply_items(const struct call *k) {
    if (k->last) return k->N * k->pieces;
    return ceil_div(k->N * k->C, k->rows) * ceil_div(k->S, BLOCK * BLOCKS);
}

static void apply_item(void *context, size i) {
    struct call *k = context;
    if (k->last) {
        size n = i / k->pieces, first = n * k->S + i % k->pieces * k->piece;
        apply_positions(k, first, MIN(first + k->piece, (n + 1) * k->S));
        return;
    }
    size across = ceil_div(k->S, BLOCK * BLOCKS), rows = k->rows, row = i / across * rows;
    size first = i % across * BLOCK * BLOCKS;
    apply_rows(k, row, MIN(rows, k->N * k->C - row), first, MIN(first + BLOCK * BLOCKS, k->S));
}

/* All stages of some units, which stay in a core's own cache. Short units are taken together: as
   many as fit L1. While one waits, another is computed. */
static void forward_units(void *context, size i) {
    struct call *k = context;
    const size first = i * k->together, end = MIN(first + k->together, k->units);
    for (size u = first; u < end; u++) unit_moments(k, u);
    for (size u = first; u < end; u++) merge_unit(k, u, merge_item);
    if (k->last)
        for (size p = end * k->items - 1; p >= first * k->items; p--) apply_item(k, p);
    else
        apply_rows(k, first * k->D, (end - first) * k->D, 0, k->S);
}

/* Whether each unit runs through all stages: if it fits the cache and there are enough for every
   thread. Not if a unit is one channel of each instance: its runs lie far apart, and take longer
   than a second read of the tensor in its order. */
static int by_units(const struct call *k, size tensors, int threads) {
    if (!k->last && of_channels(k->kind)) return 0;
    size bytes = k->N * k->C * k->S / k->units * (size)sizeof(elem) * tensors;
    return bytes <= second_level_cache() / 4 * 3 && (threads == 1 || k->units >= 4 * threads);
}

/* Coefficients if there is nothing to merge. */
static void given_coefficients(struct call *k, int threads) {
    const struct job *j = k->job;
    for (size c = 0; of_batch(k->kind) && c < k->C; c++) {
        double var = j->running_var ? load_value(j->running_var, j->running_type, c) : 0;
        *mean_of(k, c) = load_value(j->running_mean, j->running_type, c);
        *rstd_of(k, c) = k->kind == MEAN_ONLY ? 1 : 1 / sqrt(var + j->eps);
    }
    all_coefficients(k, threads);
}

/* Instance norm's running statistics: averages of the means and of the unbiased variances. */
static void average_instances(struct call *k) {
    const struct job *j = k->job;
    for (size c = 0; (j->running_mean || j->running_var) && c < k->C; c++) {
        double mean = 0, var = 0;
        for (size n = 0; n < k->N; n++) {
            struct moments m = k->found[n * k->C + c];
            mean += m.mean / (double)k->N;
            var += m.m2 / MAX(m.count - 1, 1) / (double)k->N;
        }
        update(j->running_mean, j, c, mean);
        update(j->running_var, j, c, var);
    }
}

static void return_moments(const struct call *k) {
    for (size i = 0; i < k->N * k->C; i++) {
        k->job->sums[i] = k->found[i].mean;
        k->job->sums[k->N * k->C + i] = k->found[i].m2 / k->found[i].count;
    }
}

int NAME(norm)(const struct job *j) {
    struct call k;
    if (begin(&k, j, 0)) return -1;
    const size bytes = j->N * j->C * j->S * (size)sizeof(elem);
    const int threads = threads_for(bytes, j->threads);
    const int merges = k.kind != GIVEN && (!of_batch(k.kind) || j->own_stats);
    if (k.kind == MIXED && !j->own_stats)
        for (size c = 0; c < k.C; c++) {
            double var = load_value(j->running_var, j->running_type, c);
            *batch_mean(&k, c) = load_value(j->running_mean, j->running_type, c);
            *batch_rstd(&k, c) = 1 / sqrt(var + j->eps);
        }
    if (merges && k.kind != MOMENTS && by_units(&k, 2, threads)) {
        share_out(forward_units, &k, ceil_div(k.units, k.together), threads, 0);
    } else {
        if (merges) {
            share_out(moments_item, &k, k.units * k.items, threads, 0);
            share_out(merge_item, &k, merge_items(&k), threads, 0);
        } else {
            given_coefficients(&k, threads);
        }
        if (k.kind != MOMENTS) share_out(apply_item, &k, apply_items(&k), threads, merges);
    }
    if (k.kind == INSTANCE) average_instances(&k);
    if (k.kind == MOMENTS) return_moments(&k);
    free(k.memory);
    return 0;
}
