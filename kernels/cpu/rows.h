/* Layer and RMS norm of rows of L neighbours: y = act(x_hat gamma + beta + residual). */

struct rows {
    const struct rows_job *job;
    struct tensors t;
    const acc *gamma, *beta; /* or NULL */
    acc *partial;            /* (items, 2, L): what the rows of an item add to the gradients */
    size rows;              /* of an item */
};

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
static void add_rows(const struct rows_job *j, size row) {
    const elem *x = (const elem *)j->x + row * j->L, *addend = (const elem *)j->addend + row * j->L;
    elem *total = (elem *)j->total + row * j->L;
    size i = 0;
    for (; i + VL <= j->L; i += VL) put(total + i, get(x + i, VL) + get(addend + i, VL), VL);
    if (i < j->L) {
        int k = lanes_left(i, j->L);
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

static void row_stats(const struct rows_job *j, const elem *x, size row) {
    if (j->rms) {
        j->stats[row] = 0;
        j->stats[j->R + row] = 1 / sqrt(sum_of_squares(x, j->L) / (double)j->L + j->eps);
        return;
    }
    struct moments all = {0, 0, 0};
    for (size i = 0; i < j->L; i += BLOCK) {
        struct block b = {i, 1, MIN(BLOCK, j->L - i)};
        all = merged(all, block_moments(x, b, 0));
    }
    j->stats[row] = all.mean;
    j->stats[j->R + row] = 1 / sqrt(all.m2 / all.count + j->eps);
}

static INLINE void row_step(const struct rows *w, size row, size i, int k, struct coefficients a,
                            int activation, int added) {
    const size L = w->job->L, at = row * L + i;
    vec z = (get(w->t.x + at, k) - a.center) * a.scale + a.shift;
    z = z * factor(w->gamma, i, k, 1) + factor(w->beta, i, k, 0);
    if (added) {
        z += get(w->t.residual + at, k);
        if (activation == RELU && w->t.bits)
            put_bits(w->t.bits + row * ceil_div(L, 8) + i / 8, above(z), k);
    }
    put(w->t.y + at, activated(z, activation), k);
}

static INLINE void row_forward(const struct rows *w, size row, int activation, int added) {
    const size L = w->job->L;
    struct coefficients a = row_coefficients(w->job, row);
    size i = 0;
    for (; i + VL <= L; i += VL) row_step(w, row, i, VL, a, activation, added);
    if (i < L) row_step(w, row, i, (int)(L - i), a, activation, added);
}

static void rows_forward_item(void *context, size item) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    for (size row = item * w->rows; row < MIN((item + 1) * w->rows, j->R); row++) {
        if (j->addend) add_rows(j, row);
        row_stats(j, w->t.x + row * j->L, row);
        SPECIALISED(row_forward, j->activation, j->residual != NULL, w, row)
    }
}

/* g = dy act'(z) and x_hat of k neighbours. */
static INLINE vec row_gradient(const struct rows *w, size row, size i, int k,
                               struct coefficients a, int activation, int added, vec *x_hat) {
    const size L = w->job->L, at = row * L + i;
    vec g = get(w->t.dy + at, k);
    *x_hat = (get(w->t.x + at, k) - a.center) * a.scale + a.shift;
    if (activation == NONE) return g;
    if (activation == RELU && added)
        return keep(get_bits(w->t.bits + row * ceil_div(L, 8) + i / 8, k), g);
    vec z = *x_hat * factor(w->gamma, i, k, 1) + factor(w->beta, i, k, 0);
    if (added) z += get(w->t.residual + at, k);
    return activation_gradient(g, z, activation);
}

struct row_sums {
    vec g, gx; /* of gamma g and of gamma g x_hat */
};

static INLINE void row_sums_step(const struct rows *w, size row, size i, int k,
                                 struct coefficients a, struct row_sums *s, acc *of_gamma,
                                 acc *of_beta, int activation, int added) {
    vec x_hat, g = row_gradient(w, row, i, k, a, activation, added, &x_hat);
    if (k < VL) g = keep(first_lanes(k), g), x_hat = keep(first_lanes(k), x_hat);
    vec wide = g * factor(w->gamma, i, k, 1);
    s->g += wide;
    s->gx += wide * x_hat;
    if (of_gamma) {
        put_acc(of_gamma + i, get_acc(of_gamma + i, k) + g * x_hat, k);
        put_acc(of_beta + i, get_acc(of_beta + i, k) + g, k);
    }
}

/* The first pass of a row: its two means, and what it adds to the parameters' gradients. */
static INLINE void row_sums(const struct rows *w, size row, struct coefficients a, acc *of_gamma,
                            double *mean_g, double *mean_gx, int activation, int added) {
    const size L = w->job->L;
    double g = 0, gx = 0;
    for (size start = 0; start < L; start += BLOCK) {
        struct row_sums s = {{0}, {0}};
        size i = start, end = MIN(start + BLOCK, L);
        for (; i + VL <= end; i += VL)
            row_sums_step(w, row, i, VL, a, &s, of_gamma, of_gamma + L, activation, added);
        if (i < end)
            row_sums_step(w, row, i, (int)(end - i), a, &s, of_gamma, of_gamma + L, activation,
                          added);
        g += sum(s.g);
        gx += sum(s.gx);
    }
    *mean_g = w->job->rms ? 0 : g / (double)L;
    *mean_gx = gx / (double)L;
}

static INLINE void row_slope_step(const struct rows *w, size row, size i, int k,
                                  struct coefficients a, acc mean_g, acc mean_gx, int activation,
                                  int added) {
    const size at = row * w->job->L + i;
    vec x_hat, g = row_gradient(w, row, i, k, a, activation, added, &x_hat);
    if (w->t.y) {
        vec dx = (g * factor(w->gamma, i, k, 1) - mean_g - x_hat * mean_gx) * a.scale;
        if (w->job->dsum) dx += get((const elem *)w->job->dsum + at, k);
        put(w->t.y + at, dx, k);
    }
    if (w->t.dresidual) put(w->t.dresidual + at, g, k);
}

static INLINE void row_backward(const struct rows *w, size row, acc *of_gamma, int activation,
                                int added) {
    const size L = w->job->L;
    struct coefficients a = row_coefficients(w->job, row);
    double mean_g = 0, mean_gx = 0;
    if (w->t.y || of_gamma)
        row_sums(w, row, a, of_gamma, &mean_g, &mean_gx, activation, added);
    if (!w->t.y && !w->t.dresidual) return;
    size i = 0;
    for (; i + VL <= L; i += VL)
        row_slope_step(w, row, i, VL, a, (acc)mean_g, (acc)mean_gx, activation, added);
    if (i < L)
        row_slope_step(w, row, i, (int)(L - i), a, (acc)mean_g, (acc)mean_gx, activation, added);
}

static void rows_backward_item(void *context, size item) {
    struct rows *w = context;
    const struct rows_job *j = w->job;
    acc *of_gamma = w->partial ? w->partial + item * 2 * j->L : NULL;
    if (of_gamma) memset(of_gamma, 0, 2 * j->L * sizeof *of_gamma);
    for (size row = item * w->rows; row < MIN((item + 1) * w->rows, j->R); row++)
        SPECIALISED(row_backward, j->activation, j->residual || j->bits, w, row, of_gamma)
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
        for (size c = 0; c < count; c++)
            store_value(plane ? j->dbias : j->dweight, j->parameter_type, first + c, total[c]);
    }
}

