/* Layer and RMS norm of rows, backward: sums over each row, then dx. */

#define TOGETHER 4
#define RANGE 1024 /* columns of a piece of the parameters' gradients: they stay in L1 */
#define RUN 16     /* pieces that are written as one run */

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

/* k columns of `rows` rows: their sums, and their shares in the parameters' gradients. */
static INLINE void sums_step(const struct rows *w, const struct coefficients *a, const size *row,
                             const int rows, size i, int k, vec *g, vec *gx, acc *of_gamma,
                             acc *of_beta, int activation, int added) {
    const vec gamma = factor(w->gamma, i, k, 1);
    vec dgamma = {0}, dbeta = {0};
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        vec x_hat, own = row_gradient(w, row[r], i, k, a[r], activation, added, &x_hat);
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

/* The first pass over columns [first, end) of `rows` rows with the same parameters; *found gets the
   sums of each row. */
static INLINE void together_sums(const struct rows *w, const size *row, const int rows, size first,
                                 size end, acc *of_gamma, struct sums *found, int activation,
                                 int added) {
    struct coefficients a[TOGETHER];
    acc *of_beta = of_gamma ? of_gamma + w->parameters.A * w->L : NULL;
    for (int r = 0; r < rows; r++) {
        a[r] = row_coefficients(w->job, row[r]);
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

static INLINE void rows_sums(const struct rows *shared, size parameters, const size *row,
                             size rows, size first, size end, acc *of_gamma, struct sums *found,
                             int activation, int added) {
    const struct rows own = with_parameters(shared, parameters), *w = &own;
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

/* The second pass: dx and dresidual of columns [first, end) of a row, whose sums are `all`. */
static INLINE void row_slopes(const struct rows *shared, size parameters, size row, size first,
                              size end, struct sums all, int activation, int added) {
    const struct rows own = with_parameters(shared, parameters), *w = &own;
    const acc L = (acc)w->L;
    struct coefficients a = row_coefficients(w->job, row);
    const acc mean_g = w->job->rms ? 0 : (acc)all.g / L, mean_gx = (acc)all.gx / L;
    size i = first;
    for (; i + VL <= end; i += VL)
        row_slope_step(w, row, i, VL, a, mean_g, mean_gx, activation, added);
    if (i < end)
        row_slope_step(w, row, i, (int)(end - i), a, mean_g, mean_gx, activation, added);
}

/* Each of the two passes, compiled once for all its callers. */
static __attribute__((noinline)) void sum_rows(const struct rows *w, size a, const size *row,
                                               size count, size first, size end, acc *of_gamma,
                                               struct sums *found) {
    const int added = w->job->residual || w->job->bits;
    SPECIALISED(rows_sums, w->job->activation, added, w, a, row, count, first, end, of_gamma, found)
}

static __attribute__((noinline)) void slope_row(const struct rows *w, size parameters, size row,
                                                size first, size end, struct sums all) {
    const int added = w->job->residual || w->job->bits;
    SPECIALISED(row_slopes, w->job->activation, added, w, parameters, row, first, end, all)
}

/* Both passes over a chunk of rows, TOGETHER rows at a time, which stay in a core's own cache. */
static void rows_backward_item(void *context, size i) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    const struct chunk chunk = chunk_at(&w->chunks, i);
    const int sums_too = w->t.y || w->chunks.partial;
    const size together = w->together;
    clear_partials(&w->chunks, chunk, 0, j->L);
    FOR_ROWS(&w->chunks, chunk, together, a, first, stop) {
        const size count = MIN(together, stop - first);
        struct sums sums[TOGETHER];
        size row[TOGETHER];
        for (size r = 0; r < count; r++) row[r] = row_with(&w->parameters, a, first + r);
        acc *of_gamma = partial_of(&w->chunks, chunk, a);
        if (sums_too) sum_rows(w, a, row, count, 0, j->L, of_gamma, sums);
        if (!w->t.y && !w->t.dresidual) continue;
        for (size r = 0; r < count; r++) slope_row(w, a, row[r], 0, j->L, sums[r]);
    }
}

/* The first pass over a piece of the columns of a chunk of rows. */
static void row_sums_item(void *context, size i) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    const struct chunk chunk = chunk_at(&w->chunks, i / w->pieces);
    const size piece = i % w->pieces, start = piece * w->piece, end = MIN(start + w->piece, j->L);
    clear_partials(&w->chunks, chunk, start, end);
    FOR_ROWS(&w->chunks, chunk, TOGETHER, a, first, stop) {
        const size count = MIN(TOGETHER, stop - first);
        struct sums sums[TOGETHER];
        size row[TOGETHER];
        for (size r = 0; r < count; r++) row[r] = row_with(&w->parameters, a, first + r);
        sum_rows(w, a, row, count, start, end, partial_of(&w->chunks, chunk, a), sums);
        for (size r = 0; r < count; r++) w->sums[row[r] * w->pieces + piece] = sums[r];
    }
}

/* The second pass over a run of pieces of a row. */
static void row_slopes_item(void *context, size i) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    const size runs = ceil_div(w->pieces, RUN), row = i / runs, first = i % runs * RUN * RANGE;
    struct sums all = {0, 0};
    for (size p = 0; p < w->pieces; p++) {
        all.g += w->sums[row * w->pieces + p].g;
        all.gx += w->sums[row * w->pieces + p].gx;
    }
    slope_row(w, parameter_row(&w->parameters, row), row, first, MIN(first + RUN * RANGE, j->L), all);
}

static void add_partials(void *context, size item) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    add_plane(&w->chunks, 0, item, j->dweight, j->parameter_type);
    add_plane(&w->chunks, 1, item, j->dbias, j->parameter_type);
}

