/* Weight normalisation of rows: w = g v / ||v||, equations 2 and 3 of arXiv 1602.07868. */

static INLINE double dot(const elem *a, const elem *b, size L) {
    double total = 0;
    for (size start = 0; start < L; start += BLOCK) {
        vec s0 = {0}, s1 = {0};
        size i = start, end = MIN(start + BLOCK, L);
        for (; i + 2 * VL <= end; i += 2 * VL) {
            s0 += get(a + i, VL) * get(b + i, VL);
            s1 += get(a + i + VL, VL) * get(b + i + VL, VL);
        }
        for (; i < end; i += VL) {
            int k = lanes_left(i, end);
            s0 += get(a + i, k) * get(b + i, k);
        }
        total += sum(s0 + s1);
    }
    return total;
}

static void weight_item(void *context, size row) {
    const struct weight_job *j = context;
    const elem *v = (const elem *)j->v + row * j->L;
    elem *w = (elem *)j->w + row * j->L;
    j->norms[row] = sqrt(dot(v, v, j->L));
    const acc scale = (acc)(load_value(j->g, j->parameter_type, row) / j->norms[row]);
    for (size i = 0; i < j->L; i += VL) {
        int k = lanes_left(i, j->L);
        put(w + i, get(v + i, k) * scale, k);
    }
}

static void weight_backward_item(void *context, size row) {
    const struct weight_job *j = context;
    const elem *v = (const elem *)j->v + row * j->L, *dw = (const elem *)j->dw + row * j->L;
    const double norm = j->norms[row], dg = dot(dw, v, j->L) / norm;
    store_value(j->dg, j->parameter_type, row, dg);
    if (!j->w) return;
    elem *dv = (elem *)j->w + row * j->L;
    const acc scale = (acc)(load_value(j->g, j->parameter_type, row) / norm), along = (acc)(dg / norm);
    for (size i = 0; i < j->L; i += VL) {
        int k = lanes_left(i, j->L);
        put(dv + i, (get(dw + i, k) - get(v + i, k) * along) * scale, k);
    }
}

int NAME(weight)(const struct weight_job *j) {
    const size bytes = j->R * j->L * (size)sizeof(elem);
    share_out(weight_item, (void *)j, j->R, threads_for(bytes, j->threads), 0);
    return 0;
}

int NAME(weight_backward)(const struct weight_job *j) {
    const size bytes = j->R * j->L * (size)sizeof(elem);
    share_out(weight_backward_item, (void *)j, j->R, threads_for(bytes, j->threads), 0);
    return 0;
}
