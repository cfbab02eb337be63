/* Attention over bytes, of neighbouring tokens of one row: queries lie in the lanes of a vector.
 */
#ifndef LORRY_ATTENTION8_BLOCK_H
#define LORRY_ATTENTION8_BLOCK_H

#include "attention8.h"
#include "attention_block.h"

/* room->queries: for each QUERY_VECTORS vectors of rows, [size / FOUR, rows of these, FOUR];
 * room->query_scale. Zeros where a vector has more lanes than there are rows. */
static void encode_rows(const Past *past, const float *q, size_t q_stride, int rows, Room *room) {
    const int size = past->size, laned = LANED(rows);
    int8_t *codes = (int8_t *)room->scores;
    for (int first = 0; first < laned; first += QUERY_VECTORS * WIDTH) {
        const int wide = MIN(QUERY_VECTORS * WIDTH, laned - first);
        int32_t *to = (int32_t *)room->queries + (size_t)first * (size / FOUR);
        for (int r = 0; r < wide; r++) {
            const int row = first + r;
            room->query_scale[row] = 0;
            memset(codes, 0, (size_t)size);
            if (row < rows)
                room->query_scale[row] =
                    encode_query(q + row / past->group * q_stride + row % past->group * size, codes,
                                 size) * past->how->scale;
            for (int d = 0; d < size / FOUR; d++) {
                int32_t four;
                memcpy(&four, codes + FOUR * d, sizeof four);
                to[d * wide + r] = four ^ SIGN_BITS;
            }
        }
    }
}

/* to = from, or zeros where that is NULL; the sum of its bytes. */
INLINE int32_t copy_bytes(const int8_t *from, int8_t *to, int size) {
    const Ints ones = (Ints){0} + 0x01010101;
    Ints totals = {0};
    int d = 0;
    for (; d + FOUR * WIDTH <= size; d += FOUR * WIDTH) {
        const Ints some = from ? bytes(from + d) : (Ints){0};
        *(Ints *)(to + d) = some;
        totals = dots(totals, ones, some);
    }
    int32_t total = sum_of_ints(totals);
    for (; d < size; d++) {
        to[d] = from ? from[d] : 0;
        total += to[d];
    }
    return total;
}

/* room->key_scale, and room->keys [KEYS, size] with the sum of each key's bytes. Zeros beside the
 * keys `first` to `last` - 1. */
static void copy_keys(const Past *past, const int32_t *cells, int first, int last, int known,
                      Room *room) {
    const int size = past->size;
    read_scales(past->k_scale, cells, past->scale_stride, first, last, room->key_scale);
    for (int l = first / SCORE_KEYS * SCORE_KEYS; l < (last + SCORE_KEYS - 1) / SCORE_KEYS * SCORE_KEYS; l++) {
        const int8_t *from = l >= first && l < last ? past->k_codes + cells[l] * past->cell_stride : NULL;
        int8_t *to = (int8_t *)room->keys + (size_t)l * size;
        if (l + AHEAD_KEYS < known)
            fetch_bytes(past->k_codes + cells[l + AHEAD_KEYS] * past->cell_stride, size);
        room->key_sum[l] = copy_bytes(from, to, size);
    }
}

/* scores[l][r] = k[l] . q[r] for the SCORE_KEYS keys from `l` on and `vectors` vectors of rows from
 * `r` on; constant. */
INLINE void score_keys8(const Room *room, int l, int r, int size, int laned, int vectors) {
    const uint8_t *queries = (const uint8_t *)room->queries + (size_t)r * size;
    const int8_t *keys_LD = (const int8_t *)room->keys + (size_t)l * size;
    const float *query_scale = room->query_scale + r, *key_scale = room->key_scale + l;
    const int32_t *key_sum = room->key_sum + l;
    float *scores = room->scores + (size_t)l * laned + r;
    Ints acc[SCORE_KEYS][QUERY_VECTORS];
    for (int k = 0; k < SCORE_KEYS; k++)
        for (int i = 0; i < vectors; i++) acc[k][i] = (Ints){0} + start_of(key_sum[k]);
    for (int d = 0; d < size; d += FOUR) {
        Ints query[QUERY_VECTORS];
        for (int i = 0; i < vectors; i++)
            query[i] = bytes(queries + (d * vectors + i * FOUR) * WIDTH);
#pragma GCC unroll 8
        for (int k = 0; k < SCORE_KEYS; k++) {
            const Ints key = all_fours(keys_LD + k * size + d);
            for (int i = 0; i < vectors; i++) acc[k][i] = signed_dots(acc[k][i], query[i], key);
        }
    }
    for (int k = 0; k < SCORE_KEYS; k++)
        for (int i = 0; i < vectors; i++)
            store(scores + (size_t)k * laned + i * WIDTH,
                  to_floats(acc[k][i]) * load(query_scale + i * WIDTH) * splat(key_scale[k]));
}

static void score_tile8(const Room *room, int first, int last, int size, int laned) {
    for (int r = 0; r < laned; r += QUERY_VECTORS * WIDTH) {
        const int vectors = MIN(QUERY_VECTORS, (laned - r) / WIDTH);
        for (int l = first / SCORE_KEYS * SCORE_KEYS; l < last; l += SCORE_KEYS) {
            if (vectors == 1) score_keys8(room, l, r, size, laned, 1);
            if (vectors == 2) score_keys8(room, l, r, size, laned, 2);
            if (vectors == 3) score_keys8(room, l, r, size, laned, 3);
        }
    }
}

