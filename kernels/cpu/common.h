/* Used by all files: sizes, parameters in float64, work shared by threads. */

#include <math.h>
#include <stdint.h>

#define INLINE inline __attribute__((always_inline))
#define FLOAT32 0
#define FLOAT64 1
#define BFLOAT16 2
#define FLOAT16 3

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

typedef int64_t size;

static INLINE size ceil_div(size a, size b) { return (a + b - 1) / b; }

/* The rounding error of a mean, from the sum of the deviations from it. If that sum overflows, so
   does the variance, and the error does not matter. */
static INLINE double error_of_mean(double deviations, double count) {
    return isfinite(deviations) ? deviations / count : 0;
}

/* A parameter's value; its dtype is given by its number. Parameters are few. */
double load_value(const void *p, int64_t type, size i);

/* n parameters in float64; `otherwise` if p is NULL. */
void widen_all(double *out, const void *p, int64_t type, size n, double otherwise);

void load_floats(float *out, const void *p, int64_t type, size n);

/* Rounds value to the i-th parameter at p; does nothing if p is NULL. */
void store_value(void *p, int64_t type, size i, double value);

/* The same for n of them, from `first` on. */
void store_all(void *p, int64_t type, size first, size n, const double *values);

/* task(context, i) for each i < items, or from the last to the first. Each thread takes a run of
   neighbours, the same in both directions: it first reads the data that it read last. Results do
   not depend on which thread takes a run. */
void share_out(void (*task)(void *, size), void *context, size items, int threads, int backwards);

/* 1 for tensors so small that a second thread would cost more than it gains. */
int threads_for(size bytes, size threads);

/* The size of a core's own cache in bytes. */
size second_level_cache(void);
