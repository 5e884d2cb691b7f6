/* Common to every file: sizes, parameters in float64, work shared by threads. */

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

/* The rounding error of a mean, by the sum of the deviations from it. Where that sum overflows the
   variance does too, and the error is of no account. */
static INLINE double error_of_mean(double deviations, double count) {
    return isfinite(deviations) ? deviations / count : 0;
}

/* A parameter's value, of the dtype with that number; parameters are few. */
double load_value(const void *p, int64_t type, size i);

/* n parameters in float64; `otherwise` where p is NULL. */
void widen_all(double *out, const void *p, int64_t type, size n, double otherwise);

void load_floats(float *out, const void *p, int64_t type, size n);

/* value, rounded to the i-th parameter at p; nothing where p is NULL. */
void store_value(void *p, int64_t type, size i, double value);

/* n of them, from the one at `first` on. */
void store_all(void *p, int64_t type, size first, size n, const double *values);

/* task(context, i) for each i < items, or from the last to the first. Each thread takes a run of
   neighbours, the same one in either direction: what it read last it reads first. Results cannot
   depend on who takes which. */
void share_out(void (*task)(void *, size), void *context, size items, int threads, int backwards);

/* One for tensors so small that a second thread would cost more than it brings. */
int threads_for(size bytes, size threads);

/* The size of a core's own cache in bytes. */
size second_level_cache(void);
