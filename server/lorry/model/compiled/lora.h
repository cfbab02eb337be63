/* The adapters' deltas: shrink h = A x, expand y += B h, over pairs sorted by slot.
 *
 * Both are 8-bit (`lorry.model.compiled.adapter` packs them) and run on integer dot
 * products. A meets the codes that the base's own linear multiplies anyway; h gets codes
 * of its own, two rows of 7 bits as the activations have. Sums of integers are exact, so
 * the tiles below may take tokens and rows in any number and a delta keeps its bits.
 */
#ifndef LORRY_LORA_H
#define LORRY_LORA_H

#include "linear.h"
#include "step.h"
#include "vectors.h"

#define GROUP 8 /* rows of A that lie together */
#define B_OFFSET 128

/* As many accumulators as there are registers for. */
#if WIDTH == 16
#define MANY 4   /* tokens that share a load */
#define GROUPS 2 /* of A's rows that share a token's codes */
#else
#define MANY 2
#define GROUPS 1
#endif

#define PARTS (GROUP * 8 / (4 * WIDTH)) /* vectors of 8 rows of 8 inputs */

/* Pairs that lie together: an adapter's, or some of them. */
typedef struct {
    const Lora *lora;
    int first, last;
} Segment;

INLINE Segment segment(const Slots *slots, const Pairs *pairs, int s) {
    return (Segment){&slots->of_S[pairs->slot[s]], pairs->start[s], pairs->start[s + 1]};
}

/* The largest rank of a step's adapters: how far apart the rows of their h lie. */
INLINE int rank_of(const Slots *slots, const Pairs *pairs) {
    int most = GROUP;
    for (int s = 0; s < pairs->num_segments; s++)
        if (slots->most_S[pairs->slot[s]] > most) most = slots->most_S[pairs->slot[s]];
    return most;
}

/* In bytes: 16 outputs of B, their codes' scales included. */
INLINE size_t b_block(int rank) { return (size_t)BLOCK * (size_t)rank + BLOCK * sizeof(uint16_t); }

/* h[t][r] = scale[t] * dot(a[r], x[t]) for `groups` x `tokens`, compile-time constants. */
INLINE void shrink_tile(const Lora *lora, int in, int group, const uint8_t *const *codes,
                        const float *scale, float *h, int stride, int groups, int tokens) {
    const size_t group_bytes = (size_t)GROUP * (size_t)in;
    const int8_t *a = lora->a + (size_t)group * group_bytes;
    const int32_t *sums = (const int32_t *)(lora->a + (size_t)lora->rank * (size_t)in);
    Ints acc[MANY][2][GROUPS][PARTS];
    for (int t = 0; t < tokens; t++)
        for (int row = 0; row < 2; row++)
            for (int g = 0; g < groups; g++)
                for (int p = 0; p < PARTS; p++) acc[t][row][g][p] = (Ints){0};
    for (int i = 0; i < in; i += 8)
        for (int t = 0; t < tokens; t++)
            for (int row = 0; row < 2; row++) {
                const Ints eight = all_eights(codes[t] + (size_t)row * (size_t)in + i);
                for (int g = 0; g < groups; g++)
                    for (int p = 0; p < PARTS; p++)
                        acc[t][row][g][p] =
                            dots(acc[t][row][g][p], eight,
                                 bytes(a + g * group_bytes + i * GROUP + p * 4 * WIDTH));
            }
    for (int t = 0; t < tokens; t++)
        for (int g = 0; g < groups; g++) {
            int32_t lanes[2][2 * GROUP];
            memcpy(lanes[0], acc[t][0][g], sizeof lanes[0]);
            memcpy(lanes[1], acc[t][1][g], sizeof lanes[1]);
            for (int r = 0; r < GROUP; r++) {
                const int32_t offset = OFFSET * sums[(group + g) * GROUP + r];
                const float high = (float)(lanes[0][2 * r] + lanes[0][2 * r + 1] - offset);
                const float low = (float)(lanes[1][2 * r] + lanes[1][2 * r + 1] - offset);
                h[(size_t)t * stride + (group + g) * GROUP + r] =
                    (high + low * (1.0f / CODES)) * scale[t];
            }
        }
}

