/* A step's attention, cut into units that any thread may take.
 *
 * Neighbouring tokens of a prompt are one unit for each key head. A token alone is one, too, or,
 * where there are too few of these for the threads, one for each part of its keys: its sums are
 * folded in the parts' order by whoever finishes the last of them. None of this changes a bit.
 */
#ifndef LORRY_ATTENTION_UNITS_H
#define LORRY_ATTENTION_UNITS_H

#include "attention.h"
#include "attention8_block.h"
#include "attention_block.h"
#include "attention_single.h"
#include <stdatomic.h>
#include <stdlib.h>

#define UNITS_PER_THREAD 4 /* fewer are too uneven */

typedef struct {
    int token, count; /* of the step's tokens */
    int part, parts;  /* of its keys; parts is 1 where it is not split */
    int slot;         /* of a split one's first part and key head, in `partials` and `left` */
    int64_t work;
} Unit;

typedef struct {
    Unit *units;
    int count;
    atomic_int taken[2]; /* of this layer and of the next */
    float *rooms;        /* one for each thread */
    float *partials;     /* of split units: [key heads, parts] from `slot` on */
    atomic_int *left;    /* by slot of a split unit's key head, the parts not finished yet */
    int rows;            /* of a room */
    int slots;
} Units;

static int rows_of_block(const Model *m) {
    return m->head_size > 128 ? BLOCK_ROWS / 2 : BLOCK_ROWS;
}

static int most_parts(int max_context) { return (max_context + PART - 1) / PART + 1; }

/* -1 where there is no memory. */
static int units_start(Units *u, const Model *m, int max_tokens, int max_context, int threads) {
    const int group = m->heads / m->kv_heads;
    u->rows = LANED(MAX(rows_of_block(m), group));
    u->slots = UNITS_PER_THREAD * threads * most_parts(max_context);
    u->units = calloc((size_t)max_tokens + u->slots, sizeof *u->units);
    u->left = calloc((size_t)u->slots, sizeof *u->left);
    const size_t room = room_floats(u->rows, m->head_size);
    const size_t partial = partial_floats(group, m->head_size);
    void *rooms = NULL, *partials = NULL;
    if (posix_memalign(&rooms, 64, (threads * room + 16) * sizeof(float))) rooms = NULL;
    if (posix_memalign(&partials, 64, (u->slots * partial + 16) * sizeof(float))) partials = NULL;
    u->rooms = rooms;
    u->partials = partials;
    return u->units && u->left && rooms && partials ? 0 : -1;
}

static void units_stop(Units *u) {
    free(u->units);
    free(u->left);
    free(u->rooms);
    free(u->partials);
}

static int by_work(const void *a, const void *b) {
    const int64_t x = ((const Unit *)a)->work, y = ((const Unit *)b)->work;
    return (x < y) - (x > y);
}

/* Once a step. */
static void units_plan(Units *u, const Model *m, const Step *step, int threads) {
    const int group = m->heads / m->kv_heads;
    int most = MAX(1, rows_of_block(m) / group), singles = 0;
    while (step->num_tokens / most * m->kv_heads < 2 * threads && most * group >= 2 * WIDTH)
        most /= 2;
    u->count = 0;
    for (int t = 0, end; t < step->num_tokens; t = end) {
        end = t + 1;
        while (end < step->num_tokens && end - t < most && step->row[end] == step->row[t]) end++;
        /* A few rows fill no vector. */
        if ((end - t) * group <= WIDTH / 2) end = t + 1;
        const int64_t keys = step->position[end - 1] + 1;
        u->units[u->count++] = (Unit){t, end - t, 0, 1, 0, (keys + 8) * (end - t)};
        singles += end == t + 1;
    }
    const int whole = u->count;
    if (threads > 1 && whole * m->kv_heads < UNITS_PER_THREAD * threads) {
        int slot = 0;
        for (int i = 0; i < whole; i++) {
            const Unit one = u->units[i];
            const int parts = step->position[one.token] / PART + 1;
            if (one.count > 1 || parts == 1) continue;
            for (int part = 0; part < parts; part++)
                u->units[part ? u->count++ : i] =
                    (Unit){one.token, 1, part, parts, slot, one.work / parts};
            for (int h = 0; h < m->kv_heads; h++) atomic_store(u->left + slot + h * parts, parts);
            slot += m->kv_heads * parts;
        }
    }
    qsort(u->units, (size_t)u->count, sizeof *u->units, by_work);
    atomic_store(u->taken, 0);
    atomic_store(u->taken + 1, 0);
}

