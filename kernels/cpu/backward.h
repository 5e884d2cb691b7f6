/* A norm of channels, backward: sums of gradients, merge, apply. */

/* Sums of (n, c) are always of g and of g (x - center), relative to the rounded center; their place
   differs. */

/* Sums of the i-th piece of positions, channels last. */
static void positions_sums(struct call *k, size i) {
    const int added = k->t.residual || k->t.bits;
    size n = i / k->pieces, first = n * k->S + i % k->pieces * k->piece;
    struct stretch s = stretch_of(k, first, MIN(first + k->piece, (n + 1) * k->S));
    double *g = k->lanes_a + i * k->C, *gx = k->lanes_b + i * k->C;
    memset(g, 0, k->C * sizeof *g);
    memset(gx, 0, k->C * sizeof *gx);
    SPECIALISED(stretch_sums, k->job->activation, added, &k->t, &k->a, s, g, gx)
}

/* Sums of a piece; its rows are (n, c) or runs of them. */
static INLINE void blocks_sums(const struct call *k, const struct piece *p, struct sums *found,
                               int activation, int added) {
    const struct tensors t = k->t; /* copies: no store can change them */
    const struct table a = k->a;
    const struct sets *s = &k->sets;
    for (size b = p->index * BLOCKS; b < MIN((p->index + 1) * BLOCKS, s->blocks); b++) {
        struct block block = block_of(s, b);
        size first = block.column, row = p->unit * k->D + p->set; /* n C + c */
        if (of_channels(k->kind)) row = (p->set + block.row) * k->C + p->unit;
        struct chains sums = {{{0}}, {{0}}};
        for (size r = 0; r < block.rows; r++, row += k->C) {
            size at = of_batch(k->kind) && shared(k) ? p->unit : row;
            struct run run = {row * k->S, first, first + block.length, k->S, row};
            run_sums(&t, run, coefficients_of(&a, at), &sums, activation, added);
        }
        found->g += sum(sums.g[0] + sums.g[1]);
        found->gx += sum(sums.gx[0] + sums.gx[1]);
    }
}

static struct sums piece_sums(const struct call *k, const struct piece *p) {
    struct sums all = {0, 0};
    SPECIALISED(blocks_sums, k->job->activation, k->t.residual || k->t.bits, k, p, &all)
    return all;
}

static void sums_item(void *context, size i) {
    struct call *k = context;
    if (k->last) {
        positions_sums(k, i);
        return;
    }
    struct piece p = piece_at(&k->sets, i);
    k->sums_found[p.at] = piece_sums(k, &p);
}

static void unit_sums(struct call *k, size u) {
    if (k->last) {
        for (size i = 0; i < k->items; i++) positions_sums(k, u * k->items + i);
        return;
    }
    FOR_PIECES(p, &k->sets, u) k->sums_found[p.at] = piece_sums(k, &p);
}

/* The sums of (n, c), merged from those of its pieces in their order. */
static struct sums sums_of(const struct call *k, size n, size c) {
    struct sums all = {0, 0};
    size pieces = k->last ? k->pieces : k->sets.pieces;
    size set = n * k->C + c; /* the index of a set in the order of units */
    if (of_channels(k->kind)) set = c * k->samples + n;
    if (of_batch(k->kind) && shared(k) && !k->last) pieces *= k->sets.per_unit;
    for (size p = 0; p < pieces; p++) {
        size at = (n * pieces + p) * k->C + c;
        struct sums part = k->last ? (struct sums){k->lanes_a[at], k->lanes_b[at]}
                                   : k->sums_found[set * pieces + p];
        all.g += part.g;
        all.gx += part.gx;
    }
    return all;
}

/* The distance from the rounded center to the exact mean of (n, c)'s set. */
static INLINE double offset_of(const struct call *k, size n, size c, size set) {
    return *mean_of(k, set) - (double)k->a.center[slot(k, n, c)];
}

/* dx = p g + q (x - mean) + r for (n, c), made relative to the rounded center. */
static INLINE void set_slopes(struct call *k, size n, size c, size set, double p, double q,
                              double r) {
    const size i = slot(k, n, c);
    k->a.p[i] = (acc)p;
    k->a.q[i] = (acc)q;
    k->a.r[i] = (acc)(r - q * offset_of(k, n, c, set));
}

/* Read the sums of (n, c), relative to the exact mean. */
static INLINE struct sums take_sums(struct call *k, size n, size c, size set) {
    struct sums found = sums_of(k, n, c);
    found.gx -= offset_of(k, n, c, set) * found.g;
    k->sum_g[slot(k, n, c)] = found.g;
    k->sum_gx[slot(k, n, c)] = found.gx;
    return found;
}

/* dx if statistics are constants. */
static void set_constant_slopes(struct call *k, size c) {
    for (size n = 0; n < k->samples; n++)
        set_slopes(k, n, c, c, k->gamma[parameter(k, n, c)] * *rstd_of(k, c), 0, 0);
}

