/* Layer and RMS norm of rows of L neighbours: y = act(x_hat gamma + beta + residual). */

/* A row is cut into pieces, which are merged in their order: one of them, or whole rows, are the
   work of one thread, and values do not depend on which. */
#define TOGETHER 4
#define RANGE 1024 /* columns of a piece of those gradients: they stay in L1 */
#define RUN 16     /* pieces that are written as one run */

struct rows {
    const struct rows_job *job;
    struct tensors t;
    const acc *gamma, *beta; /* or NULL */
    const elem *dsum;        /* likewise */
    size L;
    size rows, piece, pieces; /* of an item: its rows, its columns, how many of these a row has */
    struct moments *found;    /* of each piece of each row, where these are items; RMS norm's M2 */
    struct sums *sums;        /* of gamma g and of gamma g x_hat, likewise */
    acc *partial;             /* (chunks of rows, 2, L): what they add to the gradients, or NULL */
};

/* Loops take a copy of it: what they store could else be the struct itself, to be read again. */

/* What makes x_hat of x: (x - center) rstd + shift; of RMS norm center and shift are 0. */
static INLINE struct coefficients row_coefficients(const struct rows_job *j, size row) {
    const double mean = j->stats[row], rstd = j->stats[j->R + row];
    const acc center = (acc)mean;
    struct coefficients a = {splat(center), splat((acc)rstd),
                             splat((acc)(((double)center - mean) * rstd))};
    return a;
}

static INLINE vec factor(const acc *p, size i, int k, acc otherwise) {
    return p ? get_acc(p + i, k) : splat(otherwise);
}

static INLINE int lanes_left(size i, size end) { return end - i < VL ? (int)(end - i) : VL; }

/* total = x + addend, rounded as the tensor that is handed on. */
static void add_columns(const struct rows_job *j, size row, size first, size end) {
    const elem *x = (const elem *)j->x + row * j->L, *addend = (const elem *)j->addend + row * j->L;
    elem *total = (elem *)j->total + row * j->L;
    size i = first;
    for (; i + VL <= end; i += VL) put(total + i, get(x + i, VL) + get(addend + i, VL), VL);
    if (i < end) {
        int k = lanes_left(i, end);
        put(total + i, get(x + i, k) + get(addend + i, k), k);
    }
}

static double sum_of_squares(const elem *x, size L) {
    double total = 0;
    for (size start = 0; start < L; start += BLOCK) {
        vec s0 = {0}, s1 = {0}, v;
        size i = start, end = MIN(start + BLOCK, L);
        for (; i + 2 * VL <= end; i += 2 * VL) {
            v = get(x + i, VL);
            s0 += v * v;
            v = get(x + i + VL, VL);
            s1 += v * v;
        }
        for (; i < end; i += VL) {
            v = get(x + i, lanes_left(i, end));
            s0 += v * v;
        }
        total += sum(s0 + s1);
    }
    return total;
}

/* Moments of columns [first, end), a piece of the row. */
static struct moments row_piece(const struct rows *w, size row, size first, size end) {
    const struct rows_job *j = w->job;
    const elem *x = w->t.x + row * j->L;
    if (j->addend) add_columns(j, row, first, end);
    if (j->rms) return (struct moments){0, 0, sum_of_squares(x + first, end - first)};
    struct block b = {0, 1, first, end - first};
    return block_moments(x, b, 0);
}

static struct moments row_merged(const struct rows *w, struct moments a, struct moments b) {
    if (!w->job->rms) return merged(a, b);
    a.m2 += b.m2;
    return a;
}

static void row_stats(const struct rows_job *j, size row, struct moments all) {
    j->stats[row] = j->rms ? 0 : all.mean;
    j->stats[j->R + row] = 1 / sqrt(all.m2 / (double)j->L + j->eps);
}

static INLINE void row_step(const struct rows *w, size row, size i, int k, struct coefficients a,
                            int activation, int added) {
    const size L = w->L, at = row * L + i;
    vec z = (get(w->t.x + at, k) - a.center) * a.scale + a.shift;
    z = z * factor(w->gamma, i, k, 1) + factor(w->beta, i, k, 0);
    if (added) {
        z += get(w->t.residual + at, k);
        if (keeps_mask(activation) && w->t.bits)
            put_bits(w->t.bits + row * ceil_div(L, 8) + i / 8, passes(z, activation), k);
    }
    put(w->t.y + at, activated(z, activation, w->t.parameter), k);
}

static INLINE void row_forward(const struct rows *shared, size row, size first, size end,
                               int activation, int added) {
    const struct rows own = *shared, *w = &own;
    struct coefficients a = row_coefficients(w->job, row);
    size i = first;
    for (; i + VL <= end; i += VL) row_step(w, row, i, VL, a, activation, added);
    if (i < end) row_step(w, row, i, (int)(end - i), a, activation, added);
}

