/* RMS norm of rows with a gate: y = x_hat gamma silu(gate), or y = x_hat gamma of x silu(gate). */

struct gated {
    const struct gated_job *job;
    const elem *x, *gate, *dy;
    elem *y, *dgate; /* or dx */
    const acc *gamma; /* (A, L) or NULL */
    struct parameter_rows parameters;
    struct chunks chunks;
    size L, rows; /* `rows`: in an item of the forward */
};

/* A copy for loops, at one row and with its gamma. */
static INLINE struct gated at_row(const struct gated *shared, size a, size row) {
    struct gated w = *shared;
    const size at = row * w.L;
    w.x += at, w.gate += at;
    if (w.dy) w.dy += at;
    if (w.y) w.y += at;
    if (w.dgate) w.dgate += at;
    if (w.gamma) w.gamma += a * w.L;
    return w;
}

static INLINE vec silu(vec z) { return z * sigmoid_of(z); } /* all digits: it is a factor */

/* silu(z), and its slope. */
static INLINE vec silu_and_slope(vec z, vec *slope) {
    const vec sigmoid = sigmoid_of(z), value = z * sigmoid;
    *slope = sigmoid + value * (1 - sigmoid);
    return value;
}

/* The square of the norm's input, for k neighbours. */
static INLINE vec gated_square(const struct gated *w, size i, int k, int first) {
    vec v = get(w->x + i, k);
    if (!first) v *= silu(get(w->gate + i, k));
    return v * v;
}

static INLINE void gated_step(const struct gated *w, size i, int k, vec rstd) {
    vec product = get(w->x + i, k) * rstd * silu(get(w->gate + i, k));
    put(w->y + i, product * factor(w->gamma, i, k, 1), k);
}

/* y of a row; `first`: the norm comes before the gate. */
static INLINE void gated_row(const struct gated *shared, size row, const int first) {
    const struct gated own = at_row(shared, parameter_row(&shared->parameters, row), row);
    const struct gated *w = &own;
    const size L = w->L;
    double total = 0;
    for (size start = 0; start < L; start += BLOCK) {
        vec s0 = {0}, s1 = {0};
        size i = start, end = MIN(start + BLOCK, L);
        for (; i + 2 * VL <= end; i += 2 * VL) {
            s0 += gated_square(w, i, VL, first);
            s1 += gated_square(w, i + VL, VL, first);
        }
        for (; i < end; i += VL) s0 += gated_square(w, i, lanes_left(i, end), first);
        total += sum(s0 + s1);
    }
    const acc rstd = (acc)(1 / sqrt(total / (double)L + w->job->eps));
    ((acc *)w->job->stats)[row] = rstd;
    size i = 0;
    for (; i + VL <= L; i += VL) gated_step(w, i, VL, splat(rstd));
    if (i < L) gated_step(w, i, (int)(L - i), splat(rstd));
}

static void gated_item(void *context, size item) {
    const struct gated *w = context;
    for (size row = item * w->rows; row < MIN((item + 1) * w->rows, w->job->R); row++) {
        if (w->job->norm_first)
            gated_row(w, row, 1);
        else
            gated_row(w, row, 0);
    }
}

/* Whether the first pass keeps its results for the second in dx and dgate, without rounding. */
#define KEPT (sizeof(elem) == sizeof(acc))

/* k columns of a row: g x_hat, with g = dL / dx_hat, and their share in weight's gradient. If the
   norm comes first, dgate is written here: it does not need the sum. Else the gate is kept. */
static INLINE vec gated_sums_step(const struct gated *w, size i, int k, vec rstd, acc *of_gamma,
                                  int first) {
    vec slope, x_hat = get(w->x + i, k) * rstd, dy = get(w->dy + i, k);
    vec gate = silu_and_slope(get(w->gate + i, k), &slope);
    const vec gamma = factor(w->gamma, i, k, 1), product = dy * x_hat, gated = product * gate;
    if (of_gamma) put_acc(of_gamma + i, get_acc(of_gamma + i, k) + gated, k);
    if (KEPT && w->y) put(w->y + i, first ? dy * gamma * gate : gate, k);
    if (first ? w->dgate != NULL : KEPT && w->y && w->dgate)
        put(w->dgate + i, first ? product * gamma * slope : slope, k);
    return gated * gamma;
}

