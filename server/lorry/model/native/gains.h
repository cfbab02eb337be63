/* What adapters do to a linear with vectors (`lorry.model.native.gains`): DoRA, (IA)3, biases.
 *
 * Tokens that have some are gone through one by one, before any pair of matrices is added:
 * what is taken from base(x) is taken from the base's own answer, whatever else the token has.
 */
#ifndef LORRY_GAINS_H
#define LORRY_GAINS_H

#include "ahead.h"
#include "linear.h"
#include "step.h"
#include "vectors.h"
#include <stddef.h>
#include <string.h>

/* What the pair that is `use` in the list does to the linear. */
INLINE const Gain *gain_of(const Slots *slots, const Pairs *pairs, int use) {
    return pairs->gain[pairs->uses[use]] + slots->module;
}

/* Whether nobody reads the x of the g-th token with vectors but for what goes in instead. */
INLINE int is_instead(const Slots *slots, const Pairs *pairs, int g) {
    return pairs->alone[g] && gain_of(slots, pairs, pairs->first[g])->instead;
}

/* Whether an adapter of the token changes what goes into the linear, beside x. */
static int is_inward(const Slots *slots, const Pairs *pairs, int g) {
    if (is_instead(slots, pairs, g)) return 0;
    for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++)
        if (gain_of(slots, pairs, use)->inward_I) return 1;
    return 0;
}

/* The codes of (1 + the sum of inward) x, and what they are worth; scaled: room for [in]. */
static float encode_inward(const Slots *slots, const Pairs *pairs, int g, const float *x,
                           float *scaled, uint8_t *codes) {
    const int in = slots->in;
    memcpy(scaled, x, sizeof(float) * (size_t)in);
    for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++) {
        const float *inward = gain_of(slots, pairs, use)->inward_I;
        if (!inward) continue;
        for (int i = 0; i < in; i += WIDTH)
            store(scaled + i, fused(load(inward + i), load(x + i), load(scaled + i)));
    }
    return encode(scaled, codes, in);
}

/* y += more * base + shift for outputs `first` to `last` - 1. base may be y itself. */
static void add_gain(const Gain *gain, const float *base, const float *bias, float *y, int first,
                     int last) {
    const float *more = gain->more_O, *shift = gain->shift_O;
    if (more && gain->dora && bias)
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
static void add_gains(const Slots *slots, const Pairs *pairs, const float *bias,
                      const float *answers, float *y, int stride, float *kept, int first,
                      int last) {
    for (int g = 0; g < pairs->num_gained; g++) {
        float *to = y + (size_t)pairs->gained[g] * stride;
        const float *base = to;
        const int inward = is_inward(slots, pairs, g);
        if (inward || pairs->first[g + 1] - pairs->first[g] > 1) {
            memcpy(kept + first, to + first, sizeof(float) * (size_t)(last - first));
            base = kept;
        }
        for (int use = pairs->first[g]; use < pairs->first[g + 1]; use++)
            add_gain(gain_of(slots, pairs, use), base, bias, to, first, last);
        if (!inward) continue;
        const float *answer = answers + (size_t)g * stride;
        for (int o = first; o < last; o += WIDTH)
            store(to + o, load(to + o) + (load(answer + o) - load(base + o)));
    }
}

/* What `add_gains` will read of the adapters, asked for ahead. */
static void fetch_gains(Ahead *ahead, const Slots *slots, const Pairs *pairs, int first,
                        int last) {
    const Gain *before = NULL;
    for (int p = 0; p < pairs->num_pairs; p++) {
        if (!pairs->gain[p] || pairs->gain[p] == before) continue;
        before = pairs->gain[p];
        const Gain *gain = before + slots->module;
        const size_t bytes = sizeof(float) * (size_t)(last - first);
        if (gain->more_O) fetch(ahead, gain->more_O + first, bytes);
        if (gain->shift_O) fetch(ahead, gain->shift_O + first, bytes);
    }
}

#endif