static void merge_channel_backward(struct call *k, size c) {
    const double rstd = *rstd_of(k, c), count = (double)(k->N * k->S);
    double sum_g = 0, sum_gx = 0;
    for (size n = 0; n < k->samples; n++) {
        struct sums s = take_sums(k, n, c, c);
        const double gamma = k->gamma[parameter(k, n, c)];
        k->of_gamma[n * k->C + c] = rstd * s.gx;
        sum_g += gamma * s.g;
        sum_gx += gamma * s.gx;
    }
    if (!k->job->own_stats) {
        set_constant_slopes(k, c);
        return;
    }
    const double q = k->kind == MEAN_ONLY ? 0 : -rstd * rstd * rstd * sum_gx / count;
    for (size n = 0; n < k->samples; n++)
        set_slopes(k, n, c, c, k->gamma[parameter(k, n, c)] * rstd, q, -rstd * sum_g / count);
}

/* The channels of a group in one instance; instance norm's groups have one channel. */
static void merge_group_backward(struct call *k, size n, size g) {
    const size D = k->D, first = g * D;
    const double count = (double)(D * k->S);
    const size set = n * k->G + g;
    double sum_g = 0, sum_gx = 0, rstd = *rstd_of(k, set);
    for (size c = first; c < first + D; c++) {
        struct sums s = take_sums(k, n, c, set);
        const double gamma = k->gamma[parameter(k, n, c)];
        k->of_gamma[n * k->C + c] = rstd * s.gx;
        sum_g += gamma * s.g;
        sum_gx += gamma * s.gx;
    }
    const double q = -rstd * rstd * rstd * sum_gx / count, r = -rstd * sum_g / count;
    for (size c = first; c < first + D; c++)
        set_slopes(k, n, c, set, k->gamma[parameter(k, n, c)] * rstd, q, r);
}

/* Batch-instance norm's channel c; rho's gradient replaces the sum of n = 0. */
static void merge_mixed_backward(struct call *k, size c) {
    const size N = k->N, C = k->C;
    const double rho = k->rho[c], mean = *batch_mean(k, c);
    const double rstd = *batch_rstd(k, c), count = (double)k->S;
    double total_g = 0, batch_gx = 0, drho = 0; /* sums of gamma g */
    for (size n = 0; n < N; n++) {
        struct sums s = take_sums(k, n, c, n * C + c);
        const double gamma = k->gamma[parameter(k, n, c)];
        const double instance = *rstd_of(k, n * C + c) * s.gx;
        const double batch = rstd * (s.gx + (*mean_of(k, n * C + c) - mean) * s.g);
        k->of_gamma[n * C + c] = instance + rho * (batch - instance);
        total_g += gamma * s.g;
        batch_gx += gamma * batch;
        drho += gamma * (batch - instance);
    }
    const double share = -rho * rstd / (count * (double)N);
    double slope = 0, level = 0; /* through the batch's statistics, if they are x's own */
    if (k->job->own_stats) slope = share * rstd * batch_gx, level = share * total_g;
    for (size n = 0; n < N; n++) {
        const double m = *mean_of(k, n * C + c), own = *rstd_of(k, n * C + c);
        const double g = k->sum_g[n * C + c], gx = k->sum_gx[n * C + c];
        const double gamma = k->gamma[parameter(k, n, c)];
        const double of_instance = -gamma * (1 - rho) * own / count;
        const double p = gamma * ((1 - rho) * own + rho * rstd);
        set_slopes(k, n, c, n * C + c, p, of_instance * own * own * gx + slope,
                   of_instance * g + (m - mean) * slope + level);
    }
    k->sum_gx[c] = drho;
}

static void merge_channel_of_kind(struct call *k, size c) {
    if (k->kind == MIXED)
        merge_mixed_backward(k, c);
    else
        merge_channel_backward(k, c);
}

static void merge_item_backward(void *context, size i) {
    merge_sets(context, i, merge_channel_of_kind, merge_group_backward);
}

static void gradient_positions(const struct call *k, size first, size end) {
    const int added = k->t.residual || k->t.bits;
    struct stretch s = stretch_of(k, first, end); /* of one instance, or of all that share */
    SPECIALISED(stretch_backward, k->job->activation, added, &k->t, &k->a, s)
}

static INLINE void rows_backward(const struct call *k, size row, size rows, size first, size end,
                                 int activation, int added) {
    const struct tensors t = k->t;
    const struct table a = k->a;
    const size C = k->C, S = k->S;
    size n = row / C, c = row % C;
    for (size i = 0; i < rows; i++, row++) {
        size at = slot(k, n, c);
        struct slopes d = {splat(a.p[at]), splat(a.q[at]), splat(a.r[at])};
        struct run r = {row * S, first, end, S, row};
        run_backward(&t, r, coefficients_of(&a, at), d, activation, added);
        if (++c == C) c = 0, n++;
    }
}

static void gradient_rows(const struct call *k, size row, size rows, size first, size end) {
    const int added = k->t.residual || k->t.bits;
    SPECIALISED(rows_backward, k->job->activation, added, k, row, rows, first, end)
}

