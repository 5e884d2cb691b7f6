/* The state of a norm of channels during a call: sizes, scratch memory, coefficients. */

struct call {
    const struct job *job;
    struct tensors t;
    struct table a;
    struct sets sets;                /* of contiguous tensors */
    size N, C, S, last, kind;
    size G, D;                      /* sets of one instance, and the channels of each */
    size units, items;              /* units are independent; items of each stage one of a unit */
    size together;                  /* units whose stages are run together */
    size rows;                      /* contiguous: (n, c) of an item of the stage that writes */
    size pieces, piece;             /* channels last: pieces of an instance, their positions */
    size stat_sets;
    size samples, span;              /* instances with their own coefficients; their positions */
    double *gamma, *beta, *rho;
    struct moments *pieces_found;    /* contiguous: of each piece, and of each set */
    struct moments *found;
    double *lanes_a, *lanes_b;       /* channels last: (N, pieces, C) of mean and M2, or sums */
    struct sums *sums_found;
    double *sum_g, *sum_gx;          /* of each (n, c), or each c */
    double *of_gamma;                /* the share of each (n, c) in weight's gradient */
    char *memory, *aligned;
    size used;
};

static int of_batch(size kind) { return kind == BATCH || kind == MEAN_ONLY; }

/* Whether a merge covers one channel of all instances. */
static int of_channels(size kind) { return kind == MIXED || of_batch(kind); }

/* Whether all instances have the same coefficients. */
static INLINE int shared(const struct call *k) { return k->samples == 1; }

/* The index of (n, c)'s coefficients. */
static INLINE size slot(const struct call *k, size n, size c) {
    return shared(k) ? c : n * k->C + c;
}

/* The index of its gamma and beta. */
static INLINE size parameter(const struct call *k, size n, size c) {
    return k->job->per_sample ? n * k->C + c : c;
}

/* `bytes` of the call's scratch memory; it is cut up after its size is known, see `room`. */
static void *cut(struct call *k, size bytes) {
    size start = k->used;
    k->used += (bytes + 63) & ~(size)63;
    return k->aligned ? k->aligned + start : NULL;
}

/* Set the pointers to all scratch memory; the first time only to find its size. */
static void room(struct call *k, int backward) {
    const size sets = k->samples * k->C, number = sizeof(double);
    const size parameters = k->job->per_sample ? sets : k->C;
    k->used = 0;
    acc **tables[] = {&k->a.center, &k->a.scale, &k->a.shift, &k->a.p, &k->a.q, &k->a.r};
    for (int i = 0; i < (backward ? 6 : 3); i++) *tables[i] = cut(k, sets * sizeof(acc));
    k->gamma = cut(k, parameters * number);
    k->beta = cut(k, parameters * number);
    k->rho = cut(k, k->C * number);
    if (k->last) {
        k->lanes_a = cut(k, k->N * k->pieces * k->C * number);
        k->lanes_b = cut(k, k->N * k->pieces * k->C * number);
    }
    const size of_sets = k->last ? 0 : k->sets.units * k->sets.per_unit;
    if (!backward) {
        k->found = cut(k, k->N * k->C * sizeof(struct moments));
        k->pieces_found = cut(k, of_sets * k->sets.pieces * sizeof(struct moments));
        return;
    }
    k->sums_found = cut(k, of_sets * k->sets.pieces * sizeof(struct sums));
    k->sum_g = cut(k, sets * number);
    k->sum_gx = cut(k, sets * number);
    k->of_gamma = cut(k, sets * number);
}

/* If (n, c) has at least so many elements, each (n, c) is a set of its own, whatever is merged: a
   stage then reads in the order of memory. Several shorter ones make up a block. */
#define LONG_ROW (BLOCK / 16)

/* The sets for moments (forward) or for sums of gradients (backward). */
static struct sets sets_of(const struct call *k, int backward) {
    const size N = k->N, C = k->C, S = k->S, D = k->D;
    struct sets s = {.rows = 1, .length = S, .per_unit = 1};
    const int merged = shared(k) || !backward; /* not each instance separately */
    if (of_batch(k->kind) && S < LONG_ROW && merged) {
        s.units = C, s.unit_stride = S, s.rows = N, s.row_stride = C * S;
    } else if (of_channels(k->kind)) {
        s.units = C, s.unit_stride = S, s.per_unit = N, s.set_stride = C * S;
    } else if (k->kind == GROUP && backward) {
        s.units = N * k->G, s.unit_stride = D * S, s.per_unit = D, s.set_stride = S;
    } else if (k->kind == GROUP) {
        s.units = N * k->G, s.unit_stride = D * S, s.length = D * S;
    } else {
        s.units = N * C, s.unit_stride = S;
    }
    return with_blocks(s);
}

