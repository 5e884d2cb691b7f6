/* Weight and bias of each sample, forward and backward, some columns at a time. */

#define COLUMNS 256

/* The address of element i in an array of a type at p; NULL if p is NULL. */
static INLINE char *element(const void *p, int64_t type, size i) {
    const size bytes = type == FLOAT64 ? 8 : type == FLOAT32 ? 4 : 2;
    return p ? (char *)p + i * bytes : NULL;
}

static void modulate_item(void *context, size i) {
    const struct modulation_job *j = context;
    const size first = i * COLUMNS, n = MIN(COLUMNS, j->L - first);
    double weight[COLUMNS], bias[COLUMNS], scale[COLUMNS], shift[COLUMNS];
    widen_all(weight, element(j->weight, j->parameter_type, first), j->parameter_type, n, 1.0);
    widen_all(bias, element(j->bias, j->parameter_type, first), j->parameter_type, n, 0.0);
    for (size a = 0; a < j->A; a++) {
        const size at = a * j->scale_stride + first, behind = a * j->shift_stride + first;
        widen_all(scale, element(j->scale, j->scale_type, at), j->scale_type, n, 0.0);
        widen_all(shift, element(j->shift, j->shift_type, behind), j->shift_type, n, 0.0);
        for (size c = 0; c < n; c++) {
            const double factor = 1 + scale[c];
            scale[c] = weight[c] * factor;
            shift[c] += bias[c] * factor;
        }
        store_all(j->gamma, j->type, a * j->L + first, n, scale);
        store_all(j->beta, j->type, a * j->L + first, n, shift);
    }
}

static void modulate_backward_item(void *context, size i) {
    const struct modulation_job *j = context;
    const size first = i * COLUMNS, n = MIN(COLUMNS, j->L - first);
    double weight[COLUMNS], bias[COLUMNS], scale[COLUMNS], dgamma[COLUMNS], dbeta[COLUMNS];
    double dweight[COLUMNS] = {0}, dbias[COLUMNS] = {0};
    widen_all(weight, element(j->weight, j->parameter_type, first), j->parameter_type, n, 1.0);
    widen_all(bias, element(j->bias, j->parameter_type, first), j->parameter_type, n, 0.0);
    for (size a = 0; a < j->A; a++) {
        const size at = a * j->L + first, own = a * j->scale_stride + first;
        widen_all(scale, element(j->scale, j->scale_type, own), j->scale_type, n, 0.0);
        widen_all(dgamma, element(j->gamma, j->type, at), j->type, n, 0.0);
        widen_all(dbeta, element(j->beta, j->type, at), j->type, n, 0.0);
        for (size c = 0; c < n; c++) {
            const double factor = 1 + scale[c];
            scale[c] = dgamma[c] * weight[c] + dbeta[c] * bias[c];
            dweight[c] += dgamma[c] * factor;
            dbias[c] += dbeta[c] * factor;
        }
        store_all(j->dscale, j->scale_type, at, n, scale);
        store_all(j->dshift, j->shift_type, at, n, dbeta);
    }
    store_all(j->dweight, j->parameter_type, first, n, dweight);
    store_all(j->dbias, j->parameter_type, first, n, dbias);
}

static int modulation_threads(const struct modulation_job *j) {
    return threads_for(j->A * j->L * (size)sizeof(double), j->threads);
}

int NAME(modulate)(const struct modulation_job *j) {
    share_out(modulate_item, (void *)j, ceil_div(j->L, COLUMNS), modulation_threads(j), 0);
    return 0;
}

int NAME(modulate_backward)(const struct modulation_job *j) {
    share_out(modulate_backward_item, (void *)j, ceil_div(j->L, COLUMNS), modulation_threads(j), 0);
    return 0;
}
