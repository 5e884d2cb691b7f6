/* The activation of a norm, by vectors: act(z), and g = dy act'(z). */

enum { NONE, RELU, SILU, GELU, GELU_TANH, HARDSWISH, MISH, LEAKY_RELU, ELU };

/* Below, an activation before GELU_TANH is a constant in compiled code, the others are not. The
   parameter is leaky_relu's slope or elu's alpha. */

#if DTYPE == FLOAT64
static INLINE vec each(double (*f)(double), vec x) {
    for (int i = 0; i < VL; i++) x[i] = f(x[i]);
    return x;
}
static INLINE vec vec_exp(vec x) { return each(exp, x); }
static INLINE vec vec_erf(vec x) { return each(erf, x); }
static INLINE vec vec_expm1(vec x) { return each(expm1, x); }
#else
/* At most `most`, at least `least`; NaN goes through. */
static INLINE vec between(acc least, vec x, acc most) {
#if WIDE /* with a NaN these return their second operand */
    return (vec)_mm512_max_ps((__m512)splat(least), _mm512_min_ps((__m512)splat(most), (__m512)x));
#else
    x = blend(greater(x, splat(most)), splat(most), x);
    return blend(greater(splat(least), x), splat(least), x);
#endif
}

/* v 2^n for whole n, with v about 1 and n within [-150, 128]. */
static INLINE vec scaled(vec v, vec n) {
#if WIDE
    return (vec)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
    typedef uint32_t bits __attribute__((vector_size(VL * 4)));
    ivec whole = __builtin_convertvector(keep(~is_nan(n), n), ivec);
    ivec half = whole >> 1;
    vec low = (vec)((bits)(half + 127) << 23);
    vec high = (vec)((bits)(whole - half + 127) << 23);
    return v * low * high; /* two steps reach 2^128 and subnormal results */
#endif
}

/* exp of x, or of `most` if that is less, to 1 ulp: 2^n times the polynomial of Cephes' expf on
   [-ln 2 / 2, ln 2 / 2]. */
static INLINE vec vec_exp_to(vec x, acc most) {
    x = between(-104.0f, x, most);
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer */
    vec n = (x * 1.44269504f + round) - round;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return scaled(p * r * r + r + 1.0f, n);
}

static INLINE vec vec_exp(vec x) { return vec_exp_to(x, 89.0f); }

/* To a few ulp: the rational function of Eigen's erf, x P(x^2) / Q(x^2) on [-4, 4]. */
static INLINE vec vec_erf(vec x) {
    x = blend(greater(x, splat(4.0f)), splat(4.0f), x);
    x = blend(greater(splat(-4.0f), x), splat(-4.0f), x);
    vec s = x * x;
    vec p = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
    p = p * s + -2.10102402082508e-06f;
    p = p * s + -5.69250639462346e-05f;
    p = p * s + -7.34990630326855e-04f;
    p = p * s + -2.95459980854025e-03f;
    p = p * s + -1.60960333262415e-02f;
    vec q = s * -1.45660718464996e-05f + -2.13374055278905e-04f;
    q = q * s + -1.68282697438203e-03f;
    q = q * s + -7.37332916720468e-03f;
    q = q * s + -1.42647390514189e-02f;
    return x * p / q;
}

/* exp(x) - 1 for x <= 0. Near 0 by Taylor's series: exp alone would lose the digits. */
static INLINE vec vec_expm1(vec x) {
    const mask is_near = greater(x, splat(-0.5f));
    const vec near = keep(is_near, x);
    vec total = splat(1);
    for (int i = 9; i > 1; i--) total = 1 + near * (1.0f / (float)i) * total;
    return blend(is_near, near * total, vec_exp(x) - 1);
}
#endif

/* 1 / (1 + exp(-z)). */
static INLINE vec sigmoid_of(vec z) {
#if WIDE && VL == 16 /* one Newton step from 14 bits: a division takes four times as long */
    const vec d = 1 + vec_exp_to(-z, 88.0f); /* finite: for an infinite d, 1 - d near is NaN */
    const vec near = (vec)_mm512_rcp14_ps((__m512)d);
    return keep(above(z + 88.0f), near + near * (1 - d * near));
#else
    return 1 / (1 + vec_exp(-z));
#endif
}

/* silu(z) and its derivative. Results of 16 bits have at best a precision of 2^-12: so a short
   exponential and 14 bits of the reciprocal are enough. The derivative goes into sums, and
   has all its digits. */
#if WIDE && VL == 16 && DTYPE != FLOAT32
static INLINE vec power_of_two(vec t) {
    const vec n = (vec)_mm512_roundscale_ps((__m512)t, _MM_FROUND_TO_NEAREST_INT);
    const vec f = t - n;
    vec p = f * 1.327647245e-3f + 9.675540961e-3f; /* least squares of the relative error: 1e-7 */
    p = p * f + 5.550713092e-2f;
    p = p * f + 2.402212024e-1f;
    p = p * f + 6.931469440e-1f;
    return scaled(p * f + 1.0f, n);
}

#define LOG2E 1.44269504f

static INLINE vec silu_of(vec z) { /* if the power is infinite, z times 0 */
    const __m512 t = _mm512_max_ps((__m512)splat(-126), (__m512)(z * -LOG2E));
    return z * (vec)_mm512_rcp14_ps((__m512)(1 + power_of_two((vec)t)));
}

