/* The steps for one vector of a tensor, the same in every layout, forward and backward. */

/* The coefficients of y = act((x - center) scale + shift + residual). */
struct coefficients {
    vec center, scale, shift;
};

/* The tensors of a call, with x's neighbours in memory. */
struct tensors {
    const elem *x, *dy, *residual;
    elem *y, *dresidual;
    uint8_t *bits;
    acc parameter; /* of the activation */
    int constant;  /* statistics are constants: dx does not depend on x, which may be infinite */
    acc *g;        /* memory in which a backward's first pass keeps dy act'(z), or NULL */
    size g_start;  /* the element that it starts at */
};

/* y of k neighbours, from `i` on; `bits` gets their bits. */
static INLINE void forward_step(const struct tensors *t, size i, uint8_t *bits, int k,
                                struct coefficients a, int activation, int added) {
    vec z = (get(t->x + i, k) - a.center) * a.scale + a.shift;
    if (added) {
        z += get(t->residual + i, k);
        if (keeps_mask(activation) && bits) put_bits(bits, passes(z, activation), k);
    }
    put(t->y + i, activated(z, activation, t->parameter), k);
}

/* g = dy act'(z) of k neighbours, and their x - center in *deviation. */
static INLINE vec gradient_step(const struct tensors *t, size i, const uint8_t *bits, int k,
                                struct coefficients a, int activation, int added, vec *deviation) {
    vec g = get(t->dy + i, k);
    *deviation = get(t->x + i, k) - a.center;
    if (activation == NONE) return g;
    if (added && keeps_mask(activation))
        return masked_gradient(g, get_bits(bits, k), activation, t->parameter);
    vec z = *deviation * a.scale + a.shift;
    if (added) z += get(t->residual + i, k);
    return activation_gradient(g, z, activation, t->parameter);
}

/* The same, for the first pass. */
static INLINE vec summed_step(const struct tensors *t, size i, const uint8_t *bits, int k,
                              struct coefficients a, int activation, int added, vec *deviation) {
    vec g = gradient_step(t, i, bits, k, a, activation, added, deviation);
    if (t->g) put_acc(t->g + (i - t->g_start), g, k);
    return g;
}

/* Run FUNCTION(..., activation, added); for the usual values both are constants in it. */
#define SPECIALISED(FUNCTION, activation, added, ...)                        \
    switch ((activation) * 2 + (added)) {                                    \
    case NONE * 2: FUNCTION(__VA_ARGS__, NONE, 0); break;                    \
    case NONE * 2 + 1: FUNCTION(__VA_ARGS__, NONE, 1); break;                \
    case RELU * 2: FUNCTION(__VA_ARGS__, RELU, 0); break;                    \
    case RELU * 2 + 1: FUNCTION(__VA_ARGS__, RELU, 1); break;                \
    case SILU * 2:                                                           \
    case SILU * 2 + 1: FUNCTION(__VA_ARGS__, SILU, added); break;            \
    case GELU * 2:                                                           \
    case GELU * 2 + 1: FUNCTION(__VA_ARGS__, GELU, added); break;            \
    case LEAKY_RELU * 2:                                                     \
    case LEAKY_RELU * 2 + 1: FUNCTION(__VA_ARGS__, LEAKY_RELU, added); break; \
    default: FUNCTION(__VA_ARGS__, (int)(activation), added);                \
    }

struct slopes {
    vec p, q, r;
};

/* dx = p g + q (x - center) + r and dresidual = g, each if it is wanted. */
static INLINE void backward_step(const struct tensors *t, size i, const uint8_t *bits, int k,
                                 struct coefficients a, struct slopes d, int activation,
                                 int added) {
    vec deviation, g;
    if (t->g)
        g = get_acc(t->g + (i - t->g_start), k), deviation = get(t->x + i, k) - a.center;
    else
        g = gradient_step(t, i, bits, k, a, activation, added, &deviation);
    if (t->y) put(t->y + i, g * d.p + (t->constant ? d.r : deviation * d.q + d.r), k);
    if (t->dresidual) put(t->dresidual + i, g, k);
}
