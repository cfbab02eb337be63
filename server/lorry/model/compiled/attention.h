/* Attention over the cache: softmax(scale * q . k) v, with an online softmax over tiles of keys.
 *
 * Tiles begin at fixed positions, and every sum of a token has one order: a score's over the
 * numbers of a head, a tile's over its keys, a part's over its tiles, the whole over its parts.
 * So a token's bits depend on what it sees alone, not on the tokens computed beside it, not on
 * where a prompt was cut, and not on which thread took which part. A key that a token does not
 * see adds nothing to its sums, and its value is not read.
 *
 * Two functions make the same bits: `attend_block` for tokens of a prompt, with queries in a
 * vector's lanes, and `attend_single` for one token, with keys in them.
 */
#ifndef LORRY_ATTENTION_H
#define LORRY_ATTENTION_H

#include "step.h"
#include "vectors.h"
#include <float.h>
#include <math.h>

#define KEYS 64  /* of a tile */
#define AHEAD_KEYS 48
#define PART 512 /* keys whose sums are folded into the whole's at once: several tiles */

#define MIX_ROWS 6                   /* queries that share a load of values */
#define SPAN (WIDTH == 16 ? 4 : 2)   /* vectors of a head that are added up at once */

#define LANED(rows) (((rows) + WIDTH - 1) / WIDTH * WIDTH)
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* What the queries of one key head see. */
typedef struct {
    const Attention *how;
    const uint16_t *k_NHD, *v_NHD; /* in half precision, at this key head already */
    const int8_t *k_codes, *v_codes; /* or bytes, with */
    const uint16_t *k_scale, *v_scale; /* a scale for each; NULL: there are no bytes */
    size_t scale_stride;
    const int32_t *cells;          /* of the row, by position */
    size_t cell_stride;
    int head, group, size; /* the first query head, how many share the key head, their numbers */
} Past;

/* The softmax so far of some queries, which are rows here: the largest score, the sum of
 * e^(score - largest), and the sum of the values, weighed so. */
typedef struct {
    float *most, *sum; /* [LANED(rows)] */
    float *mixed;      /* [rows, size] */
} Partial;

/* A thread's memory. */
typedef struct {
    float *queries; /* [rows, size], in the order of whoever uses it */
    float *keys, *values;
    float *scores;
    float *factor;        /* [LANED(rows)] */
    int32_t *first, *last; /* [LANED(rows)]: the positions that a row sees */
    /* Of bytes: */
    float *key_scale, *value_scale, *shares; /* [KEYS] */
    float *query_scale, *part_scale;         /* [LANED(rows)] */
    int32_t *key_sum, *query_sum;            /* [KEYS], [LANED(rows)] */
    uint8_t *parts;                          /* [KEYS, LANED(rows)], in the order of whoever uses it */
    Partial now, whole;
} Room;

static size_t partial_floats(int rows, int size) {
    return 2 * (size_t)LANED(rows) + (size_t)rows * size;
}

static Partial partial_at(float *memory, int rows) {
    return (Partial){memory, memory + LANED(rows), memory + 2 * LANED(rows)};
}

static size_t room_floats(int rows, int size) {
    const size_t laned = LANED(rows);
    return laned * size + 2 * KEYS * (size_t)size + KEYS * laned + 6 * laned + 4 * KEYS +
           KEYS * laned / 4 + 2 * partial_floats(laned, size);
}

static Room room_at(float *memory, int rows, int size) {
    const size_t laned = LANED(rows);
    Room room;
    room.queries = memory, memory += laned * size;
    room.keys = memory, memory += KEYS * size;
    room.values = memory, memory += KEYS * size;
    room.scores = memory, memory += KEYS * laned;
    room.factor = memory, memory += laned;
    room.first = (int32_t *)memory, memory += laned;
    room.last = (int32_t *)memory, memory += laned;
    room.query_scale = memory, memory += laned;
    room.part_scale = memory, memory += laned;
    room.query_sum = (int32_t *)memory, memory += laned;
    room.key_scale = memory, memory += KEYS;
    room.value_scale = memory, memory += KEYS;
    room.shares = memory, memory += KEYS;
    room.key_sum = (int32_t *)memory, memory += KEYS;
    room.parts = (uint8_t *)memory, memory += KEYS * laned / 4;
    room.now = partial_at(memory, laned), memory += partial_floats(laned, size);
    room.whole = partial_at(memory, laned);
    return room;
}

