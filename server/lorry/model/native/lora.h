/* The adapters' deltas: shrink h = scale * A x, expand y += B h, over pairs sorted by slot.
 *
 * One token of an adapter: its A and B are streamed once, the memory's speed is the
 * limit. Several: a few tokens share each load.
 */
#ifndef LORRY_LORA_H
#define LORRY_LORA_H

#include "step.h"
#include "vectors.h"

#define MANY 4 /* tokens that share a load */

INLINE void dots(const float *a, const float *const *x, float *out, int in, int tokens) {
    Floats acc[MANY][2];
    for (int t = 0; t < tokens; t++) acc[t][0] = acc[t][1] = all(0);
    int i = 0;
    for (; i + 2 * WIDTH <= in; i += 2 * WIDTH) {
        Floats a0 = load(a + i), a1 = load(a + i + WIDTH);
        for (int t = 0; t < tokens; t++) {
            acc[t][0] += a0 * load(x[t] + i);
            acc[t][1] += a1 * load(x[t] + i + WIDTH);
        }
    }
    for (; i < in; i += WIDTH)
        for (int t = 0; t < tokens; t++) acc[t][0] += load(a + i) * load(x[t] + i);
    for (int t = 0; t < tokens; t++) out[t] = sum(acc[t][0] + acc[t][1]);
}

/* h [P, max_rank] for this thread's share of each adapter's rows.
 * x [T, stride]: the module's input. */
static void shrink(const Slots *slots, const Pairs *pairs, const float *x, int stride, float *h,
                   int max_rank, int thread, int threads) {
    if (!slots->a_SRI) return;
    const int in = slots->in;
    for (int s = 0; s < pairs->num_segments; s++) {
        const int rank = slots->rank_S[pairs->slot[s]];
        const int first = rank * thread / threads, last = rank * (thread + 1) / threads;
        const float *a_RI = slots->a_SRI + (size_t)pairs->slot[s] * max_rank * in;
        for (int p = pairs->start[s]; p < pairs->start[s + 1];) {
            const int left = pairs->start[s + 1] - p, tokens = left >= MANY ? MANY : 1;
            const float *rows[MANY];
            float out[MANY];
            for (int t = 0; t < tokens; t++) rows[t] = x + (size_t)pairs->token[p + t] * stride;
            for (int r = first; r < last; r++) {
                if (tokens == MANY) dots(a_RI + (size_t)r * in, rows, out, in, MANY);
                else dots(a_RI + (size_t)r * in, rows, out, in, 1);
                for (int t = 0; t < tokens; t++)
                    h[(size_t)(p + t) * max_rank + r] = out[t] * pairs->scale[p + t];
            }
            p += tokens;
        }
    }
}

/* y [T, stride] += B h for outputs `first` to `last` - 1 (multiples of 16). */
static void expand(const Slots *slots, const Pairs *pairs, const float *h, float *y, int stride,
                   int max_rank, int first, int last) {
    if (!slots->b_SRO) return;
    const int out = slots->out;
    for (int s = 0; s < pairs->num_segments; s++) {
        const int rank = slots->rank_S[pairs->slot[s]];
        if (!rank) continue;
        const float *b_RO = slots->b_SRO + (size_t)pairs->slot[s] * max_rank * out;
        int p = pairs->start[s];
        for (; p + MANY <= pairs->start[s + 1]; p += MANY) {
            const float *hidden = h + (size_t)p * max_rank;
            float *rows[MANY];
            for (int t = 0; t < MANY; t++) rows[t] = y + (size_t)pairs->token[p + t] * stride;
            for (int o = first; o < last; o += WIDTH) {
                /* One after the other: two pairs of one token may stand side by side. */
                Floats acc[MANY];
                for (int t = 0; t < MANY; t++) acc[t] = all(0);
                for (int r = 0; r < rank; r++) {
                    Floats b = load(b_RO + (size_t)r * out + o);
                    for (int t = 0; t < MANY; t++) acc[t] += b * all(hidden[t * max_rank + r]);
                }
                for (int t = 0; t < MANY; t++) store(rows[t] + o, load(rows[t] + o) + acc[t]);
            }
        }
        for (; p < pairs->start[s + 1]; p++) {
            const float *hidden = h + (size_t)p * max_rank;
            float *row = y + (size_t)pairs->token[p] * stride;
            int r = 0;
            for (; r + 4 <= rank; r += 4) {
                const float *b = b_RO + (size_t)r * out;
                Floats h0 = all(hidden[r]), h1 = all(hidden[r + 1]);
                Floats h2 = all(hidden[r + 2]), h3 = all(hidden[r + 3]);
                for (int o = first; o < last; o += WIDTH) {
                    Floats delta = h0 * load(b + o) + h1 * load(b + out + o);
                    delta += h2 * load(b + 2 * out + o) + h3 * load(b + 3 * out + o);
                    store(row + o, load(row + o) + delta);
                }
            }
            for (; r < rank; r++)
                for (int o = first; o < last; o += WIDTH)
                    store(row + o,
                          load(row + o) + all(hidden[r]) * load(b_RO + (size_t)r * out + o));
        }
    }
}

#endif
