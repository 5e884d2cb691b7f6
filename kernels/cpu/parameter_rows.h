/* Rows and their parameters: row r takes row (r / inner) % A of weight and bias, (A, L); A is 1 if
   all rows have the same. Also the sums of gradients, in an order that depends only on sizes. */

struct parameter_rows {
    size R, L, A, inner;
};

static INLINE size parameter_row(const struct parameter_rows *p, size row) {
    return p->A == 1 ? 0 : row / p->inner % p->A;
}

/* The i-th of the R / A rows of parameter row a. */
static INLINE size row_with(const struct parameter_rows *p, size a, size i) {
    if (p->A == 1) return i;
    const size outer = i / p->inner;
    return (outer * p->A + a) * p->inner + i - outer * p->inner;
}

#define SUMMED 128       /* rows added up at once, at most */
#define SEPARATE 16      /* neighbouring rows of one parameter row that make a good run */
#define ACCUMULATED 4096 /* elements of a chunk's parameter rows: they stay in L1 */

/* Chunks of rows, each one thread's work: `rows` rows of each of `width` neighbouring parameter
   rows. If the runs of a parameter row are short, width > 1, to read in the order of memory. */
struct chunks {
    struct parameter_rows of;
    size width, rows, run;      /* rows of a parameter row before the next one's */
    size across, down, planes;  /* chunks across all parameter rows, and down the rows of each */
    acc *partial;               /* (down, planes, A, L): each chunk's share in gradients, or NULL */
};

static struct chunks chunked(struct parameter_rows of, size together, int by_columns) {
    struct chunks c = {.of = of, .width = 1};
    const size each = of.R / of.A;
    if (of.inner < SEPARATE) c.width = MIN(of.A, MAX(1, ACCUMULATED / of.L));
    c.across = ceil_div(of.A, c.width);
    c.rows = by_columns ? SUMMED : MIN(SUMMED, MAX(16, ceil_div(each * c.across, 16)));
    c.rows = MIN(c.rows, each);
    c.down = ceil_div(each, c.rows);
    c.run = MAX(of.inner, together);
    return c;
}

/* Rows [first, end) of each of the parameter rows [first_a, end_a); `index` counts such runs. */
struct chunk {
    size first_a, end_a, first, end, index;
};

static INLINE struct chunk chunk_at(const struct chunks *c, size i) {
    const size index = i / c->across, a = i % c->across * c->width;
    struct chunk found = {a, MIN(a + c->width, c->of.A), index * c->rows,
                          MIN((index + 1) * c->rows, c->of.R / c->of.A), index};
    return found;
}

/* A chunk's share in plane 0 for parameter row a; the next plane is A L further. */
static INLINE acc *partial_of(const struct chunks *c, struct chunk chunk, size a) {
    if (!c->partial) return NULL;
    return c->partial + (chunk.index * c->planes * c->of.A + a) * c->of.L;
}

/* Set columns [first, end) of a chunk's shares to 0. */
static void clear_partials(const struct chunks *c, struct chunk chunk, size first, size end) {
    for (size plane = 0; c->partial && plane < c->planes; plane++)
        for (size a = chunk.first_a; a < chunk.end_a; a++)
            memset(partial_of(c, chunk, a + plane * c->of.A) + first, 0,
                   (end - first) * sizeof(acc));
}

/* Steps over a chunk: rows i, ... of parameter row a, `together` at a time, fewer before stop. */
#define FOR_ROWS(c, chunk, together, a, i, stop)                                                 \
    for (size from = (chunk).first; from < (chunk).end; from += (c)->run)                        \
        for (size a = (chunk).first_a, stop = MIN(from + (c)->run, (chunk).end);                 \
             a < (chunk).end_a; a++)                                                             \
            for (size i = from; i < stop; i += together)

#define COLUMNS 256 /* of the gradients of parameters, added up by one thread */

/* The item-th COLUMNS of a plane: the sum over chunks in their order. */
static void add_plane(const struct chunks *c, size plane, size item, void *gradient, int64_t type) {
    const size width = c->of.A * c->of.L, first = item * COLUMNS;
    const size count = MIN(COLUMNS, width - first);
    double total[COLUMNS] = {0};
    for (size i = 0; i < c->down; i++)
        for (size k = 0; k < count; k++)
            total[k] += c->partial[(i * c->planes + plane) * width + first + k];
    store_all(gradient, type, first, count, total);
}

static int is_acc(int64_t type) { return type == (sizeof(acc) == 8 ? FLOAT64 : FLOAT32); }

/* n parameters as `acc`: p itself, or a copy at `at` if they have another type. */
static const acc *as_acc(const void *p, int64_t type, size n, acc *at) {
    if (!p || is_acc(type)) return p;
#if DTYPE == FLOAT64
    widen_all(at, p, type, n, 0);
#else
    load_floats(at, p, type, n);
#endif
    return at;
}