static INLINE vec silu_slope(vec z) {
    z = between(-88, z, 88); /* beyond, the slope is 0 or 1; all stays finite */
    const vec d = 1 + power_of_two(z * -LOG2E), near = (vec)_mm512_rcp14_ps((__m512)d);
    const vec sigmoid = near + near * (1 - d * near);
    return sigmoid * (1 + z * (1 - sigmoid));
}
#else
static INLINE vec silu_of(vec z) { return z * sigmoid_of(z); }

static INLINE vec silu_slope(vec z) {
    const vec sigmoid = sigmoid_of(z);
    return sigmoid * (1 + z * (1 - sigmoid));
}
#endif

/* Beyond FLAT, mish and gelu's approximation are z or 0, to the last bit. */
#define FLAT 20

static INLINE vec at_most(vec z, acc most) { return blend(greater(z, splat(most)), splat(most), z); }

/* 2 u, for 0.5 z (1 + tanh(u)) = z sigmoid(2 u). */
static INLINE vec twice_inner(vec z) {
    return z * (acc)1.5957691216057308 * (1 + z * z * (acc)0.044715);
}

/* tanh(softplus(z)) = n / (n + 2) with n = e (e + 2), e = exp(z). */
static INLINE vec tanh_of_softplus(vec e) {
    vec n = e * (e + 2);
    return n / (n + 2);
}

static INLINE int keeps_mask(int activation) {
    return activation == RELU || activation == LEAKY_RELU;
}

/* Whether its gradient takes long to compute. */
static INLINE int is_smooth(int activation) { return activation != NONE && !keeps_mask(activation); }

/* Whether z passes unchanged: ReLU lets NaN through, and torch's leaky_relu scales it. */
static INLINE mask passes(vec z, int activation) {
    return activation == LEAKY_RELU ? greater(z, splat(0)) : above(z);
}

/* Activations without specialised code: compiled once, not inlined a hundred times. */
static __attribute__((noinline)) vec rarely_activated(vec z, int activation, acc parameter) {
    if (activation == GELU_TANH) return z * sigmoid_of(twice_inner(z));
    if (activation == HARDSWISH) {
        vec gate = at_most(z + 3, 6);
        return z * keep(above(gate), gate) * (acc)(1.0 / 6);
    }
    if (activation == MISH) {
        vec all = splat(1), here = tanh_of_softplus(vec_exp(at_most(z, FLAT)));
        return z * blend(greater(z, splat(FLAT)), all, here);
    }
    return blend(above(z), z, vec_expm1(at_most(z, 0)) * parameter);
}

static INLINE vec activated(vec z, int activation, acc parameter) {
    if (activation == NONE) return z;
    if (activation == RELU) return keep(passes(z, RELU), z);
    if (activation == SILU) return silu_of(z);
    if (activation == GELU) return z * ((acc)0.5 + (acc)0.5 * vec_erf(z * (acc)0.70710678118654752));
    if (activation == LEAKY_RELU) return blend(passes(z, LEAKY_RELU), z, z * parameter);
    return rarely_activated(z, activation, parameter);
}

/* g = dy act'(z) of an activation whose mask was kept. */
static INLINE vec masked_gradient(vec dy, mask positive, int activation, acc parameter) {
    return activation == RELU ? keep(positive, dy) : blend(positive, dy, dy * parameter);
}

static __attribute__((noinline)) vec rare_gradient(vec dy, vec z, int activation, acc parameter) {
    if (activation == GELU_TANH) {
        z = -at_most(-at_most(z, FLAT), FLAT); /* its square has to be finite */
        vec sigmoid = sigmoid_of(twice_inner(z));
        vec slope = (1 + z * z * (acc)(3 * 0.044715)) * (acc)1.5957691216057308;
        return dy * (sigmoid + z * slope * sigmoid * (1 - sigmoid));
    }
    if (activation == HARDSWISH) {
        vec slope = z * (acc)(1.0 / 3) + (acc)0.5;
        slope = blend(greater(splat(3), z), slope, splat(1));
        return dy * keep(above(z + 3), slope);
    }
    if (activation == MISH) { /* (1 - tanh^2) sigmoid = 4 e (e + 1) / (n + 2)^2 */
        z = at_most(z, FLAT);
        vec e = vec_exp(z), rest = 2 / (e * (e + 2) + 2);
        return dy * (tanh_of_softplus(e) + z * e * (e + 1) * rest * rest);
    }
    return dy * blend(above(z), splat(1), vec_exp(at_most(z, 0)) * parameter);
}

static INLINE vec activation_gradient(vec dy, vec z, int activation, acc parameter) {
    if (activation == NONE) return dy;
    if (keeps_mask(activation))
        return masked_gradient(dy, passes(z, activation), activation, parameter);
    if (activation == SILU) return dy * silu_slope(z);
    if (activation == GELU) {
        vec cdf = (acc)0.5 + (acc)0.5 * vec_erf(z * (acc)0.70710678118654752);
        vec pdf = vec_exp((acc)-0.5 * z * z) * (acc)0.39894228040143268;
        return dy * (cdf + z * pdf);
    }
    return rare_gradient(dy, z, activation, parameter);
}
