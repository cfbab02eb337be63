/* Adapters that change a few of a weight's numbers (`packed_sparse.py`).
 *
 * Each number of an answer is one sum in the order of the columns, whichever way it is made: for one
 * token, lanes are outputs and x is gathered; for several, lanes are tokens and x lies transposed.
 */
#ifndef LORRY_SPARSE_H
#define LORRY_SPARSE_H

#include "activations.h"
#include "ahead.h"
#include "step.h"
#include "vectors.h"
#include <stddef.h>

#define SPARSE_WINDOW 32 /* outputs: `packed_sparse.WINDOW` */
#define SPARSE_MANY 4    /* tokens from which on it pays to transpose x */

typedef int8_t SignedCodes8 __attribute__((vector_size(WIDTH), aligned(1), may_alias));

INLINE Ints load_gaps(const uint8_t *p) { return __builtin_convertvector(*(const Codes8 *)p, Ints); }
INLINE Floats load_codes(const uint8_t *p) {
    return to_floats(__builtin_convertvector(*(const SignedCodes8 *)p, Ints));
}

/* What the codes of a token stand for, i to i + WIDTH - 1. */
INLINE Floats decode(const uint8_t *codes, Floats scale, int in, int i) {
    const Floats high = to_floats(load_gaps(codes + i) - OFFSET);
    const Floats low = to_floats(load_gaps(codes + in + i) - OFFSET);
    return fused(low, splat(1.0f / CODES), high) * scale;
}

/* S x of a group's outputs, for one token. */
INLINE void sparse_single(const uint8_t *step, int steps, const float *x, float *answer) {
    Ints column[VECTORS];
    Floats total[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        column[v] = (Ints){0};
        total[v] = splat(0);
    }
    for (int k = 0; k < steps; k++, step += 2 * BLOCK)
        for (int v = 0; v < VECTORS; v++) {
            column[v] += load_gaps(step + v * WIDTH);
            total[v] = fused(load_codes(step + BLOCK + v * WIDTH), gather(x, column[v]), total[v]);
        }
    for (int v = 0; v < VECTORS; v++) store(answer + v * WIDTH, total[v]);
}

/* The same for WIDTH tokens: x [in, WIDTH], answer [BLOCK, WIDTH]. */
INLINE void sparse_many(const uint8_t *step, int steps, const float *x, float *answer) {
    for (int v = 0; v < VECTORS; v++) {
        const uint8_t *at = step + v * WIDTH;
        Ints column = {0};
        Floats total[WIDTH];
        for (int l = 0; l < WIDTH; l++) total[l] = splat(0);
        for (int k = 0; k < steps; k++, at += 2 * BLOCK) {
            float code[WIDTH];
            int32_t place[WIDTH];
            column += load_gaps(at);
            const Ints first = column * WIDTH;
            memcpy(place, &first, sizeof place);
            store(code, load_codes(at + BLOCK));
            for (int l = 0; l < WIDTH; l++)
                total[l] = fused(splat(code[l]), load(x + place[l]), total[l]);
        }
        for (int l = 0; l < WIDTH; l++) store(answer + (v * WIDTH + l) * WIDTH, total[l]);
    }
}

/* y [tokens, stride] += scale * S x for outputs `first` to `last` - 1. x: [in], or [in, WIDTH] if
 * `many`, then WIDTH tokens at most. */
INLINE void sparse_outputs(const Sparse *sparse, float scale, const float *x, int out, float *y,
                           int stride, int tokens, int first, int last, int many) {
    for (int base = first / SPARSE_WINDOW * SPARSE_WINDOW; base < last; base += SPARSE_WINDOW) {
        const int end = base + SPARSE_WINDOW < out ? base + SPARSE_WINDOW : out;
        for (int group = base / BLOCK; group < end / BLOCK; group++) {
            const int32_t *start = sparse->start_G + group;
            const uint8_t *step = sparse->steps + (size_t)start[0] * 2 * BLOCK;
            float answer[BLOCK * WIDTH];
            if (start[1] == start[0]) continue;
            if (many) sparse_many(step, start[1] - start[0], x, answer);
            else sparse_single(step, start[1] - start[0], x, answer);
            for (int l = 0; l < BLOCK; l++) {
                const int o = base + sparse->place_O[group * BLOCK + l];
                if (o < first || o >= last) continue;
                const float factor = scale * sparse->scale_O[o];
                for (int t = 0; t < tokens; t++) {
                    float *to = y + (size_t)t * stride + o;
                    *to = __builtin_fmaf(factor, answer[many ? l * WIDTH + t : l], *to);
                }
            }
        }
    }
}

/* Of the adapters that change a few numbers. codes [T, 2, in]; room: for [in, WIDTH]. */
static void add_sparse(const Slots *slots, const Pairs *pairs, const uint8_t *codes,
                       const float *scale_T, float *y, int stride, float *room, int first,
                       int last) {
    const int in = slots->in;
    if (first == last) return;
    for (int p = 0, end; p < pairs->num_pairs; p = end) {
        end = p + 1;
        if (!pairs->vectors[p]) continue;
        const VectorDelta *mine = pairs->vectors[p] + slots->module;
        if (!mine->sparse) continue;
        while (end < pairs->num_pairs && end - p < WIDTH && pairs->vectors[end] == pairs->vectors[p] &&
               pairs->token[end] == pairs->token[end - 1] + 1)
            end++;
        const int many = end - p >= SPARSE_MANY;
        if (!many) end = p + 1;
        for (int t = 0; t < end - p; t++) {
            const size_t token = (size_t)pairs->token[p] + t;
            const uint8_t *from = codes + token * 2 * in;
            const Floats scale = splat(scale_T[token]);
            for (int i = 0; i < in; i += WIDTH) {
                const Floats x = decode(from, scale, in, i);
                if (!many) store(room + i, x);
                else
                    for (int l = 0; l < WIDTH; l++) room[(size_t)(i + l) * WIDTH + t] = x[l];
            }
        }
        float *to = y + (size_t)pairs->token[p] * stride;
        if (many)
            sparse_outputs(mine->sparse, mine->scale, room, slots->out, to, stride, end - p, first,
                           last, 1);
        else
            sparse_outputs(mine->sparse, mine->scale, room, slots->out, to, stride, 1, first, last,
                           0);
    }
}

/* What `add_sparse` will read, asked for ahead. */
static void fetch_sparse(Ahead *ahead, const Sparse *sparse, int first, int last) {
    const int32_t from = sparse->start_G[first / SPARSE_WINDOW * SPARSE_WINDOW / BLOCK];
    const int32_t to = sparse->start_G[last / BLOCK];
    fetch(ahead, sparse->steps + (size_t)from * 2 * BLOCK, (size_t)(to - from) * 2 * BLOCK);
}

#endif