/* k columns of dx, and of dgate if the gate comes first. */
static INLINE void gated_slopes_step(const struct gated *w, size i, int k, vec rstd, acc mean,
                                     int first) {
    const vec x = get(w->x + i, k);
    if (KEPT && first) {
        put(w->y + i, (get(w->y + i, k) - x * rstd * mean) * rstd, k);
        return;
    }
    vec gate, slope;
    if (KEPT && w->y) {
        gate = get(w->y + i, k);
        slope = w->dgate ? get(w->dgate + i, k) : gate;
    } else {
        gate = silu_and_slope(get(w->gate + i, k), &slope);
    }
    const vec g = get(w->dy + i, k) * factor(w->gamma, i, k, 1);
    if (first) {
        put(w->y + i, (g * gate - x * rstd * mean) * rstd, k);
        return;
    }
    const vec of_product = (g - x * gate * rstd * mean) * rstd;
    if (w->y) put(w->y + i, of_product * gate, k);
    if (w->dgate) put(w->dgate + i, of_product * x * slope, k);
}

static INLINE void gated_row_backward(const struct gated *shared, size a, size row, acc *of_gamma,
                                      const int first) {
    const struct gated own = at_row(shared, a, row), *w = &own;
    const size L = w->L;
    const acc rstd = ((const acc *)w->job->stats)[row];
    double total = 0;
    for (size start = 0; start < L; start += BLOCK) {
        vec s0 = {0};
        size i = start, end = MIN(start + BLOCK, L);
        for (; i + VL <= end; i += VL) s0 += gated_sums_step(w, i, VL, splat(rstd), of_gamma, first);
        if (i < end) s0 += gated_sums_step(w, i, (int)(end - i), splat(rstd), of_gamma, first);
        total += sum(s0);
    }
    if (!w->y && (first || !w->dgate)) return;
    const acc mean = (acc)(total / (double)L);
    size i = 0;
    for (; i + VL <= L; i += VL) gated_slopes_step(w, i, VL, splat(rstd), mean, first);
    if (i < L) gated_slopes_step(w, i, (int)(L - i), splat(rstd), mean, first);
}

static void gated_backward_item(void *context, size item) {
    const struct gated *w = context;
    const struct chunk chunk = chunk_at(&w->chunks, item);
    clear_partials(&w->chunks, chunk, 0, w->L);
    FOR_ROWS(&w->chunks, chunk, 1, a, i, stop) {
        const size row = row_with(&w->parameters, a, i);
        acc *of_gamma = partial_of(&w->chunks, chunk, a);
        if (w->job->norm_first)
            gated_row_backward(w, a, row, of_gamma, 1);
        else
            gated_row_backward(w, a, row, of_gamma, 0);
    }
}

static void add_gated_partials(void *context, size item) {
    const struct gated *w = context;
    add_plane(&w->chunks, 0, item, w->job->dweight, w->job->parameter_type);
}

/* 0, or -1 if there is no memory. */
static int begin_gated(struct gated *w, const struct gated_job *j, acc **memory) {
    struct gated seen = {.job = j, .x = j->x, .gate = j->gate, .dy = j->dy, .y = j->y,
                         .dgate = j->dgate, .parameters = {j->R, j->L, j->A, j->inner}, .L = j->L};
    const size width = j->A * j->L, converted = is_acc(j->parameter_type) ? 0 : width;
    seen.rows = MAX(1, BLOCK / j->L);
    seen.chunks = chunked(seen.parameters, 1, 0);
    seen.chunks.planes = 1;
    const size partial = j->dweight ? seen.chunks.down * width : 0;
    *memory = malloc((size_t)(converted + partial + 1) * sizeof(acc));
    if (!*memory) return -1;
    seen.gamma = as_acc(j->weight, j->parameter_type, width, *memory);
    seen.chunks.partial = j->dweight ? *memory + converted : NULL;
    *w = seen;
    return 0;
}

int NAME(gated)(const struct gated_job *j) {
    struct gated w;
    acc *memory;
    if (begin_gated(&w, j, &memory)) return -1;
    const int threads = threads_for(j->R * j->L * (size)sizeof(elem), j->threads);
    share_out(gated_item, &w, ceil_div(j->R, w.rows), threads, 0);
    free(memory);
    return 0;
}

int NAME(gated_backward)(const struct gated_job *j) {
    struct gated w;
    acc *memory;
    if (begin_gated(&w, j, &memory)) return -1;
    const int threads = threads_for(j->R * j->L * (size)sizeof(elem), j->threads);
    share_out(gated_backward_item, &w, w.chunks.across * w.chunks.down, threads, 0);
    if (j->dweight) share_out(add_gated_partials, &w, ceil_div(j->A * j->L, COLUMNS), threads, 0);
    free(memory);
    return 0;
}
