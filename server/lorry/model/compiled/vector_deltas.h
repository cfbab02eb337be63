/* What adapters do to a linear with vectors (`packed_vectors.py`): DoRA, (IA)3, biases.
 *
 * Tokens that have some are handled one by one, before any pair of matrices is added:
 * what is taken from base(x) is taken from the base's own answer, whatever else the token has.
 */
#ifndef LORRY_VECTOR_DELTAS_H
#define LORRY_VECTOR_DELTAS_H

#include "ahead.h"
#include "linear.h"
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
        if (vector_delta_of(slots, pairs, use)->inward_I) return 1;
    return 0;
}

/* The codes of (1 + the sum of inward) x, and their scale; scaled: room for [in]. */
static float encode_inward(const Slots *slots, const Pairs *pairs, int g, const float *x,
                           float *scaled, uint8_t *codes) {
    const int in = slots->in;
    memcpy(scaled, x, sizeof(float) * (size_t)in);
    for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++) {
        const float *inward = vector_delta_of(slots, pairs, use)->inward_I;
        if (!inward) continue;
        for (int i = 0; i < in; i += WIDTH)
            store(scaled + i, fused(load(inward + i), load(x + i), load(scaled + i)));
    }
    return encode(scaled, codes, in);
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
    }
}

#endif
