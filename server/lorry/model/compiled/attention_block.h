/* Attention of neighbouring tokens of one row: queries lie in the lanes of a vector.
 *
 * Keys and values are turned to single precision once for all of them.
 */
#ifndef LORRY_ATTENTION_BLOCK_H
#define LORRY_ATTENTION_BLOCK_H

#include "attention.h"

#define BLOCK_ROWS 96                    /* queries of a block; a group may have more */
#define QUERY_VECTORS 3                  /* that share a load of keys */
#define SCORE_KEYS (WIDTH == 16 ? 8 : 4) /* that share a load of queries */

/* queries: for each QUERY_VECTORS vectors of rows, [size, rows of these], scaled; zeros where a
 * vector has more lanes than there are rows. */
static void turn_queries(const Past *past, const float *q, size_t q_stride, int rows, Room *room) {
    const int size = past->size, laned = LANED(rows);
    for (int first = 0; first < laned; first += QUERY_VECTORS * WIDTH) {
        const int wide = MIN(QUERY_VECTORS * WIDTH, laned - first);
        float *to = room->queries + (size_t)first * size;
        for (int r = 0; r < wide; r++) {
            const int row = first + r;
            const float *from = q + row / past->group * q_stride + row % past->group * size;
            for (int d = 0; d < size; d++)
                to[d * wide + r] = row < rows ? from[d] * past->how->scale : 0;
        }
    }
}

/* Keys or values `first` to `last` - 1 of a tile, in single precision. */
static void turn_halves(const uint16_t *halves, const int32_t *cells, size_t cell_stride,
                        int first, int last, int size, float *to_LD) {
    for (int l = first; l < last; l++) {
        const uint16_t *from = halves + cells[l] * cell_stride;
        for (int d = 0; d < size; d += WIDTH)
            store(to_LD + (size_t)l * size + d, load_half(from + d));
    }
}

/* scores[l][r] = k[l] . q[r] for SCORE_KEYS keys and `vectors` vectors of rows, constant. */
INLINE void score_keys(const float *queries, const float *keys_LD, int size, float *scores,
                       int laned, int vectors) {
    Floats acc[SCORE_KEYS][QUERY_VECTORS];
    for (int l = 0; l < SCORE_KEYS; l++)
        for (int i = 0; i < vectors; i++) acc[l][i] = splat(0);
    for (int d = 0; d < size; d++) {
        Floats query[QUERY_VECTORS];
        for (int i = 0; i < vectors; i++) query[i] = load(queries + (d * vectors + i) * WIDTH);
#pragma GCC unroll 8
        for (int l = 0; l < SCORE_KEYS; l++) {
            const Floats key = splat(keys_LD[l * size + d]);
            for (int i = 0; i < vectors; i++) acc[l][i] = fused(query[i], key, acc[l][i]);
        }
    }
    for (int l = 0; l < SCORE_KEYS; l++)
        for (int i = 0; i < vectors; i++) store(scores + l * laned + i * WIDTH, acc[l][i]);
}

static void score_tile(const Room *room, int first, int last, int size, int laned) {
    for (int r = 0; r < laned; r += QUERY_VECTORS * WIDTH) {
        const int vectors = MIN(QUERY_VECTORS, (laned - r) / WIDTH);
        const float *queries = room->queries + (size_t)r * size;
        for (int l = first / SCORE_KEYS * SCORE_KEYS; l < last; l += SCORE_KEYS) {
            const float *keys = room->keys + (size_t)l * size;
            float *scores = room->scores + (size_t)l * laned + r;
            if (vectors == 1) score_keys(queries, keys, size, scores, laned, 1);
            if (vectors == 2) score_keys(queries, keys, size, scores, laned, 2);
            if (vectors == 3) score_keys(queries, keys, size, scores, laned, 3);
        }
    }
}

/* The cap and the slopes, for the tile at position `tile`. */
static void adjust_tile(const Past *past, const Room *room, int tile, int laned) {
    const Attention *how = past->how;
    for (int r = 0; r < laned; r += WIDTH) {
        Floats slope = splat(0);
        for (int i = 0; how->slope_Q && i < WIDTH; i++)
            slope[i] = how->slope_Q[past->head + (r + i) % past->group];
        const Ints position = *(const Ints *)(room->last + r);
        for (int l = 0; l < KEYS; l++) {
            float *at = room->scores + (size_t)l * laned + r;
            Floats score = load(at);
            if (how->cap) score = capped(how->cap, score);
            if (how->slope_Q) score = fused(-slope, to_floats(position - tile - l), score);
            store(at, score);
        }
    }
}

/* Scores to weights, in place, of the first `keys` keys, for a vector of rows. `whole`, constant:
 * each row sees all of them. */
