/* Attention of one token: keys lie in the lanes of a vector.
 */
#ifndef LORRY_ATTENTION_SINGLE_H
#define LORRY_ATTENTION_SINGLE_H

#include "attention.h"
#include "attention8_single.h"

#define SCORE_HEADS (WIDTH == 16 ? 4 : 2) /* query heads that share a load of keys */
#define SCORE_VECTORS 4                   /* of keys */

/* scores[g][l] = q[g] . k[l] for `heads` heads and `vectors` vectors of keys from the first of
 * keys_DL; constants where it is called. */
INLINE void score_heads(const float *q_GD, const uint16_t *keys_DL, int size, float *scores,
                        int heads, int vectors) {
    Floats acc[SCORE_HEADS][SCORE_VECTORS];
    for (int g = 0; g < heads; g++)
        for (int i = 0; i < vectors; i++) acc[g][i] = splat(0);
    for (int d = 0; d < size; d++) {
        Floats key[SCORE_VECTORS];
        for (int i = 0; i < vectors; i++) key[i] = load_half(keys_DL + d * KEYS + i * WIDTH);
        for (int g = 0; g < heads; g++)
            for (int i = 0; i < vectors; i++)
                acc[g][i] = fused(splat(q_GD[g * size + d]), key[i], acc[g][i]);
    }
    for (int g = 0; g < heads; g++)
        for (int i = 0; i < vectors; i++) store(scores + g * KEYS + i * WIDTH, acc[g][i]);
}

static void score_some(const float *q_GD, const uint16_t *keys_DL, int size, float *scores,
                       int heads, int vectors) {
#define SCORE(H, V)                                 \
    case 10 * H + V:                                \
        score_heads(q_GD, keys_DL, size, scores, H, V); \
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

/* Keys `first` to `last` - 1 of the tile that begins at `cells`, and the rest of their BLOCKs. */
static void transpose_keys(const Past *past, const int32_t *cells, int first, int last, int known,
                           uint16_t *keys_DL) {
    for (int begin = first / BLOCK * BLOCK; begin < last; begin += BLOCK) {
        const uint16_t *from[BLOCK];
        for (int l = 0; l < BLOCK; l++) {
            const int at = MAX(first, MIN(last - 1, begin + l));
            from[l] = past->k_NHD + cells[at] * past->cell_stride;
            if (begin + l + AHEAD_KEYS < known)
                fetch_cell(past->k_NHD + cells[begin + l + AHEAD_KEYS] * past->cell_stride,
                           past->size);
        }
        for (int d = 0; d < past->size; d += 8)
            transpose_eight(from, d, keys_DL + d * KEYS + begin, KEYS);
    }
}

/* Scores of keys `first` to `last` - 1 of the tile at position `tile` to weights, in place, for
 * one head; what its sums so far are to be multiplied with. */
static float weigh_head(const Past *past, int g, int tile, int first, int last, int position,
                        float *scores, Partial *now) {
    const Attention *how = past->how;
    Ints place;
    for (int i = 0; i < WIDTH; i++) place[i] = i;
    Floats most = splat(-INFINITY), totals = splat(0);
    const int begin = first / WIDTH * WIDTH;
    for (int l = begin; l < last; l += WIDTH) {
        const Ints key = place + l;
        Floats score = load(scores + l);
        if (how->cap) score = capped(how->cap, score);
        if (how->slope_Q)
            score = fused(splat(-how->slope_Q[past->head + g]),
                          to_floats((position - tile) - key), score);
        if (first > l || last < l + WIDTH)
            score = chosen((key >= first) & (key < last), score, splat(-INFINITY));
        store(scores + l, score);
        most = greater(score, most);
    }
    const float before = now->most[g], tiles = largest(most);
    const float best = MAX(before, tiles);
    for (int l = begin; l < last; l += WIDTH) {
        const Ints key = place + l;
        Floats e = exponential(load(scores + l) - splat(best));
        if (first > l || last < l + WIDTH)
            e = chosen((key >= first) & (key < last), e, splat(0));
        store(scores + l, e);
        totals += e;
    }
    const float factor = exponential(splat(before - best))[0];
    now->most[g] = best;
    now->sum[g] = now->sum[g] * factor + sum(totals);
    return factor;
}

/* room->now = the keys `begin` to `end` - 1, all of one part; room->queries: of `scale_queries`. */
static void attend_part(const Past *past, int position, int begin, int end, Room *room) {
    if (past->k_scale) {
        attend_part8(past, position, begin, end, room);
        return;
    }
    const int size = past->size, group = past->group;
    uint16_t *const keys_DL = (uint16_t *)room->keys;
    Partial *now = &room->now;
    clear(now, group, size);
    for (int l = begin; l < MIN(end, begin + AHEAD_KEYS); l++) {
        fetch_cell(past->k_NHD + past->cells[l] * past->cell_stride, size);
        fetch_cell(past->v_NHD + past->cells[l] * past->cell_stride, size);
    }
    for (int tile = begin / KEYS * KEYS; tile < end; tile += KEYS) {
        const int first = MAX(tile, begin) - tile, last = MIN(tile + KEYS, end) - tile;
        const int32_t *cells = past->cells + tile;
        transpose_keys(past, cells, first, last, end - tile, keys_DL);
        for (int g = 0; g < group; g += SCORE_HEADS)
            for (int l = first / WIDTH * WIDTH; l < last; l += SCORE_VECTORS * WIDTH)
                score_some(room->queries + g * size, keys_DL + l, size,
                           room->scores + g * KEYS + l, MIN(SCORE_HEADS, group - g),
                           MIN(SCORE_VECTORS, (last - l + WIDTH - 1) / WIDTH));
        for (int g = 0; g < group; g++)
            room->factor[g] =
                weigh_head(past, g, tile, first, last, position, room->scores + g * KEYS, now);
        const Values values = {past->v_NHD, cells, past->cell_stride, NULL, end - tile};
        for (int g = 0; g < group; g += MIX_ROWS)
            mix(&values, room->scores + g * KEYS, KEYS, 1, first, last, room->factor + g,
                now->mixed + g * size, size, MIN(MIX_ROWS, group - g), 1, !g);
    }
}

static void scale_queries(const Past *past, const float *q_GD, Room *room) {
    if (past->k_scale) {
        encode_group(past, q_GD, room);
        return;
    }
    for (int i = 0; i < past->group * past->size; i += WIDTH)
        store(room->queries + i, load(q_GD + i) * splat(past->how->scale));
}

/* q_GD, out_GD: the query heads of the token at `position` that share the key head. */
static void attend_single(const Past *past, const float *q_GD, int position, float *out_GD,
                          Room *room) {
    int begin = first_seen(past->how, position);
    scale_queries(past, q_GD, room);
    if (begin / PART == position / PART) {
        attend_part(past, position, begin, position + 1, room);
        finish(past, &room->now, 0, past->group, out_GD);
        return;
    }
    clear(&room->whole, past->group, past->size);
    while (begin <= position) {
        const int end = MIN((begin / PART + 1) * PART, position + 1);
        attend_part(past, position, begin, end, room);
        fold(&room->whole, &room->now, past->group, past->size);
        begin = end;
    }
    finish(past, &room->whole, 0, past->group, out_GD);
}

#endif