static void apply_columns(const struct rows *w, size row, size first, size end) {
    SPECIALISED(row_forward, w->job->activation, w->job->residual != NULL, w, row, first, end)
}

static void rows_forward_item(void *context, size item) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    for (size row = item * w->rows; row < MIN((item + 1) * w->rows, j->R); row++) {
        struct moments all = {0, 0, 0};
        for (size i = 0; i < j->L; i += w->piece)
            all = row_merged(w, all, row_piece(w, row, i, MIN(i + w->piece, j->L)));
        row_stats(j, row, all);
        apply_columns(w, row, 0, j->L);
    }
}

/* The same of rows that are too few for the threads, by stages. */
static void row_moments_item(void *context, size i) {
    struct rows *w = context;
    size first = i % w->pieces * w->piece;
    w->found[i] = row_piece(w, i / w->pieces, first, MIN(first + w->piece, w->L));
}

static void row_merge_item(void *context, size row) {
    struct rows *w = context;
    struct moments all = {0, 0, 0};
    for (size p = 0; p < w->pieces; p++) all = row_merged(w, all, w->found[row * w->pieces + p]);
    row_stats(w->job, row, all);
}

static void row_apply_item(void *context, size i) {
    struct rows *w = context;
    size first = i % w->pieces * w->piece;
    apply_columns(w, i / w->pieces, first, MIN(first + w->piece, w->L));
}

/* g = dy act'(z) and x_hat of k neighbours. */
static INLINE vec row_gradient(const struct rows *w, size row, size i, int k,
                               struct coefficients a, int activation, int added, vec *x_hat) {
    const size L = w->L, at = row * L + i;
    vec g = get(w->t.dy + at, k);
    *x_hat = (get(w->t.x + at, k) - a.center) * a.scale + a.shift;
    if (activation == NONE) return g;
    if (added && keeps_mask(activation))
        return masked_gradient(g, get_bits(w->t.bits + row * ceil_div(L, 8) + i / 8, k), activation,
                               w->t.parameter);
    vec z = *x_hat * factor(w->gamma, i, k, 1) + factor(w->beta, i, k, 0);
    if (added) z += get(w->t.residual + at, k);
    return activation_gradient(g, z, activation, w->t.parameter);
}

/* k columns of `rows` rows: their sums, and what they add to the parameters' gradients. */
static INLINE void sums_step(const struct rows *w, const struct coefficients *a, size row,
                             const int rows, size i, int k, vec *g, vec *gx, acc *of_gamma,
                             acc *of_beta, int activation, int added) {
    const vec gamma = factor(w->gamma, i, k, 1);
    vec dgamma = {0}, dbeta = {0};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        vec x_hat, own = row_gradient(w, row + r, i, k, a[r], activation, added, &x_hat);
        if (k < VL) own = keep(first_lanes(k), own), x_hat = keep(first_lanes(k), x_hat);
        dgamma += own * x_hat;
        dbeta += own;
        own *= gamma;
        g[r] += own;
        gx[r] += own * x_hat;
    }
    if (!of_gamma) return;
    put_acc(of_gamma + i, get_acc(of_gamma + i, k) + dgamma, k);
    put_acc(of_beta + i, get_acc(of_beta + i, k) + dbeta, k);
}

/* The first pass over columns [first, end) of `rows` rows: *found of each of them. */
static INLINE void together_sums(const struct rows *w, size row, const int rows, size first,
                                 size end, acc *of_gamma, struct sums *found, int activation,
                                 int added) {
    struct coefficients a[TOGETHER];
    acc *of_beta = of_gamma ? of_gamma + w->L : NULL;
    for (int r = 0; r < rows; r++) {
        a[r] = row_coefficients(w->job, row + r);
        found[r] = (struct sums){0, 0};
    }
    for (size start = first; start < end; start += BLOCK) {
        vec g[TOGETHER] = {{0}}, gx[TOGETHER] = {{0}};
        size i = start, stop = MIN(start + BLOCK, end);
        for (; i + VL <= stop; i += VL)
            sums_step(w, a, row, rows, i, VL, g, gx, of_gamma, of_beta, activation, added);
        if (i < stop)
            sums_step(w, a, row, rows, i, (int)(stop - i), g, gx, of_gamma, of_beta, activation,
                      added);
        for (int r = 0; r < rows; r++) found[r].g += sum(g[r]), found[r].gx += sum(gx[r]);
    }
}