/* 0, or -1 if there is no memory. */
static int begin(struct call *k, const struct job *j, int backward) {
    memset(k, 0, sizeof *k);
    k->job = j;
    k->kind = j->norm;
    k->last = j->last;
    k->N = j->N, k->C = j->C, k->S = j->S;
    k->samples = of_batch(k->kind) && !j->per_sample ? 1 : k->N;
    k->span = k->N * k->S / k->samples;
    if (k->last && of_batch(k->kind) && !(backward && j->per_sample))
        k->N = 1, k->S = j->N * j->S; /* as one instance, the order of memory */
    k->G = k->kind == GROUP ? j->groups : k->C;
    k->D = k->C / k->G;
    const size C = k->C;
    k->stat_sets = of_batch(k->kind) ? C : k->N * k->G;
    struct tensors t = {j->x, j->dy, j->residual, j->y, j->dresidual, j->bits,
                        (acc)j->parameter};
    k->t = t;
    if (k->last) {
        k->piece = MAX(1, BLOCKS * POSITIONS(C));
        k->pieces = ceil_div(k->S, k->piece);
        k->units = of_channels(k->kind) ? 1 : k->N;
        k->together = 1;
        k->items = k->N * k->pieces / k->units;
    } else {
        k->sets = sets_of(k, backward);
        k->units = k->sets.units;
        k->items = k->sets.per_unit * k->sets.pieces;
        size most = MAX(1, k->N * C / (8 * j->threads));
        k->rows = MIN(MAX(1, BLOCK * BLOCKS / k->S), most);
        k->together = MIN(MAX(1, BLOCK / (k->D * k->S)), MAX(1, k->units / (8 * j->threads)));
    }
    room(k, backward);
    k->memory = malloc((size_t)k->used + 63);
    if (!k->memory) return -1;
    k->aligned = k->memory + (-(uintptr_t)k->memory & 63);
    room(k, backward);
    const size parameters = j->per_sample ? j->N * C : C;
    widen_all(k->gamma, j->weight, j->parameter_type, parameters, 1.0);
    widen_all(k->beta, j->bias, j->parameter_type, parameters, 0.0);
    widen_all(k->rho, j->rho, j->parameter_type, C, 0.0);
    return 0;
}

/* The statistics of a set, kept for the backward. */
static INLINE double *mean_of(const struct call *k, size set) { return k->job->stats + set; }
static INLINE double *rstd_of(const struct call *k, size set) {
    return k->job->stats + k->stat_sets + set;
}

/* MIXED keeps the batch's after the instances'. */
static INLINE double *batch_mean(const struct call *k, size c) {
    return k->job->stats + 2 * k->stat_sets + c;
}
static INLINE double *batch_rstd(const struct call *k, size c) {
    return k->job->stats + 2 * k->stat_sets + k->C + c;
}

/* y = (x - center) scale + shift. center is rounded to the type of vectors; shift corrects that.
   The backward calls it too: z is recomputed to the bit. (n, c) belongs to the given set. */
static void set_coefficients(const struct call *k, size n, size c, size set) {
    const size i = slot(k, n, c);
    const double mean = *mean_of(k, set), rstd = *rstd_of(k, set);
    const double center = (double)(acc)mean, offset = center - mean;
    const double gamma = k->gamma[parameter(k, n, c)], beta = k->beta[parameter(k, n, c)];
    double scale = gamma * rstd, shift = beta + scale * offset;
    if (k->kind == GIVEN) {
        scale = rstd;
        shift = k->job->stats[2 * k->stat_sets + set] + scale * offset;
    } else if (k->kind == MIXED) {
        const double of_batch = gamma * k->rho[c] * *batch_rstd(k, c);
        scale *= 1 - k->rho[c];
        shift = beta + scale * offset + of_batch * (center - *batch_mean(k, c));
        scale += of_batch;
    }
    k->a.center[i] = (acc)center;
    k->a.scale[i] = (acc)scale;
    k->a.shift[i] = (acc)shift;
}

/* The coefficients of an instance, or of all instances that share them. */
static void instance_coefficients(void *context, size n) {
    const struct call *k = context;
    const size first = of_batch(k->kind) ? 0 : n * k->G;
    for (size g = 0; g < k->G; g++)
        for (size c = g * k->D; c < (g + 1) * k->D; c++) set_coefficients(k, n, c, first + g);
}

static void all_coefficients(struct call *k, int threads) {
    share_out(instance_coefficients, k, k->samples, threads, 0);
}
