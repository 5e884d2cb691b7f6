/* Tensors whose channels lie last, (N, S, C): a vector is of neighbouring channels. */

#define CHAINS 4 /* sums that a core adds to at once */
#define POSITIONS(C) MAX(64, BLOCK / (C))

/* Moments of `positions` positions of vectors of k channels each, CHAINS / vectors positions at
   once, merged into those of the `before` positions so far. */
static INLINE void lanes_moments(const elem *x, size C, size positions, const int vectors, int k,
                                 double before, double *mean, double *m2) {
    const acc share = (acc)1 / (acc)positions;
    vec s[CHAINS], e[CHAINS], q[CHAINS], center[CHAINS];
#pragma GCC unroll 4
    for (int j = 0; j < CHAINS; j++) s[j] = e[j] = q[j] = splat(0);
    size p = 0;
    for (; p + CHAINS / vectors <= positions; p += CHAINS / vectors)
#pragma GCC unroll 4
        for (int j = 0; j < CHAINS; j++)
            s[j] += get(x + (p + j / vectors) * C + j % vectors * VL, k) * share;
    for (; p < positions; p++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) s[j] += get(x + p * C + j * VL, k) * share;
#pragma GCC unroll 4
    for (int j = vectors; j < CHAINS; j++) s[j % vectors] += s[j];
#pragma GCC unroll 4
    for (int j = 0; j < CHAINS; j++) center[j] = s[j % vectors];
    for (p = 0; p + CHAINS / vectors <= positions; p += CHAINS / vectors)
#pragma GCC unroll 4
        for (int j = 0; j < CHAINS; j++) {
            vec d = get(x + (p + j / vectors) * C + j % vectors * VL, k) - center[j];
            e[j] += d;
            q[j] += d * d;
        }
    for (; p < positions; p++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) {
            vec d = get(x + p * C + j * VL, k) - center[j];
            e[j] += d;
            q[j] += d * d;
        }
#pragma GCC unroll 4
    for (int j = vectors; j < CHAINS; j++) e[j % vectors] += e[j], q[j % vectors] += q[j];
    const double n = (double)positions, part = n / (before + n);
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) {
        acc m[VL], error[VL], squares[VL];
        memcpy(m, &center[j], sizeof m);
        memcpy(error, &e[j], sizeof m);
        memcpy(squares, &q[j], sizeof m);
        for (int i = 0; i < (k < VL ? k : VL); i++) {
            double *to_mean = mean + j * VL + i, *to_m2 = m2 + j * VL + i;
            double off = error_of_mean(error[i], n), exact = (double)m[i] + off;
            double own = squares[i] - n * off * off;
            own = own < 0 ? 0 : own;
            double delta = exact - *to_mean;
            *to_m2 = before ? *to_m2 + own + delta * (before * part) * delta : own;
            *to_mean = before ? *to_mean + delta * part : exact;
        }
    }
}

/* Mean and M2 of each channel over `positions` positions from x on. */
static void positions_moments(const elem *x, size C, size positions, double *mean, double *m2) {
    for (size p = 0; p < positions; p += POSITIONS(C)) {
        size count = MIN(POSITIONS(C), positions - p), c = 0;
        const elem *at = x + p * C;
        for (; c + CHAINS * VL <= C; c += CHAINS * VL)
            lanes_moments(at + c, C, count, CHAINS, VL, (double)p, mean + c, m2 + c);
        for (; c + VL <= C; c += VL)
            lanes_moments(at + c, C, count, 1, VL, (double)p, mean + c, m2 + c);
        if (c < C) lanes_moments(at + c, C, count, 1, (int)(C - c), (double)p, mean + c, m2 + c);
    }
}

/* The coefficients of a call, for each (n, c) or each c. */
struct table {
    acc *center, *scale, *shift, *p, *q, *r;
};

static INLINE struct coefficients coefficients_at(const struct table *a, size i, int k) {
    struct coefficients found = {get_acc(a->center + i, k), get_acc(a->scale + i, k),
                                 get_acc(a->shift + i, k)};
    return found;
}

static INLINE struct slopes slopes_at(const struct table *a, size i, int k) {
    struct slopes found = {get_acc(a->p + i, k), get_acc(a->q + i, k), get_acc(a->r + i, k)};
    return found;
}

/* Positions [first, end) of all instances, whose coefficients start at `at`. */
struct stretch {
    size first, end, C, at;
};

static INLINE uint8_t *bits_of(uint8_t *bits, size position, size C, size c) {
    return bits ? bits + position * ceil_div(C, 8) + c / 8 : NULL;
}

