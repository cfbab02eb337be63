/* Attention over bytes, of one token: keys lie in the lanes of a vector.
 */
#ifndef LORRY_ATTENTION8_SINGLE_H
#define LORRY_ATTENTION8_SINGLE_H

#include "attention8.h"

#define SCORE8_HEADS (WIDTH == 16 ? 4 : 2) /* query heads that share a load of keys */
#define SCORE8_VECTORS (KEYS / WIDTH > 4 ? 4 : KEYS / WIDTH)

/* room->queries [group, size] bytes, room->query_scale, and room->query_sum, their sums. */
static void encode_group(const Past *past, const float *q_GD, Room *room) {
    const int size = past->size;
    int8_t *codes = (int8_t *)room->queries;
    for (int g = 0; g < past->group; g++, codes += size) {
        room->query_scale[g] = encode_query(q_GD + g * size, codes, size) * past->how->scale;
        int32_t total = 0;
        for (int d = 0; d < size; d++) total += codes[d];
        room->query_sum[g] = total;
    }
}

/* scores[g][l] of `heads` heads from `g` on, for `vectors` vectors of keys from `l` on; constants
 * where it is called. */
INLINE void score_heads8(const Room *room, int g, int l, int size, int heads, int vectors) {
    const int8_t *q_GD = (const int8_t *)room->queries + (size_t)g * size;
    const uint8_t *keys = (const uint8_t *)room->keys + FOUR * l;
    Ints acc[SCORE8_HEADS][SCORE8_VECTORS];
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < vectors; i++) acc[h][i] = (Ints){0} + start_of(room->query_sum[g + h]);
    for (int d = 0; d < size; d += FOUR) {
        Ints key[SCORE8_VECTORS];
        for (int i = 0; i < vectors; i++) key[i] = bytes(keys + d * KEYS + FOUR * i * WIDTH);
        for (int h = 0; h < heads; h++) {
            const Ints query = all_fours(q_GD + h * size + d);
            for (int i = 0; i < vectors; i++) acc[h][i] = signed_dots(acc[h][i], key[i], query);
        }
    }
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < vectors; i++)
            store(room->scores + (g + h) * KEYS + l + i * WIDTH,
                  to_floats(acc[h][i]) * splat(room->query_scale[g + h]) *
                      load(room->key_scale + l + i * WIDTH));
}

static void score_some8(const Room *room, int g, int l, int size, int heads, int vectors) {
#define SCORE(H, V)                                \
    case 10 * H + V:                               \
        score_heads8(room, g, l, size, H, V);      \
        break;
#define SCORES(H) SCORE(H, 1) SCORE(H, 2) SCORE(H, 3) SCORE(H, 4)
    switch (10 * heads + vectors) {
        SCORES(1)
        SCORES(2)
#if WIDTH == 16
        SCORES(3)
        SCORES(4)
#endif
    }
#undef SCORES
#undef SCORE
}

/* room->keys [size / FOUR, KEYS, FOUR], of keys `first` to `last` - 1 and the rest of their BLOCKs;
 * room->key_scale. */
static void transpose_keys8(const Past *past, const int32_t *cells, int first, int last, int known,
                            Room *room) {
    uint8_t *to = (uint8_t *)room->keys;
    read_scales(past->k_scale, cells, past->scale_stride, first, last, room->key_scale);
    for (int begin = first / BLOCK * BLOCK; begin < last; begin += BLOCK) {
        const int8_t *from[BLOCK];
        for (int l = 0; l < BLOCK; l++) {
            const int at = MAX(first, MIN(last - 1, begin + l)), ahead = begin + l + AHEAD_KEYS;
            from[l] = past->k_codes + cells[at] * past->cell_stride;
            if (ahead < known)
                fetch_bytes(past->k_codes + cells[ahead] * past->cell_stride, past->size);
        }
        transpose_fours(from, past->size, to + FOUR * begin, FOUR * KEYS);
    }
}