INLINE void weigh_rows(const Room *room, int tile, int r, int laned, int keys, int whole) {
    float *scores = room->scores + r;
    const Ints first = *(const Ints *)(room->first + r) - tile;
    const Ints last = *(const Ints *)(room->last + r) - tile;
    Floats most = splat(-INFINITY);
    for (int l = 0; l < keys; l++) {
        Floats score = load(scores + l * laned);
        if (!whole) score = chosen((first <= l) & (last >= l), score, splat(-INFINITY));
        most = greater(score, most);
    }
    const Floats before = load(room->now.most + r);
    most = greater(most, before);
    Floats totals[WIDTH];
    for (int lane = 0; lane < WIDTH; lane++) {
        totals[lane] = splat(0);
#pragma GCC unroll 8
        for (int l = lane; l < keys; l += WIDTH) {
            Floats e = exponential(load(scores + l * laned) - most);
            if (!whole) e = chosen((first <= l) & (last >= l), e, splat(0));
            store(scores + l * laned, e);
            totals[lane] += e;
        }
    }
    /* In the order of `sum`, which adds up lanes of keys. */
    for (int half = WIDTH / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) totals[lane] += totals[lane + half];
    const Floats factor = exponential(before - most);
    store(room->factor + r, factor);
    store(room->now.most + r, most);
    store(room->now.sum + r, load(room->now.sum + r) * factor + totals[0]);
}

static void mix_tile(const Past *past, Room *room, int tile, int rows, int whole) {
    static const float ones[MIX_ROWS] = {1, 1, 1, 1, 1, 1};
    const int size = past->size, laned = LANED(rows);
    const Values values = {NULL, NULL, 0, room->values, 0};
    for (int r = 0; r < rows; r += MIX_ROWS) {
        const int count = MIN(MIX_ROWS, rows - r);
        const float *factor = room->factor + r;
        float *mixed = room->now.mixed + (size_t)r * size;
        if (whole) {
            mix(&values, room->scores + r, 1, laned, 0, KEYS, factor, mixed, size, count, 0, 0);
            continue;
        }
        /* What all of them see, and before and after it what only some do. A row's window may
         * begin behind the tile. */
        const int first = MIN(KEYS, MAX(0, room->first[r + count - 1] - tile));
        const int last = MAX(first, MIN(KEYS, room->last[r] - tile + 1));
        for (int i = 0; i < count; i++)
            mix(&values, room->scores + r + i, 1, laned, MAX(0, room->first[r + i] - tile),
                MIN(first, room->last[r + i] - tile + 1), factor + i, mixed + i * size, size, 1,
                0, 0);
        mix(&values, room->scores + r, 1, laned, first, last, ones, mixed, size, count, 0, 0);
        for (int i = 0; i < count; i++)
            mix(&values, room->scores + r + i, 1, laned,
                MAX(last, room->first[r + i] - tile),
                MIN(KEYS, room->last[r + i] - tile + 1), ones, mixed + i * size, size, 1, 0, 0);
    }
}

/* room->first, room->last: what the queries of tokens from `position` on see. */
static void see_rows(const Attention *how, int position, int rows, int group, Room *room) {
    for (int r = 0; r < LANED(rows); r++) {
        room->last[r] = position + MIN(r, rows - 1) / group;
        room->first[r] = first_seen(how, room->last[r]);
    }
}

/* q, out: of the first of `tokens` tokens, the query heads that share the key head; the next
 * token's are a stride further. `position`: the first one's. */
static void attend_block(const Past *past, const float *q, size_t q_stride, int tokens,
                         int position, float *out, size_t out_stride, Room *room) {
    const Attention *how = past->how;
    const int size = past->size, group = past->group, rows = tokens * group, laned = LANED(rows);
    const int begin = first_seen(how, position), end = position + tokens;
    turn_queries(past, q, q_stride, rows, room);
    see_rows(how, position, rows, group, room);
    clear(&room->now, laned, size);
    clear(&room->whole, laned, size);
    for (int tile = begin / KEYS * KEYS; tile < end; tile += KEYS) {
        const int first = MAX(tile, begin) - tile, last = MIN(tile + KEYS, end) - tile;
        const int whole = room->first[rows - 1] <= tile && position >= tile + KEYS - 1;
        const int32_t *cells = past->cells + tile;
        turn_halves(past->k_NHD, cells, past->cell_stride, first, last, size, room->keys);
        turn_halves(past->v_NHD, cells, past->cell_stride, first, last, size, room->values);
        score_tile(room, first, last, size, laned);
        if (how->cap || how->slope_Q) adjust_tile(past, room, tile, laned);
        for (int r = 0; r < laned; r += WIDTH) {
            if (whole)
                weigh_rows(room, tile, r, laned, KEYS, 1);
            else
                weigh_rows(room, tile, r, laned, last, 0);
        }
        mix_tile(past, room, tile, rows, whole);
        if ((tile + KEYS) % PART == 0 || tile + KEYS >= end) {
            fold(&room->whole, &room->now, laned, size);
            clear(&room->now, laned, size);
        }
    }
    for (int t = 0; t < tokens; t++)
        finish(past, &room->whole, t * group, (t + 1) * group, out + t * out_stride);
}

#endif
