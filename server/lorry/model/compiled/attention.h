/* One new token against its cached past, for the query heads that share a key head.
 *
 * Which keys a token sees, and so the order of every sum here, depends on its own
 * position alone: neither the batch nor the way a prompt was cut changes a bit.
 */
#ifndef LORRY_ATTENTION_H
#define LORRY_ATTENTION_H

#include "step.h"
#include "vectors.h"
#include <math.h>

#define HEADS (WIDTH == 16 ? 4 : 2) /* query heads that share a load of values */
#define SPAN 4                      /* vectors of a head that are added up at once */

/* Scores of one head are padded to whole vectors. */
#define PADDED(length) (((size_t)(length) + BLOCK - 1) / BLOCK * BLOCK)

/* mine[l] = q . k[l] * scale for every key. */
static void score_keys(const float *q_D, const uint16_t *k_NHD, const int32_t *cells, int length,
                       int size, size_t cell_stride, float scale, float *mine) {
    /* As many keys at once as a vector has lanes: one reduction makes all their sums. */
    for (int first = 0; first < length; first += WIDTH) {
        const uint16_t *keys[WIDTH];
        Floats acc[WIDTH];
        for (int l = 0; l < WIDTH; l++) {
            const int known = first + l < length ? first + l : length - 1;
            keys[l] = k_NHD + cells[known] * cell_stride;
            acc[l] = splat(0);
        }
        for (int d = 0; d < size; d += WIDTH) {
            const Floats q = load(q_D + d);
            for (int l = 0; l < WIDTH; l++) acc[l] = fused(q, load_half(keys[l] + d), acc[l]);
        }
        store(mine + first, sums(acc) * splat(scale));
    }
}

/* The cap and the slope of a query head; the last key is its own position's. */
static void adjust(const Attention *how, int head, float *mine, int length) {
    for (int l = 0; how->cap && l < length; l += WIDTH) {
        const Floats twice = load(mine + l) * splat(2 / how->cap);
        const Floats tangent = splat(1) - splat(2) / (exponential(twice) + splat(1));
        store(mine + l, splat(how->cap) * tangent);
    }
    for (int l = 0; how->slope_Q && l < length; l++)
        mine[l] -= how->slope_Q[head] * (float)(length - 1 - l);
    for (size_t l = (size_t)length; l < PADDED(length); l++) mine[l] = -INFINITY;
}

/* Scores to weights, in place; gives 1 / their sum. */
static float weigh(const float *sink, float *mine, int length) {
    Floats most = load(mine), totals = splat(0);
    for (int l = WIDTH; l < length; l += WIDTH) most = greater(most, load(mine + l));
    if (sink) most = greater(splat(*sink), most);
    const Floats best = splat(largest(most));
    for (int l = 0; l < length; l += WIDTH) {
        const Floats e = exponential(load(mine + l) - best);
        store(mine + l, e);
        totals += e;
    }
    return 1.0f / (sum(totals) + (sink ? exponential(splat(*sink) - best)[0] : 0));
}

/* out[g] = factor[g] * sum over l of weights[g][l] * v[l], for `group` heads and `vectors` of
 * each, constants where it is called. */
INLINE void mix_values(const uint16_t *v_NHD, const int32_t *cells, int length, size_t cell_stride,
                       const float *weights, const float *factor, float *out_GD, int size,
                       int group, int vectors) {
    Floats acc[HEADS][SPAN];
    for (int g = 0; g < group; g++)
        for (int i = 0; i < vectors; i++) acc[g][i] = splat(0);
    for (int l = 0; l < length; l++) {
        const uint16_t *v = v_NHD + cells[l] * cell_stride;
        for (int i = 0; i < vectors; i++) {
            const Floats value = load_half(v + i * WIDTH);
            for (int g = 0; g < group; g++)
                acc[g][i] = fused(splat(weights[g * PADDED(length) + l]), value, acc[g][i]);
        }
    }
    for (int g = 0; g < group; g++)
        for (int i = 0; i < vectors; i++)
            store(out_GD + g * size + i * WIDTH, acc[g][i] * splat(factor[g]));
}

/* q_GD, out_GD: query heads `head` to `head` + `group` - 1, contiguous. k_NHD, v_NHD: in half precision, at this key
 * head already. cells: the `length` cells to see. scores: room for [group, PADDED(length)]. */
static void attend(const Attention *how, const float *q_GD, const uint16_t *k_NHD,
                   const uint16_t *v_NHD, float *out_GD, const int32_t *cells, int length,
                   int head, int group, int size, size_t cell_stride, float *scores) {
    for (int first = 0; first < group; first += HEADS) {
        const int heads = group - first < HEADS ? group - first : HEADS;
        float factor[HEADS];
        for (int g = 0; g < heads; g++) {
            float *mine = scores + g * PADDED(length);
            score_keys(q_GD + (first + g) * size, k_NHD, cells, length, size, cell_stride,
                       how->scale, mine);
            adjust(how, head + first + g, mine, length);
            factor[g] = weigh(how->sink_Q ? how->sink_Q + head + first + g : NULL, mine, length);
        }
        for (int d = 0; d < size;) {
            const int vectors = size - d >= SPAN * WIDTH ? SPAN : 1;
#define MIX(G, V)                                                                               \
    mix_values(v_NHD + d, cells, length, cell_stride, scores, factor, out_GD + first * size + d, \
               size, G, V)
            if (vectors == SPAN && heads == 1) MIX(1, SPAN);
            if (vectors == SPAN && heads == 2) MIX(2, SPAN);
#if WIDTH == 16
            if (vectors == SPAN && heads == 3) MIX(3, SPAN);
            if (vectors == SPAN && heads == 4) MIX(4, SPAN);
#endif
            if (vectors == 1) MIX(heads, 1);
#undef MIX
            d += vectors * WIDTH;
        }
    }
}

#endif
