/* Norms, of whole rows and of heads. */
#ifndef LORRY_NORMS_H
#define LORRY_NORMS_H

#include "step.h"
#include "vectors.h"
#include <math.h>

static void rms_norm(const float *x, const float *weight, float *out, int size, float epsilon) {
    Floats squares = splat(0);
    for (int i = 0; i < size; i += WIDTH) squares = fused(load(x + i), load(x + i), squares);
    Floats factor = splat(1.0f / sqrtf(sum(squares) / size + epsilon));
    for (int i = 0; i < size; i += WIDTH)
        store(out + i, load(weight + i) * (load(x + i) * factor));
}

static __attribute__((noinline)) void layer_norm(const Norm *norm, const float *x, float *out,
                                                 int size) {
    Floats totals = splat(0), squares = splat(0);
    for (int i = 0; i < size; i += WIDTH) totals += load(x + i);
    const Floats mean = splat(sum(totals) / size);
    for (int i = 0; i < size; i += WIDTH) {
        const Floats from_mean = load(x + i) - mean;
        squares = fused(from_mean, from_mean, squares);
    }
    const Floats factor = splat(1.0f / sqrtf(sum(squares) / size + norm->epsilon));
    for (int i = 0; i < size; i += WIDTH) {
        Floats y = load(norm->weight + i) * ((load(x + i) - mean) * factor);
        if (norm->bias) y += load(norm->bias + i);
        store(out + i, y);
    }
}

/* out may be x. */
static void normalise(const Norm *norm, const float *x, float *out, int size) {
    if (norm->centred) layer_norm(norm, x, out, size);
    else rms_norm(x, norm->weight, out, size, norm->epsilon);
}

/* Of `total` numbers of heads that lie together. */
static void norm_heads(const Norm *norm, float *heads, int total) {
    for (int i = 0; i < total; i += norm->size) {
        Norm one = *norm;
        if (norm->each) {
            one.weight += i;
            if (one.bias) one.bias += i;
        }
        normalise(&one, heads + i, heads + i, norm->size);
    }
}

#endif