static void gradient_item(void *context, size i) {
    struct call *k = context;
    if (k->last) {
        size n = i / k->pieces, first = n * k->S + i % k->pieces * k->piece;
        gradient_positions(k, first, MIN(first + k->piece, (n + 1) * k->S));
        return;
    }
    size across = ceil_div(k->S, BLOCK * BLOCKS), rows = k->rows, row = i / across * rows;
    size first = i % across * BLOCK * BLOCKS;
    gradient_rows(k, row, MIN(rows, k->N * k->C - row), first,
                  MIN(first + BLOCK * BLOCKS, k->S));
}

/* All stages of some units. The g of a smooth activation is slow to compute, so it is kept between
   stages, to the bit: in dx, which is computed last, or in extra memory if dx has 16 bits. */
static void backward_units(void *context, size i) {
    struct call own = *(struct call *)context, *k = &own;
    const size first = i * k->together, end = MIN(first + k->together, k->units);
    const int writes = k->t.y || k->t.dresidual;
    const size unit = k->N * k->C * k->S / k->units;
    acc *beside = NULL;
    if (writes && is_smooth(k->job->activation)) {
        if (k->t.y && sizeof(elem) == sizeof(acc))
            k->t.g = (acc *)k->t.y;
        else /* without memory g is computed twice */
            k->t.g = beside = malloc((size_t)((end - first) * unit) * sizeof(acc)),
            k->t.g_start = first * unit;
    }
    for (size u = first; u < end; u++) unit_sums(k, u);
    for (size u = first; u < end; u++) merge_unit(k, u, merge_item_backward);
    if (writes && k->last)
        for (size p = end * k->items - 1; p >= first * k->items; p--) gradient_item(k, p);
    else if (writes)
        gradient_rows(k, first * k->D, (end - first) * k->D, 0, k->S);
    free(beside);
}

/* Gradients of weight, bias and rho. If instances share them, they are sums over n in order; the
   sum replaces the values of n = 0. */
static void parameter_gradients(const struct call *k) {
    const struct job *j = k->job;
    const size C = k->C, count = j->per_sample ? k->samples * C : C;
    for (size n = 1; n < k->samples && !j->per_sample; n++)
        for (size c = 0; c < C; c++) {
            k->of_gamma[c] += k->of_gamma[n * C + c];
            k->sum_g[c] += k->sum_g[n * C + c];
        }
    store_all(j->dweight, j->parameter_type, 0, count, k->of_gamma);
    store_all(j->dbias, j->parameter_type, 0, count, k->sum_g);
    store_all(j->drho, j->parameter_type, 0, C, k->sum_gx);
}

/* The sums for a merge made elsewhere, relative to the given centers. */
static void return_sums(struct call *k) {
    const size sets = k->N * k->C;
    for (size n = 0; n < k->N; n++)
        for (size c = 0; c < k->C; c++) {
            struct sums s = take_sums(k, n, c, n * k->C + c);
            k->job->sums[n * k->C + c] = s.g;
            k->job->sums[sets + n * k->C + c] = s.gx;
        }
}

/* Slope and level from such a merge: dx = scale g + slope (x - center) + level. */
static void given_slopes(struct call *k) {
    const size sets = k->N * k->C;
    const double *slope = k->job->slopes;
    for (size n = 0; n < k->N; n++)
        for (size c = 0; c < k->C; c++) {
            size i = n * k->C + c;
            set_slopes(k, n, c, i, *rstd_of(k, i), slope ? slope[i] : 0, slope ? slope[sets + i] : 0);
        }
}

int NAME(norm_backward)(const struct job *j) {
    struct call k;
    if (begin(&k, j, 1)) return -1;
    const size bytes = j->N * j->C * j->S * (size)sizeof(elem);
    const int threads = threads_for(bytes, j->threads);
    const int constant = of_batch(k.kind) && !j->own_stats;
    const int writes = k.t.y || k.t.dresidual;
    const int sums = j->sums || j->dweight || j->dbias || j->drho || (k.t.y && !constant);
    const int together = sums && k.kind != GIVEN && by_units(&k, 4, threads);
    k.t.constant = constant;
    all_coefficients(&k, threads);
    if (k.kind == GIVEN) {
        if (j->sums) {
            share_out(sums_item, &k, k.units * k.items, threads, 0);
            return_sums(&k);
        }
        given_slopes(&k);
        if (writes) share_out(gradient_item, &k, apply_items(&k), threads, 0);
    } else if (together) {
        share_out(backward_units, &k, ceil_div(k.units, k.together), threads, 0);
    } else {
        if (sums) {
            share_out(sums_item, &k, k.units * k.items, threads, 0);
            share_out(merge_item_backward, &k, merge_items(&k), threads, 0);
        }
        for (size c = 0; !sums && constant && c < k.C; c++) set_constant_slopes(&k, c);
        if (writes) share_out(gradient_item, &k, apply_items(&k), threads, sums);
    }
    if (j->dweight || j->dbias || j->drho) parameter_gradients(&k);
    free(k.memory);
    return 0;
}