/* The parameters as `acc`, in memory after `at`, where they are not so already. */
static const acc *as_acc(const void *p, int64_t type, size L, acc *at) {
    if (!p || type == (sizeof(acc) == 8 ? FLOAT64 : FLOAT32)) return p;
    for (size i = 0; i < L; i++) at[i] = (acc)load_value(p, type, i);
    return at;
}

static int run_rows(const struct rows_job *j, int backward) {
    const size bytes = j->R * j->L * (size)sizeof(elem);
    const int threads = threads_for(bytes, j->threads);
    struct rows w = {.job = j, .rows = MAX(1, BLOCK / j->L)};
    const int parameters = backward && (j->dweight || j->dbias);
    if (parameters) w.rows = MIN(128, ceil_div(j->R, 16));
    const size items = ceil_div(j->R, w.rows);
    acc *memory = malloc((2 + (parameters ? 2 * items : 0)) * j->L * sizeof(acc));
    if (!memory) return -1;
    struct tensors t = {j->addend ? j->total : j->x, j->dy, j->residual,
                        j->y, j->dresidual, j->bits};
    w.t = t;
    w.gamma = as_acc(j->weight, j->parameter_type, j->L, memory);
    w.beta = as_acc(j->bias, j->parameter_type, j->L, memory + j->L);
    w.partial = parameters ? memory + 2 * j->L : NULL;
    share_out(backward ? rows_backward_item : rows_forward_item, &w, items, threads, 0);
    if (parameters) share_out(add_partials, &w, ceil_div(j->L, COLUMNS), threads, 0);
    free(memory);
    return 0;
}

int NAME(rows)(const struct rows_job *j) { return run_rows(j, 0); }

int NAME(rows_backward)(const struct rows_job *j) { return run_rows(j, 1); }