/* What `weigh_rows8` does, for the head `g` of one token and keys `first` to `last` - 1. */
static void weigh_head8(const Past *past, int g, int tile, int first, int last, int position,
                        float largest_scale, Room *room) {
    const Attention *how = past->how;
    float *scores = room->scores + g * KEYS;
    Ints place;
    for (int i = 0; i < WIDTH; i++) place[i] = i;
    Floats mosts = splat(-FLT_MAX), totals[VECTORS];
    const int begin = first / BLOCK * BLOCK, end = (last + BLOCK - 1) / BLOCK * BLOCK;
    for (int l = begin; l < end; l += WIDTH) {
        const Ints key = place + l, seen = (key >= first) & (key < last);
        Floats score = load(scores + l);
        if (how->cap) score = capped(how->cap, score);
        if (how->slope_Q)
            score = fused(splat(-how->slope_Q[past->head + g]),
                          to_floats((position - tile) - key), score);
        score = chosen(seen, score, splat(-INFINITY));
        store(scores + l, score);
        mosts = greater(score, mosts);
    }
    const Floats most = splat(largest(mosts));
    for (int i = 0; i < VECTORS; i++) totals[i] = splat(0);
    for (int l = begin; l < end; l += BLOCK)
        for (int i = 0; i < VECTORS; i++) {
            const int at = l + i * WIDTH;
            const Ints key = place + at, seen = (key >= first) & (key < last);
            const Floats e = chosen(seen, exponential_below(load(scores + at) - most), splat(0));
            Floats part = fused(e, load(room->shares + at), splat(MAGIC));
            part = chosen(seen, part, splat(MAGIC));
            totals[i] += e;
            *(Codes8 *)(room->parts + g * KEYS + at) =
                __builtin_convertvector((Ints)part - MAGIC_BITS, Codes8);
        }
    for (int i = 1; i < VECTORS; i++) totals[0] += totals[i];
    const Floats before = splat(room->now.most[g]), now = greater(most, before);
    const Floats factor = exponential_below(before - now), mine = exponential_below(most - now);
    room->factor[g] = factor[0];
    room->part_scale[g] = (mine * (splat(largest_scale) * splat(1.0f / BYTES)))[0];
    room->now.most[g] = now[0];
    room->now.sum[g] =
        fused(splat(sum(totals[0])), mine, splat(room->now.sum[g]) * factor)[0];
}

/* What `attend_part` does. */
static void attend_part8(const Past *past, int position, int begin, int end, Room *room) {
    const int size = past->size, group = past->group;
    clear(&room->now, group, size);
    for (int l = begin; l < MIN(end, begin + AHEAD_KEYS); l++) {
        fetch_bytes(past->k_codes + past->cells[l] * past->cell_stride, size);
        fetch_bytes(past->v_codes + past->cells[l] * past->cell_stride, size);
    }
    for (int tile = begin / KEYS * KEYS; tile < end; tile += KEYS) {
        const int first = MAX(tile, begin) - tile, last = MIN(tile + KEYS, end) - tile;
        const int32_t *cells = past->cells + tile;
        transpose_keys8(past, cells, first, last, end - tile, room);
        interleave_values(past, cells, first, last, end - tile, room);
        for (int g = 0; g < group; g += SCORE8_HEADS)
            for (int l = first / BLOCK * BLOCK; l < last; l += SCORE8_VECTORS * WIDTH)
                score_some8(room, g, l, size, MIN(SCORE8_HEADS, group - g),
                            MIN(SCORE8_VECTORS, (last - l + WIDTH - 1) / WIDTH));
        /* Where a key is not seen the scale is 0. */
        const float scale = share_scales(room);
        for (int g = 0; g < group; g++)
            weigh_head8(past, g, tile, first, last, position, scale, room);
        for (int g = 0; g < group; g += MIX_ROWS)
            mix8((const uint8_t *)room->values, room->parts + g * KEYS, KEYS, FOUR, first / FOUR,
                 (last + FOUR - 1) / FOUR, room->factor + g, room->part_scale + g,
                 room->now.mixed + g * size, size, MIN(MIX_ROWS, group - g));
    }
}

#endif
