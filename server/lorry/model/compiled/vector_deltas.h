/* What adapters do to a linear with vectors (`packed_vectors.py`): DoRA, (IA)3, biases.
 *
 * Tokens that have some are handled one by one, before any pair of matrices is added:
 * what is taken from base(x) is taken from the base's own answer, whatever else the token has.
 */
#ifndef LORRY_VECTOR_DELTAS_H
#define LORRY_VECTOR_DELTAS_H

#include "ahead.h"
#include "linear.h"
#include "sparse.h"
#include "step.h"
#include "vectors.h"
#include <stddef.h>
#include <string.h>

/* What the pair that is `use` in the list does to the linear. */
INLINE const VectorDelta *vector_delta_of(const Slots *slots, const Pairs *pairs, int use) {
    return pairs->vectors[pairs->uses[use]] + slots->module;
}

/* True if nothing reads the x of the g-th token with vectors, but only the scaled x. */
INLINE int is_instead(const Slots *slots, const Pairs *pairs, int g) {
    return pairs->alone[g] && vector_delta_of(slots, pairs, pairs->first[g])->instead;
}

/* Whether an adapter of the token changes what goes into the linear, beside x. */
static int is_inward(const Slots *slots, const Pairs *pairs, int g) {
    if (is_instead(slots, pairs, g)) return 0;
    for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++)
        if (vector_delta_of(slots, pairs, use)->inward_I ||
            vector_delta_of(slots, pairs, use)->turn)
            return 1;
    return 0;
}

/* to += scale * M x. */
static void add_turned(const Turn *turn, float scale, const float *x, float *to, int in) {
    const int size = turn->size, wide = turn->wide;
    const uint16_t *block = turn->blocks;
    for (int at = 0; at < in; at += size, block += (size_t)size * wide)
        for (int o = 0; o < wide; o += WIDTH) {
            float some[WIDTH];
            Floats total = splat(0);
            for (int i = 0; i < size; i++)
                total = fused(splat(x[at + i]), load_half(block + (size_t)i * wide + o), total);
            store(some, total);
            for (int k = 0; k < WIDTH && o + k < size; k++) to[at + o + k] += scale * some[k];
        }
}

static int has_products(const Slots *slots, const Pairs *pairs, int g) {
    for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++)
        if (vector_delta_of(slots, pairs, use)->kronecker) return 1;
    return 0;
}

#define ROWS_AT_ONCE 4

/* to [rows, wide] = from [rows, count] times matrix [count, wide], each number a sum in order. */
INLINE void multiply_small(const float *from, int rows, int count, const float *matrix, int wide,
                           float *to) {
    for (int r = 0; r < rows; r += ROWS_AT_ONCE) {
        const int some = rows - r < ROWS_AT_ONCE ? rows - r : ROWS_AT_ONCE;
        for (int w = 0; w < wide; w += WIDTH) {
            Floats totals[ROWS_AT_ONCE];
            for (int k = 0; k < ROWS_AT_ONCE; k++) totals[k] = splat(0);
            for (int i = 0; i < count; i++) {
                const Floats column = load(matrix + (size_t)i * wide + w);
                for (int k = 0; k < ROWS_AT_ONCE; k++) {
                    const float *row = from + (size_t)(r + (k < some ? k : 0)) * count;
                    totals[k] = fused(splat(row[i]), column, totals[k]);
                }
            }
            for (int k = 0; k < some; k++) store(to + (size_t)(r + k) * wide + w, totals[k]);
        }
    }
}

/* to [out] = the sum of the g-th token's Kronecker products with x. room: for [c + a, wide]. */
static void multiply_products(const Slots *slots, const Pairs *pairs, int g, const float *x,
                              float *to, float *room) {
    for (int o = 0; o < slots->out; o++) to[o] = 0;
    for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++) {
        const VectorDelta *vectors = vector_delta_of(slots, pairs, use);
        const Kronecker *k = vectors->kronecker;
        if (!k) continue;
        float *answers = room + (size_t)k->c * k->wide;
        multiply_small(x, k->c, k->d, k->w2_DB, k->wide, room);
        multiply_small(k->w1_AC, k->a, k->c, room, k->wide, answers);
        for (int a = 0; a < k->a; a++)
            for (int b = 0; b < k->b; b++)
                to[a * k->b + b] += vectors->scale * answers[(size_t)a * k->wide + b];
    }
}