/* The first position that a token at `position` sees. */
static int first_seen(const Attention *how, int position) {
    return how->window && position + 1 > how->window ? position + 1 - how->window : 0;
}

static void clear(Partial *p, int rows, int size) {
    for (int r = 0; r < rows; r += WIDTH) {
        store(p->most + r, splat(-FLT_MAX));
        store(p->sum + r, splat(0));
    }
    for (int i = 0; i < rows * size; i += WIDTH) store(p->mixed + i, splat(0));
}

/* into += from. Adds zeros to what was empty, and multiplies what stays by 1. */
static void fold(Partial *into, const Partial *from, int rows, int size) {
    for (int first = 0; first < rows; first += WIDTH) {
        const Floats a = load(into->most + first), b = load(from->most + first);
        const Floats most = greater(a, b);
        const Floats old = exponential(a - most), new = exponential(b - most);
        store(into->most + first, most);
        store(into->sum + first,
              fused(load(from->sum + first), new, load(into->sum + first) * old));
        for (int r = first; r < rows && r < first + WIDTH; r++)
            for (int d = 0; d < size; d += WIDTH) {
                float *at = into->mixed + (size_t)r * size + d;
                store(at, fused(load(from->mixed + (size_t)r * size + d), splat(new[r - first]),
                                load(at) * splat(old[r - first])));
            }
    }
}

/* to = H x, where H is the orthonormal Hadamard matrix of the largest power of two that divides `size`,
 * along the diagonal. Each number becomes a part of all of them, and what sticks out is shared. H H = 1.
 * `to` may be x. */
static void spread(const float *x, float *to, int size) {
    const int block = size & -size;
    const Floats factor = splat(1 / sqrtf((float)block));
    Ints lane;
    for (int i = 0; i < WIDTH; i++) lane[i] = i;
    for (int d = 0; d < size; d += WIDTH) {
        Floats v = load(x + d);
#define STAGE(STEP, SHUFFLED) \
    v = fused(v, chosen((lane & STEP) == 0, splat(1), splat(-1)), (Floats)(SHUFFLED));
#if WIDTH == 16
        STAGE(1, _mm512_permute_ps((__m512)v, 0xb1))
        STAGE(2, _mm512_permute_ps((__m512)v, 0x4e))
        STAGE(4, _mm512_shuffle_f32x4((__m512)v, (__m512)v, 0xb1))
        STAGE(8, _mm512_shuffle_f32x4((__m512)v, (__m512)v, 0x4e))
#else
        STAGE(1, _mm256_permute_ps((__m256)v, 0xb1))
        STAGE(2, _mm256_permute_ps((__m256)v, 0x4e))
        STAGE(4, _mm256_permute2f128_ps((__m256)v, (__m256)v, 1))
#endif
#undef STAGE
        store(to + d, v);
    }
    for (int step = WIDTH; step < block; step *= 2)
        for (int d = 0; d < size; d += WIDTH) {
            if (d & step) continue;
            const Floats a = load(to + d), b = load(to + d + step);
            store(to + d, a + b);
            store(to + d + step, a - b);
        }
    for (int d = 0; d < size; d += WIDTH) store(to + d, load(to + d) * factor);
}