/* One part of the keys of a token; and the whole, where the others are finished. */
static void attend_split(Units *u, const Past *past, const Unit *unit, int kv_head,
                         const float *q_GD, int position, float *out_GD, const Room *room) {
    const size_t each = partial_floats(past->group, past->size);
    const int slot = unit->slot + kv_head * unit->parts;
    const int seen = first_seen(past->how, position);
    const int begin = MAX(seen, unit->part * PART);
    const int end = MIN((unit->part + 1) * PART, position + 1);
    Room mine = *room;
    if (begin < end) {
        mine.now = partial_at(u->partials + (slot + unit->part) * each, past->group);
        scale_queries(past, q_GD, &mine);
        attend_part(past, position, begin, end, &mine);
    }
    if (atomic_fetch_sub(u->left + slot, 1) > 1) return;
    atomic_store(u->left + slot, unit->parts);
    clear(&mine.whole, past->group, past->size);
    for (int part = seen / PART; part < unit->parts; part++) {
        const Partial from = partial_at(u->partials + (slot + part) * each, past->group);
        fold(&mine.whole, &from, past->group, past->size);
    }
    finish(past, &mine.whole, 0, past->group, out_GD);
}

/* What the queries of key head `h` see; `cells`: of their row. */
static Past past_of(const Layer *layer, int h, int group, int size, int kv_heads,
                    const int32_t *cells) {
    Past past = {.how = &layer->attention, .cells = cells, .cell_stride = (size_t)kv_heads * size,
                 .scale_stride = (size_t)kv_heads, .head = h * group, .group = group, .size = size};
    if (layer->k_scale_NH) {
        past.k_codes = (const int8_t *)layer->k_NHD + h * size;
        past.v_codes = (const int8_t *)layer->v_NHD + h * size;
        past.k_scale = layer->k_scale_NH + h;
        past.v_scale = layer->v_scale_NH + h;
    } else {
        past.k_NHD = (const uint16_t *)layer->k_NHD + h * size;
        past.v_NHD = (const uint16_t *)layer->v_NHD + h * size;
    }
    return past;
}

/* The units that this thread gets of a layer. `turn`: 0, 1, 2, ... in the layers of a step;
 * between two of them all threads wait for each other. */
static void units_run(Units *u, const Model *m, const Layer *layer, const Step *step, int turn,
                      int thread, const float *qkv, float *attended) {
    const int size = m->head_size, group = m->heads / m->kv_heads;
    const size_t queries = (size_t)m->heads * size, keys = (size_t)m->kv_heads * size;
    const size_t stride = queries + 2 * keys;
    Room room = room_at(u->rooms + thread * room_floats(u->rows, size), u->rows, size);
    atomic_int *taken = u->taken + turn % 2;
    if (!thread) atomic_store(u->taken + (turn + 1) % 2, 0);
    for (;;) {
        const int next = atomic_fetch_add(taken, 1);
        if (next >= u->count * m->kv_heads) return;
        const Unit *unit = u->units + next / m->kv_heads;
        const int h = next % m->kv_heads, t = unit->token, position = step->position[t];
        const Past past = past_of(layer, h, group, size, m->kv_heads,
                                  step->cells + step->context[step->row[t]]);
        const float *q = qkv + t * stride + h * group * size;
        float *out = attended + t * queries + h * group * size;
        if (unit->parts > 1)
            attend_split(u, &past, unit, h, q, position, out, &room);
        else if (unit->count == 1)
            attend_single(&past, q, position, out, &room);
        else if (past.k_scale)
            attend_block8(&past, q, stride, unit->count, position, out, queries, &room);
        else
            attend_block(&past, q, stride, unit->count, position, out, queries, &room);
    }
}

#endif
