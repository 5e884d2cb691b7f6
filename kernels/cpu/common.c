#include "common.h"

#include <math.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

static INLINE double load_as(const void *p, int64_t type, size i) {
    if (type == FLOAT32) return ((const float *)p)[i];
    if (type == FLOAT64) return ((const double *)p)[i];
    uint16_t half = ((const uint16_t *)p)[i];
    uint32_t bits = (uint32_t)half << 16;
    float value;
    if (type == FLOAT16) {
        uint32_t sign = bits & 0x80000000u, magnitude = half & 0x7fffu;
        if (magnitude < 0x0400) { /* subnormal: units of 2^-24 */
            value = (float)magnitude * 5.9604644775390625e-8f;
            return sign ? -(double)value : value;
        }
        bits = sign | (magnitude >= 0x7c00 ? 0x7f800000u | (magnitude & 0x3ff) << 13
                                           : (magnitude << 13) + 0x38000000u);
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static INLINE void store_as(void *p, int64_t type, size i, double value) {
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (type == FLOAT32) {
        ((float *)p)[i] = f;
    } else if (type == FLOAT64) {
        ((double *)p)[i] = value;
    } else if (type == BFLOAT16) {
        uint32_t rounded = f != f ? bits | 0x00400000u : bits + 0x7fff + ((bits >> 16) & 1);
        ((uint16_t *)p)[i] = (uint16_t)(rounded >> 16);
    } else {
        uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu, half;
        if (magnitude >= 0x7f800000u)
            half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
        else if (magnitude >= 0x477ff000u) /* rounds to 65520 or more */
            half = 0x7c00u;
        else if (magnitude < 0x38800000u) /* subnormal: units of 2^-24, rounded by the sum */
            half = (uint32_t)lrintf(fabsf(f) * 16777216.0f);
        else
            half = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        ((uint16_t *)p)[i] = (uint16_t)(sign | half);
    }
}

double load_value(const void *p, int64_t type, size i) { return load_as(p, type, i); }

void store_value(void *p, int64_t type, size i, double value) {
    if (p) store_as(p, type, i, value);
}

/* STATEMENT with TYPE as a constant, so that its loop is vectorised. */
#define WITH_TYPE(type, STATEMENT)                                      \
    switch (type) {                                                     \
    case FLOAT32: { enum { TYPE = FLOAT32 }; STATEMENT; } break;        \
    case FLOAT64: { enum { TYPE = FLOAT64 }; STATEMENT; } break;        \
    case BFLOAT16: { enum { TYPE = BFLOAT16 }; STATEMENT; } break;      \
    default: { enum { TYPE = FLOAT16 }; STATEMENT; }                    \
    }

void widen_all(double *out, const void *p, int64_t type, size n, double otherwise) {
    if (p)
        WITH_TYPE(type, for (size i = 0; i < n; i++) out[i] = load_as(p, TYPE, i))
    else
        for (size i = 0; i < n; i++) out[i] = otherwise;
}

void load_floats(float *out, const void *p, int64_t type, size n) {
    WITH_TYPE(type, for (size i = 0; i < n; i++) out[i] = (float)load_as(p, TYPE, i))
}

void store_all(void *p, int64_t type, size first, size n, const double *values) {
    if (!p) return;
    WITH_TYPE(type, for (size i = 0; i < n; i++) store_as(p, TYPE, first + i, values[i]))
}

/* OpenMP's threads do not survive a fork: a child computes with one thread. */
static int forked;
static void after_fork(void) { forked = 1; }
__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(NULL, NULL, after_fork);
}

void share_out(void (*task)(void *, size), void *context, size items, int threads,
                      int backwards) {
    threads = forked ? 1 : (int)MIN((size)threads, items);
    if (threads <= 1) {
        for (size i = 0; i < items; i++) task(context, backwards ? items - 1 - i : i);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {
        size first = items * t / threads, end = items * (t + 1) / threads;
        for (size i = 0; i < end - first; i++) task(context, backwards ? end - 1 - i : first + i);
    }
}

/* Bytes of a tensor; smaller ones take one thread. */
#define SHARED 65536

int threads_for(size bytes, size threads) {
    return bytes < SHARED ? 1 : (int)threads;
}

size second_level_cache(void) {
    static size found = 0;
    if (!found) {
        long bytes = -1;
#ifdef _SC_LEVEL2_CACHE_SIZE
        bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
        found = bytes > 0 ? bytes : 1 << 20;
    }
    return found;
}