/* Whether the backward is shared out by pieces of columns, one pass at a time: if a core's cache
   has no room for TOGETHER rows, or there are few rows. Gradients are then added up in another
   order, so this depends only on the sizes. */
static int by_columns(const struct rows_job *j) {
    const size bytes = TOGETHER * 2 * j->L * (size)sizeof(elem);
    return bytes > (512 << 10) || (j->R < 128 && j->L >= 4 * RANGE);
}

int NAME(rows_backward)(const struct rows_job *j) {
    struct rows w = seen_as_rows(j, RANGE);
    const int columns = by_columns(j), threads = threads_of(j);
    const int parameters = j->dweight || j->dbias, writes = j->y || j->dresidual;
    /* Short rows are taken one by one: several at once do not beat the memory's prefetching. */
    w.together = sizeof(elem) >= 4 && j->L <= RANGE && !columns ? 1 : TOGETHER;
    w.chunks = chunked(w.parameters, w.together, columns);
    w.chunks.planes = 2;
    const size chunks = w.chunks.across * w.chunks.down, converted = room_for_parameters(j);
    const size partial = parameters ? w.chunks.down * 2 * j->A * j->L : 0;
    acc *memory = malloc((converted + partial) * sizeof(acc));
    if (columns) w.sums = calloc(j->R * w.pieces, sizeof *w.sums);
    if (!memory || (columns && !w.sums)) {
        free(memory), free(w.sums);
        return -1;
    }
    take_parameters(&w, memory);
    w.chunks.partial = parameters ? memory + converted : NULL;
    if (!columns) share_out(rows_backward_item, &w, chunks, threads, 0);
    if (columns && (j->y || parameters))
        share_out(row_sums_item, &w, chunks * w.pieces, threads, 0);
    if (columns && writes)
        share_out(row_slopes_item, &w, j->R * ceil_div(w.pieces, RUN), threads, 1);
    if (parameters) share_out(add_partials, &w, ceil_div(j->A * j->L, COLUMNS), threads, 0);
    free(memory), free(w.sums);
    return 0;
}