/* What a group of an adapter's rows costs: their memory, as much as some tokens' work. */
#define GROUP_COST(pairs) ((int64_t)(pairs) + 4)

/* Which thread takes which rows: in order, so that each reads on where it stands. */
typedef struct {
    int64_t total, done;
} Shares;

static Shares shares_of(const Slots *slots, int parts, const Pairs *pairs) {
    Shares shares = {1, 0};
    for (int s = 0; s < pairs->num_segments; s++)
        for (int part = 0; part < parts; part++) {
            const Segment mine = segment(slots + part, pairs, s);
            shares.total += mine.lora->rank / GROUP * GROUP_COST(mine.last - mine.first);
        }
    return shares;
}

/* Of `groups` more groups, those of `thread`: *first to *last - 1. */
static void share_of(Shares *shares, int groups, int64_t cost, int thread, int threads, int *first,
                     int *last) {
    *first = 0;
    while (*first < groups && (shares->done + *first * cost) * threads / shares->total < thread)
        ++*first;
    *last = *first;
    while (*last < groups && (shares->done + *last * cost) * threads / shares->total == thread)
        ++*last;
    shares->done += groups * cost;
}

/* Rows `first` to `last` - 1 of h, of some tokens, so many times. A function of its own, for the
 * plain pairs' sake. */
static __attribute__((noinline)) void weigh(const float *inner_R, float *h, int stride, int tokens,
                                            int first, int last) {
    for (int t = 0; t < tokens; t++)
        for (int r = first; r < last; r++) h[(size_t)t * stride + r] *= inner_R[r];
}

/* h [parts, max_pairs, max_rank] for this thread's share of each adapter's rows. `slots`:
 * those of `parts` modules that read the same input, whose codes [T, 2, in] these are. */
static void shrink(const Slots *slots, int parts, const Pairs *pairs, const uint8_t *codes,
                   const float *scale_T, float *h, size_t part_size, int max_rank, int thread,
                   int threads) {
    if (!pairs->num_segments) return;
    Shares shares = shares_of(slots, parts, pairs);
    const int in = slots->in;
    for (int s = 0; s < pairs->num_segments; s++)
        for (int part = 0; part < parts; part++) {
            const Segment mine = segment(slots + part, pairs, s);
            int first, last;
            share_of(&shares, mine.lora->rank / GROUP, GROUP_COST(mine.last - mine.first), thread,
                     threads, &first, &last);
            for (int group = first; group < last;) {
                const int groups = last - group >= GROUPS ? GROUPS : 1;
                for (int p = mine.first; p < mine.last;) {
                    const int tokens = mine.last - p >= MANY ? MANY : 1;
                    const uint8_t *of[MANY];
                    float scale[MANY];
                    for (int t = 0; t < tokens; t++) {
                        of[t] = codes + (size_t)pairs->token[p + t] * 2 * (size_t)in;
                        scale[t] = scale_T[pairs->token[p + t]] * pairs->scale[p + t];
                    }
                    float *to = h + part * part_size + (size_t)p * max_rank;
#define SHRINK(G, T) shrink_tile(mine.lora, in, group, of, scale, to, max_rank, G, T)
                    if (groups == GROUPS && tokens == MANY) SHRINK(GROUPS, MANY);
                    if (groups == GROUPS && tokens == 1) SHRINK(GROUPS, 1);
#if GROUPS > 1
                    if (groups == 1 && tokens == MANY) SHRINK(1, MANY);
                    if (groups == 1 && tokens == 1) SHRINK(1, 1);
#endif
#undef SHRINK
                    if (mine.lora->inner_R)
                        weigh(mine.lora->inner_R, to, max_rank, tokens, group * GROUP,
                              (group + groups) * GROUP);
                    p += tokens;
                }
                group += groups;
            }
        }
}