static INLINE void stretch_forward(const struct tensors *shared, const struct table *table, struct stretch s,
                                   int activation, int added) {
    const struct tensors own = *shared, *t = &own;
    const struct table of_it = *table, *a = &of_it;
    if (s.C == VL) { /* the coefficients stay in registers */
        struct coefficients own = coefficients_at(a, s.at, VL);
        for (size p = s.first; p < s.end; p++)
            forward_step(t, p * VL, bits_of(t->bits, p, VL, 0), VL, own, activation, added);
        return;
    }
    for (size p = s.first; p < s.end; p++) {
        size c = 0;
        for (; c + VL <= s.C; c += VL)
            forward_step(t, p * s.C + c, bits_of(t->bits, p, s.C, c), VL,
                         coefficients_at(a, s.at + c, VL), activation, added);
        if (c < s.C) {
            int k = (int)(s.C - c);
            forward_step(t, p * s.C + c, bits_of(t->bits, p, s.C, c), k,
                         coefficients_at(a, s.at + c, k), activation, added);
        }
    }
}

/* Sums of g and g (x - center) of vectors of k channels, added to those in sum_g and sum_gx. */
static INLINE void lanes_sums(const struct tensors *t, const struct table *a, struct stretch s,
                              size c, const int vectors, int k, double *sum_g, double *sum_gx,
                              int activation, int added) {
    struct coefficients own[CHAINS];
    vec g[CHAINS], gx[CHAINS], d;
#pragma GCC unroll 4
    for (int j = 0; j < CHAINS; j++) {
        own[j] = coefficients_at(a, s.at + c + j % vectors * VL, k);
        g[j] = gx[j] = splat(0);
    }
    size p = s.first;
    for (; p + CHAINS / vectors <= s.end; p += CHAINS / vectors)
#pragma GCC unroll 4
        for (int j = 0; j < CHAINS; j++) {
            size at = p + j / vectors, channel = c + j % vectors * VL;
            vec here = summed_step(t, at * s.C + channel, bits_of(t->bits, at, s.C, channel), k,
                                   own[j], activation, added, &d);
            g[j] += here;
            gx[j] += here * d;
        }
    for (; p < s.end; p++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) {
            size channel = c + j * VL;
            vec here = summed_step(t, p * s.C + channel, bits_of(t->bits, p, s.C, channel), k,
                                   own[j], activation, added, &d);
            g[j] += here;
            gx[j] += here * d;
        }
#pragma GCC unroll 4
    for (int j = vectors; j < CHAINS; j++) g[j % vectors] += g[j], gx[j % vectors] += gx[j];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) {
        acc of_g[VL], of_gx[VL];
        memcpy(of_g, &g[j], sizeof of_g);
        memcpy(of_gx, &gx[j], sizeof of_gx);
        for (int i = 0; i < (k < VL ? k : VL); i++) {
            sum_g[j * VL + i] += of_g[i];
            sum_gx[j * VL + i] += of_gx[i];
        }
    }
}

/* Added to sum_g and sum_gx, of C elements each. */
static INLINE void stretch_sums(const struct tensors *shared, const struct table *table, struct stretch s,
                                double *sum_g, double *sum_gx, int activation, int added) {
    const struct tensors own = *shared, *t = &own;
    const struct table of_it = *table, *a = &of_it;
    struct stretch block = s;
    for (; block.first < s.end; block.first = block.end) {
        block.end = MIN(block.first + POSITIONS(s.C), s.end);
        size c = 0;
        for (; c + CHAINS * VL <= s.C; c += CHAINS * VL)
            lanes_sums(t, a, block, c, CHAINS, VL, sum_g + c, sum_gx + c, activation, added);
        for (; c + VL <= s.C; c += VL)
            lanes_sums(t, a, block, c, 1, VL, sum_g + c, sum_gx + c, activation, added);
        if (c < s.C)
            lanes_sums(t, a, block, c, 1, (int)(s.C - c), sum_g + c, sum_gx + c, activation, added);
    }
}

static INLINE void stretch_backward(const struct tensors *shared, const struct table *table,
                                    struct stretch s, int activation, int added) {
    const struct tensors own = *shared, *t = &own;
    const struct table of_it = *table, *a = &of_it;
    if (s.C == VL) {
        struct coefficients own = coefficients_at(a, s.at, VL);
        struct slopes d = slopes_at(a, s.at, VL);
        for (size p = s.first; p < s.end; p++)
            backward_step(t, p * VL, bits_of(t->bits, p, VL, 0), VL, own, d, activation, added);
        return;
    }
    for (size p = s.first; p < s.end; p++) {
        size c = 0;
        for (; c + VL <= s.C; c += VL)
            backward_step(t, p * s.C + c, bits_of(t->bits, p, s.C, c), VL,
                          coefficients_at(a, s.at + c, VL), slopes_at(a, s.at + c, VL), activation,
                          added);
        if (c < s.C) {
            int k = (int)(s.C - c);
            backward_step(t, p * s.C + c, bits_of(t->bits, p, s.C, c), k,
                          coefficients_at(a, s.at + c, k), slopes_at(a, s.at + c, k), activation,
                          added);
        }
    }
}
