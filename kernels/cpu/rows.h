/* Layer and RMS norm of rows of L neighbours: y = act(x_hat gamma + beta + residual). */

/* A row is cut into pieces, which are merged in their order. A thread's work is one piece, or whole
   rows; values do not depend on which. */
struct rows {
    const struct rows_job *job;
    struct tensors t;
    struct parameter_rows parameters;
    const acc *gamma, *beta; /* (A, L) or NULL */
    const elem *dsum;        /* or NULL */
    size L;
    size rows, piece, pieces; /* an item's rows and columns; the pieces of a row */
    struct moments *found;    /* of each piece of each row, if these are items; for RMS norm M2 */
    struct chunks chunks;     /* of the backward */
    size together;            /* rows of a chunk that are summed at once */
    struct sums *sums;        /* of gamma g and gamma g x_hat, for each piece of each row */
};

/* A copy for loops, with the gamma and beta of parameter row a. With a pointer to the struct, every
   store in a loop could change the struct, and it would be read again. */
static INLINE struct rows with_parameters(const struct rows *shared, size a) {
    struct rows w = *shared;
    if (w.gamma) w.gamma += a * w.L;
    if (w.beta) w.beta += a * w.L;
    return w;
}

/* The coefficients of x_hat = (x - center) rstd + shift; for RMS norm center and shift are 0. */
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

/* total = x + addend, rounded to the type of the tensor that is returned. */
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
    const struct rows own = with_parameters(shared, parameter_row(&shared->parameters, row));
    const struct rows *w = &own;
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

/* The same by stages, for rows that are too few for the threads. */
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

static struct rows seen_as_rows(const struct rows_job *j, size piece) {
    struct rows w = {.job = j, .dsum = j->dsum, .L = j->L, .piece = piece};
    w.parameters = (struct parameter_rows){j->R, j->L, j->A, j->inner};
    w.pieces = ceil_div(j->L, piece);
    struct tensors t = {j->addend ? j->total : j->x, j->dy, j->residual,
                        j->y, j->dresidual, j->bits, (acc)j->parameter};
    w.t = t;
    return w;
}

static int threads_of(const struct rows_job *j) {
    return threads_for(j->R * j->L * (size)sizeof(elem), j->threads);
}

/* Elements of memory for parameters of another type; not 0, for malloc. */
static size room_for_parameters(const struct rows_job *j) {
    return is_acc(j->parameter_type) ? 1 : 2 * j->A * j->L;
}

static void take_parameters(struct rows *w, acc *memory) {
    const struct rows_job *j = w->job;
    w->gamma = as_acc(j->weight, j->parameter_type, j->A * j->L, memory);
    w->beta = as_acc(j->bias, j->parameter_type, j->A * j->L, memory + j->A * j->L);
}

int NAME(rows)(const struct rows_job *j) {
    struct rows w = seen_as_rows(j, BLOCK);
    const int threads = threads_of(j);
    const int few = w.pieces > 1 && threads > 1 && j->R < 4 * threads;
    acc *memory = malloc(room_for_parameters(j) * sizeof(acc));
    if (few) w.found = malloc(j->R * w.pieces * sizeof *w.found);
    if (!memory || (few && !w.found)) {
        free(memory), free(w.found);
        return -1;
    }
    take_parameters(&w, memory);
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