static INLINE void rows_sums(const struct rows *shared, size row, size rows, size first, size end,
                             acc *of_gamma, struct sums *found, int activation, int added) {
    const struct rows own = *shared, *w = &own;
    if (rows == TOGETHER) {
        together_sums(w, row, TOGETHER, first, end, of_gamma, found, activation, added);
        return;
    }
    for (size r = 0; r < rows; r++)
        together_sums(w, row + r, 1, first, end, of_gamma, found + r, activation, added);
}

static INLINE void row_slope_step(const struct rows *w, size row, size i, int k,
                                  struct coefficients a, acc mean_g, acc mean_gx, int activation,
                                  int added) {
    const size at = row * w->L + i;
    vec x_hat, g = row_gradient(w, row, i, k, a, activation, added, &x_hat);
    if (w->t.y) {
        vec dx = (g * factor(w->gamma, i, k, 1) - mean_g - x_hat * mean_gx) * a.scale;
        if (w->dsum) dx += get(w->dsum + at, k);
        put(w->t.y + at, dx, k);
    }
    if (w->t.dresidual) put(w->t.dresidual + at, g, k);
}

/* The second: dx and dresidual of columns [first, end) of a row, whose sums are `all`. */
static INLINE void row_slopes(const struct rows *shared, size row, size first, size end,
                              struct sums all, int activation, int added) {
    const struct rows own = *shared, *w = &own;
    const acc L = (acc)w->L;
    struct coefficients a = row_coefficients(w->job, row);
    const acc mean_g = w->job->rms ? 0 : (acc)all.g / L, mean_gx = (acc)all.gx / L;
    size i = first;
    for (; i + VL <= end; i += VL)
        row_slope_step(w, row, i, VL, a, mean_g, mean_gx, activation, added);
    if (i < end)
        row_slope_step(w, row, i, (int)(end - i), a, mean_g, mean_gx, activation, added);
}

static acc *cleared(const struct rows *w, size chunk, size first, size end) {
    acc *of_gamma = w->partial ? w->partial + chunk * 2 * w->L : NULL;
    for (size plane = 0; of_gamma && plane < 2; plane++)
        memset(of_gamma + plane * w->L + first, 0, (end - first) * sizeof *of_gamma);
    return of_gamma;
}

/* Both passes over a chunk of rows, TOGETHER rows at a time, which stay in a core's own cache. */
static void rows_backward_item(void *context, size chunk) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    const int added = j->residual || j->bits;
    acc *of_gamma = cleared(w, chunk, 0, j->L);
    const size stop = MIN((chunk + 1) * w->rows, j->R);
    /* Of short rows, one after the other: several are not ahead of what the memory fetches. */
    const size together = sizeof(elem) >= 4 && j->L <= RANGE ? 1 : TOGETHER;
    for (size row = chunk * w->rows; row < stop; row += together) {
        struct sums sums[TOGETHER];
        const size rows = MIN(together, stop - row);
        if (w->t.y || of_gamma)
            SPECIALISED(rows_sums, j->activation, added, w, row, rows, 0, j->L, of_gamma, sums)
        if (!w->t.y && !w->t.dresidual) continue;
        for (size r = 0; r < rows; r++)
            SPECIALISED(row_slopes, j->activation, added, w, row + r, 0, j->L, sums[r])
    }
}

/* The first pass over a piece of the columns of a chunk of rows. */
static void row_sums_item(void *context, size i) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    const size chunk = i / w->pieces, piece = i % w->pieces;
    const size first = piece * w->piece, end = MIN(first + w->piece, j->L);
    acc *of_gamma = cleared(w, chunk, first, end);
    const size stop = MIN((chunk + 1) * w->rows, j->R);
    for (size row = chunk * w->rows; row < stop; row += TOGETHER) {
        struct sums sums[TOGETHER];
        const size rows = MIN(TOGETHER, stop - row);
        SPECIALISED(rows_sums, j->activation, j->residual || j->bits, w, row, rows, first, end,
                    of_gamma, sums)
        for (size r = 0; r < rows; r++) w->sums[(row + r) * w->pieces + piece] = sums[r];
    }
}

/* The second over a run of pieces of a row. */
static void row_slopes_item(void *context, size i) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    const size runs = ceil_div(w->pieces, RUN), row = i / runs, first = i % runs * RUN * RANGE;
    struct sums all = {0, 0};
    for (size p = 0; p < w->pieces; p++) {
        all.g += w->sums[row * w->pieces + p].g;
        all.gx += w->sums[row * w->pieces + p].gx;
    }
    SPECIALISED(row_slopes, j->activation, j->residual || j->bits, w, row, first,
                MIN(first + RUN * RANGE, j->L), all)
}