/* y [T, stride] += products [G, total], for outputs `first` to `last` - 1. */
static void add_products(const Slots *slots, const Pairs *pairs, const float *products, int total,
                         float *y, int stride, int first, int last) {
    for (int g = 0; g < pairs->num_vectored; g++) {
        if (!has_products(slots, pairs, g)) continue;
        float *to = y + (size_t)pairs->vectored[g] * stride;
        const float *mine = products + (size_t)g * total;
        for (int o = first; o < last; o += WIDTH) store(to + o, load(to + o) + load(mine + o));
    }
}

/* (1 + the sum of inward) x, encoded; scaled: room for [in]. */
static void encode_inward(const Slots *slots, const Pairs *pairs, int g, const float *x,
                          float *scaled, Activations to, int codes, float far) {
    const int in = slots->in;
    memcpy(scaled, x, sizeof(float) * (size_t)in);
    for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++) {
        const VectorDelta *vectors = vector_delta_of(slots, pairs, use);
        const float *inward = vectors->inward_I;
        if (vectors->turn) add_turned(vectors->turn, vectors->scale, x, scaled, in);
        if (!inward) continue;
        for (int i = 0; i < in; i += WIDTH)
            store(scaled + i, fused(load(inward + i), load(x + i), load(scaled + i)));
    }
    encode_token(scaled, to, in, codes, far);
}

/* y += more * base + shift for outputs `first` to `last` - 1. base may be y itself. */
static void add_vector_delta(const VectorDelta *vectors, const float *base, const float *bias,
                             float *y, int first, int last) {
    const float *more = vectors->more_O, *shift = vectors->shift_O;
    if (more && vectors->dora && bias)
        for (int o = first; o < last; o += WIDTH) {
            const Floats without = load(base + o) - load(bias + o);
            store(y + o, fused(load(more + o), without, load(y + o)));
        }
    else if (more)
        for (int o = first; o < last; o += WIDTH)
            store(y + o, fused(load(more + o), load(base + o), load(y + o)));
    if (shift)
        for (int o = first; o < last; o += WIDTH) store(y + o, load(y + o) + load(shift + o));
}

/* y [T, stride], which has the base's answers, for outputs `first` to `last` - 1. answers: those
 * to the inward inputs, a row for each token with vectors; kept: room for [out]. */
static void add_vector_deltas(const Slots *slots, const Pairs *pairs, const float *bias,
                              const float *answers, float *y, int stride, float *kept, int first,
                              int last) {
    for (int g = 0; g < pairs->num_vectored; g++) {
        float *to = y + (size_t)pairs->vectored[g] * stride;
        const float *base = to;
        const int inward = is_inward(slots, pairs, g);
        if (inward || pairs->first[g + 1] - pairs->first[g] > 1) {
            memcpy(kept + first, to + first, sizeof(float) * (size_t)(last - first));
            base = kept;
        }
        for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++)
            add_vector_delta(vector_delta_of(slots, pairs, use), base, bias, to, first, last);
        if (!inward) continue;
        const float *answer = answers + (size_t)g * stride;
        for (int o = first; o < last; o += WIDTH)
            store(to + o, load(to + o) + (load(answer + o) - load(base + o)));
    }
}

/* What `add_vector_deltas` will read of the adapters, asked for ahead. */
static void fetch_vector_deltas(Ahead *ahead, const Slots *slots, const Pairs *pairs, int first,
                        int last) {
    const VectorDelta *before = NULL;
    for (int p = 0; p < pairs->num_pairs; p++) {
        if (!pairs->vectors[p] || pairs->vectors[p] == before) continue;
        before = pairs->vectors[p];
        const VectorDelta *vectors = before + slots->module;
        const size_t bytes = sizeof(float) * (size_t)(last - first);
        if (vectors->more_O) fetch(ahead, vectors->more_O + first, bytes);
        if (vectors->shift_O) fetch(ahead, vectors->shift_O + first, bytes);
        if (vectors->sparse) fetch_sparse(ahead, vectors->sparse, first, last);
    }
}

#endif
