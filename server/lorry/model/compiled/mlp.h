/* Between the MLP's linears. */
#ifndef LORRY_MLP_H
#define LORRY_MLP_H

#include "engine.h"
#include "modules.h"
#include "step.h"
#include "vectors.h"

/* tanh(v), absolute error below 2e-7. */
INLINE Floats tangent(Floats v) {
    return splat(1.0f) - splat(2.0f) / (splat(1.0f) + exponential(v + v));
}

/* The error function, absolute error below 5e-7: Abramowitz and Stegun, 7.1.26. */
INLINE Floats error_function(Floats v) {
    const Floats size = greater(v, -v);
    const Floats t = splat(1.0f) / fused(splat(0.3275911f), size, splat(1.0f));
    Floats p = splat(1.061405429f);
    p = fused(p, t, splat(-1.453152027f));
    p = fused(p, t, splat(1.421413741f));
    p = fused(p, t, splat(-0.284496736f));
    p = fused(p, t, splat(0.254829592f));
    const Floats y = splat(1.0f) - p * t * exponential(-size * size);
    return (Floats)(((Ints)v & INT32_MIN) | (Ints)y);
}

/* kind: a compile-time constant. */
INLINE Floats activated(Floats x, int kind) {
    switch (kind) {
    case SILU: return x / (splat(1.0f) + exponential(-x));
    case GELU: return splat(0.5f) * x * (splat(1.0f) + error_function(x * splat(0.70710678f)));
    case GELU_TANH: {
        const Floats inner = fused(x * x * x, splat(0.044715f), x) * splat(0.79788456f);
        return splat(0.5f) * x * (splat(1.0f) + tangent(inner));
    }
    case GELU_QUICK: return x / (splat(1.0f) + exponential(x * splat(-1.702f)));
    case RELU: return greater(x, splat(0));
    default: {
        const Floats positive = greater(x, splat(0));
        return positive * positive;
    }
    }
}

/* gate = silu(gate) * up. */
static void activate(Engine *e, int inner, int thread) {
    const int tokens = e->step->num_tokens;
    const int first = SHARE(inner / BLOCK, thread, e->pool.size) * BLOCK;
    const int last = SHARE(inner / BLOCK, thread + 1, e->pool.size) * BLOCK;
    for (int t = 0; t < tokens; t++) {
        float *gate = e->gate + (size_t)t * 2 * inner, *up = gate + inner;
        for (int i = first; i < last; i += WIDTH) {
            Floats g = load(gate + i);
            store(gate + i, g / (splat(1.0f) + exponential(-g)) * load(up + i));
        }
    }
}

/* gate = f(gate) * up from `first` to `last` - 1, for every f; up NULL: gate = f(gate). */
static __attribute__((noinline)) void activate_row(int activation, float *gate, const float *up,
                                                   int first, int last) {
#define ACTIVATE(KIND)                                                              \
    case KIND:                                                                      \
        for (int i = first; i < last; i += WIDTH) {                                 \
            Floats y = activated(load(gate + i), KIND);                             \
            if (up) y *= load(up + i);                                              \
            store(gate + i, y);                                                     \
        }                                                                           \
        break;
    switch (activation) {
        ACTIVATE(SILU)
        ACTIVATE(GELU)
        ACTIVATE(GELU_TANH)
        ACTIVATE(GELU_QUICK)
        ACTIVATE(RELU)
        ACTIVATE(RELU_SQUARED)
    }
#undef ACTIVATE
}

/* Of every token, a gate or none. */
static void activate_other(Engine *e, int inner, int thread) {
    const Model *m = e->model;
    const int first = SHARE(inner / BLOCK, thread, e->pool.size) * BLOCK;
    const int last = SHARE(inner / BLOCK, thread + 1, e->pool.size) * BLOCK;
    for (int t = 0; t < e->step->num_tokens; t++) {
        float *gate = e->gate + (size_t)t * (m->gated ? 2 : 1) * inner;
        activate_row(m->activation, gate, m->gated ? gate + inner : NULL, first, last);
    }
}

#endif
