/* The adapters' deltas: shrink h = scale * A x, expand y += B h, over pairs sorted by slot.
 *
 * One token of an adapter: its A and B are streamed once, the memory's speed is the
 * limit. Several: a few tokens share each load. Every tile below adds up in the same
 * order, so a token's delta is the same, bit for bit, alone and beside others.
 */
#ifndef LORRY_LORA_H
#define LORRY_LORA_H

#include "step.h"
#include "vectors.h"

#define MANY 4 /* tokens that share a load; rows of A that share a token's */
#define WIDE 8 /* vectors of B's outputs that a single token takes at once */

/* h[t][r] = scale[t] * gain * dot(a[r], x[t]) for `rows` x `tokens`, compile-time constants. */
INLINE void dots(const uint16_t *a, const float *const *x, const float *scale, float gain, float *h,
                 int in, int max_rank, int rows, int tokens) {
    Floats acc[MANY][MANY][2];
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++) acc[r][t][0] = acc[r][t][1] = all(0);
    int i = 0;
    for (; i + 2 * WIDTH <= in; i += 2 * WIDTH) {
        /* The rows that come next, see linear.h. */
        for (int r = 0; r < rows; r++)
            _mm_prefetch((const char *)(a + (size_t)(rows + r) * in + i), _MM_HINT_T0);
        for (int r = 0; r < rows; r++)
            for (int half = 0; half < 2; half++) {
                Floats weights = load_half(a + (size_t)r * in + i + half * WIDTH);
                for (int t = 0; t < tokens; t++)
                    acc[r][t][half] = fused(weights, load(x[t] + i + half * WIDTH),
                                            acc[r][t][half]);
            }
    }
    for (; i < in; i += WIDTH)
        for (int r = 0; r < rows; r++)
            for (int t = 0; t < tokens; t++)
                acc[r][t][0] = fused(load_half(a + (size_t)r * in + i), load(x[t] + i), acc[r][t][0]);
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++)
            h[(size_t)t * max_rank + r] = sum(acc[r][t][0] + acc[r][t][1]) * (scale[t] * gain);
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
        const float gain = slots->gain_S[pairs->slot[s]];
        const uint16_t *a_RI = slots->a_SRI + (size_t)pairs->slot[s] * max_rank * in;
        for (int p = pairs->start[s]; p < pairs->start[s + 1];) {
            const int left = pairs->start[s + 1] - p, tokens = left >= MANY ? MANY : 1;
            const float *scale = pairs->scale + p, *mine[MANY];
            for (int t = 0; t < tokens; t++) mine[t] = x + (size_t)pairs->token[p + t] * stride;
            float *to = h + (size_t)p * max_rank;
            int r = first;
#define DOTS(R, T) dots(a_RI + (size_t)r * in, mine, scale, gain, to + r, in, max_rank, R, T)
            if (tokens == MANY) {
                for (; r < last; r++) DOTS(1, MANY);
            } else {
                for (; r + MANY <= last; r += MANY) DOTS(MANY, 1);
                for (; r < last; r++) DOTS(1, 1);
            }
#undef DOTS
            p += tokens;
        }
    }
}

/* y[t][o ...] += sum over r of h[t][r] * b[r][o ...], `tokens` x `vectors` constants. */
INLINE void expand_tile(const uint16_t *b_RO, int out, int rank, const float *h, int max_rank,
                        float *const *y, int o, int tokens, int vectors) {
    Floats acc[MANY][WIDE];
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < vectors; v++) acc[t][v] = all(0);
    for (int r = 0; r < rank; r++)
        for (int v = 0; v < vectors; v++) {
            const uint16_t *b = b_RO + (size_t)r * out + o + v * WIDTH;
            /* The tile that comes next, see linear.h. */
            if (v % 2 == 0) _mm_prefetch((const char *)(b + vectors * WIDTH), _MM_HINT_T0);
            Floats weights = load_half(b);
            for (int t = 0; t < tokens; t++)
                acc[t][v] = fused(weights, all(h[(size_t)t * max_rank + r]), acc[t][v]);
        }
    /* Token by token: two pairs of one token may stand side by side. */
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < vectors; v++)
            store(y[t] + o + v * WIDTH, load(y[t] + o + v * WIDTH) + acc[t][v]);
}

/* y [T, stride] += B h for outputs `first` to `last` - 1 (multiples of BLOCK). */
static void expand(const Slots *slots, const Pairs *pairs, const float *h, float *y, int stride,
                   int max_rank, int first, int last) {
    if (!slots->b_SRO) return;
    const int out = slots->out;
    for (int s = 0; s < pairs->num_segments; s++) {
        const int rank = slots->rank_S[pairs->slot[s]];
        if (!rank) continue;
        const uint16_t *b_RO = slots->b_SRO + (size_t)pairs->slot[s] * max_rank * out;
        for (int p = pairs->start[s]; p < pairs->start[s + 1];) {
            const int left = pairs->start[s + 1] - p, tokens = left >= MANY ? MANY : 1;
            const float *mine = h + (size_t)p * max_rank;
            float *rows[MANY];
            for (int t = 0; t < tokens; t++) rows[t] = y + (size_t)pairs->token[p + t] * stride;
            int o = first;
#define EXPAND(T, V) expand_tile(b_RO, out, rank, mine, max_rank, rows, o, T, V)
            if (tokens == MANY) {
                for (; o + 2 * WIDTH <= last; o += 2 * WIDTH) EXPAND(MANY, 2);
                for (; o < last; o += WIDTH) EXPAND(MANY, 1);
            } else {
                for (; o + WIDE * WIDTH <= last; o += WIDE * WIDTH) EXPAND(1, WIDE);
                for (; o < last; o += WIDTH) EXPAND(1, 1);
            }
#undef EXPAND
            p += tokens;
        }
    }
}

#endif
