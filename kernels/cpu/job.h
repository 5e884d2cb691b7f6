/* The arguments of the engine: one struct for each call, packed by calls.py in this very order. */

#include <stdint.h>

enum { BATCH, INSTANCE, GROUP, MIXED, MEAN_ONLY, GIVEN, MOMENTS };

/* A norm of channels. x and tensors of its shape are (N, C, S) in memory, or (N, S, C) if `last`.
   Statistics are float64: mean and 1 / std of each set; for MIXED the batch's come after the
   instances'; for GIVEN center, scale and shift of each (n, c). Pointers may be NULL. */
struct job {
    const void *x, *dy, *residual;
    uint8_t *bits;                    /* ReLU's: written forward, read backward */
    const void *weight, *bias, *rho;  /* parameter_type, (C); if per_sample (N, C), but not rho */
    void *running_mean, *running_var; /* of running_type, (C) each */
    double *stats;
    void *y; /* or dx */
    void *dresidual, *dweight, *dbias, *drho;
    const double *slopes; /* (2, N, C): slope and level of GIVEN's backward */
    double *sums;         /* (2, N, C): for the moments of x or of gradients */
    int64_t N, C, S, last, norm, groups, own_stats, per_sample, activation;
    int64_t parameter_type, running_type, threads;
    double momentum, eps, parameter; /* the last is the activation's */
};

/* A norm of R rows of L elements: layer norm, or RMS norm if `rms`. */
struct rows_job {
    const void *x, *addend, *dy, *dsum, *residual;
    uint8_t *bits;
    const void *weight, *bias; /* of parameter_type, (A, L) each: row r takes row (r / inner) % A */
    double *stats;             /* (2, R): mean and 1 / std */
    void *y;                   /* or dx */
    void *total, *dresidual, *dweight, *dbias;
    int64_t R, L, A, inner, rms, activation, parameter_type, threads;
    double eps, parameter;
};

/* RMS norm of R rows of L elements, with a gate before or after it. */
struct gated_job {
    const void *x, *gate, *dy;
    const void *weight; /* as in rows_job */
    void *stats;        /* (R): 1 / rms, of the type of statistics */
    void *y;            /* or dx */
    void *dgate, *dweight;
    int64_t R, L, A, inner, norm_first, parameter_type, threads;
    double eps;
};

/* Weight normalisation of R rows. */
struct weight_job {
    const void *v, *g, *dw; /* g of parameter_type, (R) */
    double *norms;
    void *w; /* or dv */
    void *dg;
    int64_t R, L, parameter_type, threads;
};

/* Weight and bias of each of A samples, of L elements: weight (1 + scale), bias (1 + scale) + shift.
   The strides say how many elements the rows of scale and of shift are apart. */
struct modulation_job {
    const void *scale, *shift;
    const void *weight, *bias; /* of parameter_type, (L) */
    void *gamma, *beta;        /* of type, (A, L); backward their gradients */
    void *dscale, *dshift, *dweight, *dbias;
    int64_t A, L, scale_stride, shift_stride, type, scale_type, shift_type, parameter_type, threads;
};
