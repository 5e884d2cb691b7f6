/* Vectors of VL elements, in the type of statistics (acc: double for float64, float for the rest).

   elem is the type of tensors. get and put read and write the first k <= VL elements at a pointer;
   if k is VL at compile time they are plain loads and stores. Missing elements read as 0. A partial
   vector goes through the same operations as a whole one: so no value depends on its place in
   the tensor. Without -ffast-math sums keep the order in which they are written. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif


#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define WIDE 1
#else
#define WIDE 0
#endif

#if DTYPE == FLOAT64
typedef double elem, acc;
typedef int64_t lane;
#define VL 8
#elif DTYPE == FLOAT32
typedef float elem, acc;
typedef int32_t lane;
#define VL (WIDE ? 16 : 8)
#else
typedef uint16_t elem;
typedef float acc;
typedef int32_t lane;
#define VL (WIDE ? 16 : 8)
#endif

typedef acc vec __attribute__((vector_size(VL * sizeof(acc))));
typedef lane ivec __attribute__((vector_size(VL * sizeof(lane))));
typedef elem raw __attribute__((vector_size(VL * sizeof(elem))));
typedef raw raw_at __attribute__((aligned(__alignof__(elem)), may_alias));
typedef vec vec_at __attribute__((aligned(__alignof__(acc)), may_alias));

static INLINE vec splat(acc value) { return value - (vec){0}; }

/* Some of the lanes: bits of a mask register, or lanes of ones. above: not <= 0, NaN as well. */
#if WIDE && VL == 16
typedef __mmask16 mask;
static INLINE vec keep(mask m, vec v) { return (vec)_mm512_maskz_mov_ps(m, (__m512)v); }
static INLINE vec blend(mask m, vec a, vec b) {
    return (vec)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a);
}
static INLINE mask above(vec z) {
    return _mm512_cmp_ps_mask((__m512)z, _mm512_setzero_ps(), _CMP_NLE_UQ);
}
static INLINE mask greater(vec a, vec b) {
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
}
static INLINE mask is_nan(vec v) {
    return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
}
static INLINE acc sum(vec v) { return _mm512_reduce_add_ps((__m512)v); }
#elif WIDE
typedef __mmask8 mask;
static INLINE vec keep(mask m, vec v) { return (vec)_mm512_maskz_mov_pd(m, (__m512d)v); }
static INLINE vec blend(mask m, vec a, vec b) {
    return (vec)_mm512_mask_blend_pd(m, (__m512d)b, (__m512d)a);
}
static INLINE mask above(vec z) {
    return _mm512_cmp_pd_mask((__m512d)z, _mm512_setzero_pd(), _CMP_NLE_UQ);
}
static INLINE mask greater(vec a, vec b) {
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ);
}
static INLINE acc sum(vec v) { return _mm512_reduce_add_pd((__m512d)v); }
#else
typedef ivec mask;
static INLINE vec keep(mask m, vec v) { return (vec)(m & (ivec)v); }
static INLINE vec blend(mask m, vec a, vec b) { return (vec)((m & (ivec)a) | (~m & (ivec)b)); }
static INLINE mask above(vec z) { return ~(z <= splat(0)); }
static INLINE mask greater(vec a, vec b) { return a > b; }
static INLINE mask is_nan(vec v) { return v != v; }
static INLINE acc sum(vec v) {
    acc a[VL];
    memcpy(a, &v, sizeof a);
    for (int half = VL / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}
#endif

#if WIDE
static INLINE mask first_lanes(int k) { return (mask)((1u << k) - 1); }
static INLINE unsigned to_bits(mask m) { return m; }
static INLINE mask from_bits(unsigned bits) { return (mask)bits; }
#else
static INLINE ivec lanes(void) {
    return (ivec){0, 1, 2, 3, 4, 5, 6, 7};
}
static INLINE mask first_lanes(int k) { return lanes() < ((lane)k - (ivec){0}); }
static INLINE unsigned to_bits(mask m) {
    unsigned bits = 0;
    for (int i = 0; i < VL; i++) bits |= (unsigned)(m[i] & 1) << i;
    return bits;
}
static INLINE mask from_bits(unsigned bits) {
    const ivec powers = {1, 2, 4, 8, 16, 32, 64, 128};
    return (((lane)bits - (ivec){0}) & powers) != (ivec){0};
}
#endif

static INLINE raw get_raw(const elem *p, int k) {
    if (k == VL) return *(const raw_at *)p;
#if WIDE && DTYPE == FLOAT32
    return (raw)_mm512_maskz_loadu_ps(first_lanes(k), p);
#elif WIDE && DTYPE == FLOAT64
    return (raw)_mm512_maskz_loadu_pd(first_lanes(k), p);
#elif WIDE
    return (raw)_mm256_maskz_loadu_epi16(first_lanes(k), p);
#else
    raw v = {0};
    memcpy(&v, p, k * sizeof(elem));
    return v;
#endif
}

static INLINE void put_raw(elem *p, raw v, int k) {
    if (k == VL) {
        *(raw_at *)p = v;
        return;
    }
#if WIDE && DTYPE == FLOAT32
    _mm512_mask_storeu_ps(p, first_lanes(k), (__m512)v);
#elif WIDE && DTYPE == FLOAT64
    _mm512_mask_storeu_pd(p, first_lanes(k), (__m512d)v);
#elif WIDE
    _mm256_mask_storeu_epi16(p, first_lanes(k), (__m256i)v);
#else
    memcpy(p, &v, k * sizeof(elem));
#endif
}

static INLINE vec widen(raw v) {
#if DTYPE == BFLOAT16 && WIDE /* gcc needs five instructions for the conversion below */
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)v), 16);
#elif DTYPE == BFLOAT16
    typedef uint32_t bits __attribute__((vector_size(VL * 4)));
    return (vec)(__builtin_convertvector(v, bits) << 16);