/* What a vector of rows sees of a tile: the first `keys`, up to a multiple of BLOCK. `whole`,
 * constant: each row sees all of them. room->shares [KEYS]: where all are seen, of each value's scale,
 * in BYTES of the largest. */
INLINE void weigh_rows8(const Room *room, int tile, int r, int laned, int keys, float largest_scale,
                        int whole) {
    const float *scores = room->scores + r, *shares = room->shares;
    const float *value_scale = room->value_scale;
    uint8_t *parts = room->parts + FOUR * r;
    const Ints first = *(const Ints *)(room->first + r) - tile;
    const Ints last = *(const Ints *)(room->last + r) - tile;
    Floats most = splat(-FLT_MAX), scale = splat(largest_scale);
    Ints scale_bits = {0};
    for (int l = 0; l < keys; l++) {
        Floats score = load(scores + l * laned);
        if (!whole) {
            const Ints seen = (first <= l) & (last >= l);
            score = chosen(seen, score, splat(-INFINITY));
            scale_bits = greater_int(scale_bits, (Ints)splat(value_scale[l]) & seen);
        }
        most = greater(score, most);
    }
    if (!whole) scale = (Floats)scale_bits;
    const Floats share = splat(BYTES) / scale;
    Floats totals[BLOCK];
    for (int lane = 0; lane < BLOCK; lane++) totals[lane] = splat(0);
#pragma GCC unroll 4
    for (int lane = 0; lane < BLOCK; lane += FOUR)
        for (int l = lane; l < keys; l += BLOCK) {
            Ints packed = {0};
#pragma GCC unroll 4
            for (int i = 0; i < FOUR; i++) {
                Floats e = exponential_below(load(scores + (l + i) * laned) - most);
                Floats part;
                if (whole)
                    part = fused(e, splat(shares[l + i]), splat(MAGIC));
                else {
                    const Ints seen = (first <= l + i) & (last >= l + i);
                    e = chosen(seen, e, splat(0));
                    part = fused(e, splat(value_scale[l + i]) * share, splat(MAGIC));
                    part = chosen(seen, part, splat(MAGIC));
                }
                totals[lane + i] += e;
                packed += ((Ints)part - MAGIC_BITS) << (8 * i);
            }
            *(Ints *)(parts + (size_t)l * laned) = packed;
        }
    for (int half = BLOCK / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) totals[lane] += totals[lane + half];
    const Floats before = load(room->now.most + r), now = greater(most, before);
    const Floats factor = exponential_below(before - now), mine = exponential_below(most - now);
    store(room->factor + r, factor);
    store(room->part_scale + r, mine * (scale * splat(1.0f / BYTES)));
    store(room->now.most + r, now);
    store(room->now.sum + r, fused(totals[0], mine, load(room->now.sum + r) * factor));
}

/* What `attend_block` does. */
static void attend_block8(const Past *past, const float *q, size_t q_stride, int tokens,
                          int position, float *out, size_t out_stride, Room *room) {
    const Attention *how = past->how;
    const int size = past->size, group = past->group, rows = tokens * group, laned = LANED(rows);
    const int begin = first_seen(how, position), end = position + tokens;
    encode_rows(past, q, q_stride, rows, room);
    see_rows(how, position, rows, group, room);
    clear(&room->now, laned, size);
    clear(&room->whole, laned, size);
    for (int tile = begin / KEYS * KEYS; tile < end; tile += KEYS) {
        const int first = MAX(tile, begin) - tile, last = MIN(tile + KEYS, end) - tile;
        const int whole = room->first[rows - 1] <= tile && position >= tile + KEYS - 1;
        const int32_t *cells = past->cells + tile;
        copy_keys(past, cells, first, last, end - tile, room);
        interleave_values(past, cells, first, last, end - tile, room);
        score_tile8(room, first, last, size, laned);
        if (how->cap || how->slope_Q) adjust_tile(past, room, tile, laned);
        const float scale = whole ? share_scales(room) : 0;
        const int keys = (last + BLOCK - 1) / BLOCK * BLOCK;
        for (int r = 0; r < laned; r += WIDTH) {
            if (whole)
                weigh_rows8(room, tile, r, laned, KEYS, scale, 1);
            else
                weigh_rows8(room, tile, r, laned, keys, 0, 0);
        }
        for (int r = 0; r < rows; r += MIX_ROWS)
            mix8((const uint8_t *)room->values, room->parts + FOUR * r, FOUR, FOUR * laned,
                 first / FOUR, (last + FOUR - 1) / FOUR, room->factor + r, room->part_scale + r,
                 room->now.mixed + (size_t)r * size, size, MIN(MIX_ROWS, rows - r));
        if ((tile + KEYS) % PART == 0 || tile + KEYS >= end) {
            fold(&room->whole, &room->now, laned, size);
            clear(&room->now, laned, size);
        }
    }
    for (int t = 0; t < tokens; t++)
        finish(past, &room->whole, t * group, (t + 1) * group, out + t * out_stride);
}

#endif