/* out of the rows `first` to `last` - 1, which are the queries of one token. */
static void finish(const Past *past, const Partial *whole, int first, int last, float *out) {
    for (int r = first; r < last; r++) {
        float factor = 1, sum = whole->sum[r];
        if (past->how->sink_Q) {
            const float sink = past->how->sink_Q[past->head + r - first];
            const Floats most = splat(MAX(whole->most[r], sink));
            factor = exponential(splat(whole->most[r]) - most)[0];
            sum = sum * factor + exponential(splat(sink) - most)[0];
        }
        factor /= sum;
        for (int d = 0; d < past->size; d += WIDTH)
            store(out + (size_t)(r - first) * past->size + d,
                  load(whole->mixed + (size_t)r * past->size + d) * splat(factor));
        float *mine = out + (size_t)(r - first) * past->size;
        if (past->k_scale) spread(mine, mine, past->size);
    }
}

INLINE Floats capped(float cap, Floats score) {
    const Floats more = exponential(score * splat(2 / cap)) + splat(1);
    return splat(cap) * (splat(1) - splat(2) / more); /* tanh(x) = 1 - 2 / (e^2x + 1) */
}

/* Ask for what a cell holds of a head, for the second cache: asked for into the first one, memory
 * answers at a third of the rate. */
INLINE void fetch_cell(const uint16_t *at, int size) {
    for (int d = 0; d < size; d += 32) _mm_prefetch((const char *)(at + d), _MM_HINT_T1);
}

/* Where values are: in the cache, by cell, or turned to single precision, row by row. */
typedef struct {
    const uint16_t *halves;
    const int32_t *cells;
    size_t cell_stride;
    const float *singles;
    int known; /* cells, from the tile's first */
} Values;

/* mixed[r] = factor[r] * mixed[r] + sum over l of weights[r, l] * values[l], for keys `first` to
 * `last` - 1 of a tile. `rows`, `vectors` and `in_cache`: constants where it is called. */
INLINE void mix_rows(const Values *values, const float *weights, size_t row_step, size_t key_step,
                     int first, int last, const float *factor, float *mixed, int size, int d,
                     int rows, int vectors, int in_cache, int fetching) {
    Floats acc[MIX_ROWS][SPAN];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++)
            acc[r][i] = load(mixed + r * size + d + i * WIDTH) * splat(factor[r]);
    for (int l = first; l < last; l++) {
        Floats value[SPAN];
        const uint16_t *half = in_cache ? values->halves + values->cells[l] * values->cell_stride + d
                                        : NULL;
        if (in_cache && fetching && l + AHEAD_KEYS < values->known)
            fetch_cell(values->halves + values->cells[l + AHEAD_KEYS] * values->cell_stride, size);
        for (int i = 0; i < vectors; i++)
            value[i] = in_cache ? load_half(half + i * WIDTH)
                                : load(values->singles + (size_t)l * size + d + i * WIDTH);
        for (int r = 0; r < rows; r++) {
            const Floats weight = splat(weights[r * row_step + l * key_step]);
            for (int i = 0; i < vectors; i++) acc[r][i] = fused(weight, value[i], acc[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) store(mixed + r * size + d + i * WIDTH, acc[r][i]);
}

/* The same, for 1 to MIX_ROWS rows and a whole head. */
INLINE void mix(const Values *values, const float *weights, size_t row_step, size_t key_step,
                int first, int last, const float *factor, float *mixed, int size, int rows,
                int in_cache, int fetching) {
    for (int d = 0; d < size;) {
        const int vectors = size - d >= SPAN * WIDTH ? SPAN : 1;
#define MIX(R)                                                                                   \
    case R:                                                                                      \
        if (vectors == 1)                                                                        \
            mix_rows(values, weights, row_step, key_step, first, last, factor, mixed, size, d, R, \
                     1, in_cache, fetching && !d);                                                               \
        else                                                                                     \
            mix_rows(values, weights, row_step, key_step, first, last, factor, mixed, size, d, R, \
                     SPAN, in_cache, fetching && !d);                                                            \
        break;
        switch (rows) {
            MIX(1)
            MIX(2)
            MIX(3)
            MIX(4)
            MIX(5)
            MIX(6)
        }
#undef MIX
        d += vectors * WIDTH;
    }
}

#endif