/* A pair's h as codes. */
typedef struct {
    int32_t sum[2]; /* of the codes, high and low: undoes B's offset */
    float scale;
} Hidden;

/* h [rank] -> codes [2, rank]. */
INLINE Hidden encode_hidden(const float *h, int8_t *codes, int rank) {
    Hidden hidden = {{0, 0}, 0};
    /* GROUP is a vector's width or half of it; integers compare as in `encode`. */
    int32_t most = 0;
    for (int r = 0; r < rank; r++) {
        int32_t bits;
        memcpy(&bits, h + r, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float absmax;
    memcpy(&absmax, &most, sizeof absmax);
    if (absmax < 1e-30f) absmax = 1e-30f;
    const float factor = CODES / absmax, magic = 12582912.0f;
    for (int r = 0; r < rank; r++) {
        const float code = h[r] * factor, rounded = (code + magic) - magic;
        const float rest = ((code - rounded) * CODES + magic) - magic;
        codes[r] = (int8_t)(int32_t)rounded;
        codes[rank + r] = (int8_t)(int32_t)rest;
        hidden.sum[0] += codes[r];
        hidden.sum[1] += codes[rank + r];
    }
    hidden.scale = absmax / CODES;
    return hidden;
}

/* How often an output of B h counts: once, 1 + factor times or factor times. */
enum { ONCE, ONE_AND_FACTOR, FACTOR };

/* y[t][o ...] += B h[t] for one block of outputs; `tokens` and `times` compile-time constants. */
INLINE void expand_tile(const uint8_t *b, int rank, const int8_t *codes, const Hidden *hidden,
                        float *const *y, const float *const *factor, int o, int tokens, int times) {
    Ints acc[MANY][2][VECTORS];
    for (int t = 0; t < tokens; t++)
        for (int row = 0; row < 2; row++)
            for (int v = 0; v < VECTORS; v++) acc[t][row][v] = (Ints){0} - hidden[t].sum[row] * B_OFFSET;
    for (int r = 0; r < rank; r += 4)
        for (int t = 0; t < tokens; t++)
            for (int row = 0; row < 2; row++) {
                const Ints four = all_fours(codes + (2 * t + row) * (size_t)rank + r);
                for (int v = 0; v < VECTORS; v++)
                    acc[t][row][v] = dots(acc[t][row][v], bytes(b + r * BLOCK + v * 4 * WIDTH), four);
            }
    const uint16_t *scale_O = (const uint16_t *)(b + (size_t)rank * BLOCK);
    /* Token by token: two pairs of one token may stand side by side. */
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < VECTORS; v++) {
            float *to = y[t] + o + v * WIDTH;
            const Floats high = to_floats(acc[t][0][v]), low = to_floats(acc[t][1][v]);
            Floats scale = load_bfloat(scale_O + v * WIDTH) * splat(hidden[t].scale);
            if (times == ONE_AND_FACTOR) scale *= splat(1.0f) + load(factor[t] + o + v * WIDTH);
            if (times == FACTOR) scale *= load(factor[t] + o + v * WIDTH);
            store(to, load(to) + fused(low, splat(1.0f / CODES), high) * scale);
        }
}

/* `expand` for the pairs of one slot. */
INLINE void expand_segment(const Slots *slots, const Pairs *pairs, Segment mine, const float *h,
                           float *y, int stride, int max_rank, int8_t *codes, int first, int last,
                           int times) {
    const int rank = mine.lora->rank;
    for (int p = mine.first; p < mine.last;) {
        const int tokens = mine.last - p >= MANY ? MANY : 1;
        Hidden hidden[MANY];
        float *rows[MANY];
        const float *factor[MANY];
        for (int t = 0; t < tokens; t++) {
            rows[t] = y + (size_t)pairs->token[p + t] * stride;
            hidden[t] = encode_hidden(h + (size_t)(p + t) * max_rank, codes + 2 * t * (size_t)rank,
                                      rank);
            if (times == ONE_AND_FACTOR) factor[t] = pairs->vectors[p + t][slots->module].more_O;
            if (times == FACTOR) factor[t] = mine.lora->outer_O;
        }
        const uint8_t *b = mine.lora->b + first / BLOCK * b_block(rank);
        for (int o = first; o < last; o += BLOCK, b += b_block(rank)) {
            if (tokens == MANY) expand_tile(b, rank, codes, hidden, rows, factor, o, MANY, times);
            else expand_tile(b, rank, codes, hidden, rows, factor, o, 1, times);
        }
        p += tokens;
    }
}

/* Functions of their own: the plain one is not to be compiled beside them. */
static __attribute__((noinline)) void expand_dora(const Slots *slots, const Pairs *pairs,
                                                  Segment mine, const float *h, float *y,
                                                  int stride, int max_rank, int8_t *codes,
                                                  int first, int last) {
    expand_segment(slots, pairs, mine, h, y, stride, max_rank, codes, first, last, ONE_AND_FACTOR);
}

static __attribute__((noinline)) void expand_shared(const Slots *slots, const Pairs *pairs,
                                                    Segment mine, const float *h, float *y,
                                                    int stride, int max_rank, int8_t *codes,
                                                    int first, int last) {
    expand_segment(slots, pairs, mine, h, y, stride, max_rank, codes, first, last, FACTOR);
}

/* y [T, stride] += B h for outputs `first` to `last` - 1 (multiples of BLOCK).
 * codes: room for [MANY, 2, max_rank]. */
static void expand(const Slots *slots, const Pairs *pairs, const float *h, float *y, int stride,
                   int max_rank, int8_t *codes, int first, int last) {
    for (int s = 0; s < pairs->num_segments; s++) {
        const Segment mine = segment(slots, pairs, s);
        if (!mine.lora->rank) continue;
        /* A slot's pairs may differ in scale, not in kind. */
        const VectorDelta *vectors = pairs->num_vectored ? pairs->vectors[mine.first] : NULL;
        if (vectors && vectors[slots->module].dora)
            expand_dora(slots, pairs, mine, h, y, stride, max_rank, codes, first, last);
        else if (mine.lora->outer_O)
            expand_shared(slots, pairs, mine, h, y, stride, max_rank, codes, first, last);
        else
            expand_segment(slots, pairs, mine, h, y, stride, max_rank, codes, first, last, ONCE);
    }
}

/* What this thread's shares of the adapters will read, fetched while something is computed. */
static void fetch_a(Ahead *ahead, const Slots *slots, int parts, const Pairs *pairs, int thread,
                    int threads) {
    if (!pairs->num_segments) return;
    Shares shares = shares_of(slots, parts, pairs);
    const size_t group_bytes = (size_t)GROUP * (size_t)slots->in;
    for (int s = 0; s < pairs->num_segments; s++)
        for (int part = 0; part < parts; part++) {
            const Segment mine = segment(slots + part, pairs, s);
            int first, last;
            share_of(&shares, mine.lora->rank / GROUP, GROUP_COST(mine.last - mine.first), thread,
                     threads, &first, &last);
            fetch(ahead, mine.lora->a + first * group_bytes, (size_t)(last - first) * group_bytes);
        }
}

static void fetch_b(Ahead *ahead, const Slots *slots, const Pairs *pairs, int first, int last) {
    for (int s = 0; s < pairs->num_segments; s++) {
        const Segment mine = segment(slots, pairs, s);
        if (!mine.lora->rank) continue;
        const size_t block = b_block(mine.lora->rank);
        fetch(ahead, mine.lora->b + first / BLOCK * block, (size_t)(last - first) / BLOCK * block);
    }
}

#endif