#define COLUMNS 256 /* of the parameters' gradients, added up by one thread */

static void add_partials(void *context, size item) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    const size first = item * COLUMNS, count = MIN(COLUMNS, j->L - first);
    for (size plane = 0; plane < 2; plane++) {
        double total[COLUMNS] = {0};
        for (size i = 0; i < ceil_div(j->R, w->rows); i++)
            for (size c = 0; c < count; c++)
                total[c] += w->partial[(i * 2 + plane) * j->L + first + c];
        store_all(plane ? j->dbias : j->dweight, j->parameter_type, first, count, total);
    }
}

/* The parameters as `acc`, in memory after `at`, where they are not so already. */
static const acc *as_acc(const void *p, int64_t type, size L, acc *at) {
    if (!p || type == (sizeof(acc) == 8 ? FLOAT64 : FLOAT32)) return p;
#if DTYPE == FLOAT64
    widen_all(at, p, type, L, 0);
#else
    load_floats(at, p, type, L);
#endif
    return at;
}

static struct rows seen_as_rows(const struct rows_job *j, size piece) {
    struct rows w = {.job = j, .dsum = j->dsum, .L = j->L, .piece = piece};
    w.pieces = ceil_div(j->L, piece);
    struct tensors t = {j->addend ? j->total : j->x, j->dy, j->residual,
                        j->y, j->dresidual, j->bits, (acc)j->parameter};
    w.t = t;
    return w;
}

static int threads_of(const struct rows_job *j) {
    return threads_for(j->R * j->L * (size)sizeof(elem), j->threads);
}

int NAME(rows)(const struct rows_job *j) {
    struct rows w = seen_as_rows(j, BLOCK);
    const int threads = threads_of(j);
    const int few = w.pieces > 1 && threads > 1 && j->R < 4 * threads;
    acc *memory = malloc(2 * j->L * sizeof(acc));
    if (few) w.found = malloc(j->R * w.pieces * sizeof *w.found);
    if (!memory || (few && !w.found)) {
        free(memory), free(w.found);
        return -1;
    }
    w.gamma = as_acc(j->weight, j->parameter_type, j->L, memory);
    w.beta = as_acc(j->bias, j->parameter_type, j->L, memory + j->L);
    w.rows = MAX(1, BLOCK / j->L);
    if (few) {
        share_out(row_moments_item, &w, j->R * w.pieces, threads, 0);
        share_out(row_merge_item, &w, j->R, 1, 0);
        share_out(row_apply_item, &w, j->R * w.pieces, threads, 1);
    } else {
        share_out(rows_forward_item, &w, ceil_div(j->R, w.rows), threads, 0);
    }
    free(memory), free(w.found);
    return 0;
}

/* Whether the backward is shared out by pieces of columns, a pass at a time: TOGETHER rows leave no
   room in a core's own cache, or there are few. Gradients are added up in another order then, so
   this follows from the sizes alone. */
static int by_columns(const struct rows_job *j) {
    const size bytes = TOGETHER * 2 * j->L * (size)sizeof(elem);
    return bytes > (512 << 10) || (j->R < 128 && j->L >= 4 * RANGE);
}

int NAME(rows_backward)(const struct rows_job *j) {
    struct rows w = seen_as_rows(j, RANGE);
    const int columns = by_columns(j), threads = threads_of(j);
    const int parameters = j->dweight || j->dbias, writes = j->y || j->dresidual;
    w.rows = columns ? MIN(j->R, 128) : MIN(128, MAX(16, ceil_div(j->R, 16)));
    const size chunks = ceil_div(j->R, w.rows), planes = 2 + (parameters ? 2 * chunks : 0);
    acc *memory = malloc(planes * j->L * sizeof(acc));
    if (columns) w.sums = calloc(j->R * w.pieces, sizeof *w.sums);
    if (!memory || (columns && !w.sums)) {
        free(memory), free(w.sums);
        return -1;
    }
    w.gamma = as_acc(j->weight, j->parameter_type, j->L, memory);
    w.beta = as_acc(j->bias, j->parameter_type, j->L, memory + j->L);
    w.partial = parameters ? memory + 2 * j->L : NULL;
    if (!columns) share_out(rows_backward_item, &w, chunks, threads, 0);
    if (columns && (j->y || parameters))
        share_out(row_sums_item, &w, chunks * w.pieces, threads, 0);
    if (columns && writes)
        share_out(row_slopes_item, &w, j->R * ceil_div(w.pieces, RUN), threads, 1);
    if (parameters) share_out(add_partials, &w, ceil_div(j->L, COLUMNS), threads, 0);
    free(memory), free(w.sums);
    return 0;
}
