/* What follows a norm: act(z), and g = dy act'(z), by vectors. */

enum { NONE, RELU, SILU, GELU };

#if DTYPE == FLOAT64
static INLINE vec each(double (*f)(double), vec x) {
    for (int i = 0; i < VL; i++) x[i] = f(x[i]);
    return x;
}
static INLINE vec vec_exp(vec x) { return each(exp, x); }
static INLINE vec vec_erf(vec x) { return each(erf, x); }
#else
/* To 1 ulp: 2^n times the polynomial of Cephes' expf on [-ln 2 / 2, ln 2 / 2]. */
static INLINE vec vec_exp(vec x) {
    x = blend(greater(x, splat(89.0f)), splat(89.0f), x);
    x = blend(greater(splat(-104.0f), x), splat(-104.0f), x);
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer */
    vec n = (x * 1.44269504f + round) - round;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    typedef uint32_t bits __attribute__((vector_size(VL * 4)));
    ivec whole = __builtin_convertvector(keep(~is_nan(n), n), ivec);
    ivec half = whole >> 1;
    vec low = (vec)((bits)(half + 127) << 23);
    vec high = (vec)((bits)(whole - half + 127) << 23);
    return p * low * high; /* in two steps: 2^128 and subnormal results are out of reach of one */
}

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
#endif

static INLINE vec activated(vec z, int activation) {
    if (activation == RELU) return keep(above(z), z);
    if (activation == SILU) return z / (1 + vec_exp(-z));
    if (activation == GELU) return z * ((acc)0.5 + (acc)0.5 * vec_erf(z * (acc)0.70710678118654752));
    return z;
}

static INLINE vec activation_gradient(vec dy, vec z, int activation) {
    if (activation == RELU) return keep(above(z), dy);
    if (activation == SILU) {
        vec sigmoid = 1 / (1 + vec_exp(-z));
        return dy * sigmoid * (1 + z * (1 - sigmoid));
    }
    if (activation == GELU) {
        vec cdf = (acc)0.5 + (acc)0.5 * vec_erf(z * (acc)0.70710678118654752);
        vec pdf = vec_exp((acc)-0.5 * z * z) * (acc)0.39894228040143268;
        return dy * (cdf + z * pdf);
    }
    return dy;
}