#elif DTYPE == FLOAT16 && WIDE
    return (vec)_mm512_cvtph_ps((__m256i)v);
#elif DTYPE == FLOAT16 && defined(__F16C__)
    return (vec)_mm256_cvtph_ps((__m128i)v);
#elif DTYPE == FLOAT16 && defined(__FLT16_MANT_DIG__)
    typedef _Float16 half __attribute__((vector_size(VL * 2)));
    return __builtin_convertvector((half)v, vec);
#elif DTYPE == FLOAT16
#error "float16 needs a CPU with F16C or a compiler with _Float16: gcc 12, clang 15"
#else
    return v;
#endif
}

/* Rounded to nearest, ties to even; NaN stays NaN. */
static INLINE raw narrow(vec v) {
#if DTYPE == BFLOAT16 && WIDE
    const __m512i b = (__m512i)v, quiet = _mm512_set1_epi32(0x00400000);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_or_epi32(rounded, is_nan(v), b, quiet); /* no carry to -0 */
    return (raw)_mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#elif DTYPE == BFLOAT16
    typedef uint32_t bits __attribute__((vector_size(VL * 4)));
    bits b = (bits)v;
    bits rounded = b + 0x7fff + ((b >> 16) & 1);
    rounded = (bits)blend(is_nan(v), (vec)(b | 0x00400000), (vec)rounded); /* no carry to -0 */
    return __builtin_convertvector(rounded >> 16, raw);
#elif DTYPE == FLOAT16 && WIDE
    return (raw)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif DTYPE == FLOAT16 && defined(__F16C__)
    return (raw)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif DTYPE == FLOAT16
    typedef _Float16 half __attribute__((vector_size(VL * 2)));
    return (raw)__builtin_convertvector(v, half);
#else
    return v;
#endif
}

static INLINE vec get(const elem *p, int k) { return widen(get_raw(p, k)); }
static INLINE void put(elem *p, vec v, int k) { put_raw(p, narrow(v), k); }

/* k values of the type of statistics. */
static INLINE vec get_acc(const acc *p, int k) {
    if (k == VL) return *(const vec_at *)p;
#if WIDE && VL == 16
    return (vec)_mm512_maskz_loadu_ps(first_lanes(k), p);
#elif WIDE
    return (vec)_mm512_maskz_loadu_pd(first_lanes(k), p);
#else
    vec v = {0};
    memcpy(&v, p, k * sizeof(acc));
    return v;
#endif
}

static INLINE void put_acc(acc *p, vec v, int k) {
    if (k == VL)
        *(vec_at *)p = v;
    else
        memcpy(p, &v, k * sizeof(acc));
}

/* Masks of bits, eight neighbours to a byte, k bits in whole bytes. */
static INLINE void put_bits(uint8_t *p, mask m, int k) {
    unsigned bits = to_bits(m);
    if (k < VL) bits &= (1u << k) - 1;
    p[0] = (uint8_t)bits;
    if (VL == 16 && k > 8) p[1] = (uint8_t)(bits >> 8);
}

static INLINE mask get_bits(const uint8_t *p, int k) {
    unsigned bits = p[0];
    if (VL == 16 && k > 8) bits |= (unsigned)p[1] << 8;
    return from_bits(bits);
}
