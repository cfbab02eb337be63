/* A token drawn from a distribution, without sorting the vocabulary.
 *
 * lorry.model.drawing has the same in PyTorch's operations, and both give the same bits:
 * what is kept, and which token a number falls on, is found by bounds that allow for every
 * rounding of the plain way, and the few tokens between the bounds are gone through in the
 * plain way's order.
 */
#ifndef LORRY_DRAW_H
#define LORRY_DRAW_H

#include "step.h"
#include "vectors.h"
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

typedef double Doubles __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef float Halves __attribute__((vector_size(2 * WIDTH), aligned(4), may_alias));

/* A float's bits as an integer of the same order. */
INLINE Ints ordered(Floats v) { return (Ints)v ^ (((Ints)v >> 31) & 0x7fffffff); }
INLINE int32_t ordered_one(float v) {
    int32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

INLINE Floats where(Ints mask, Floats v) { return (Floats)((Ints)v & mask); }

/* Its lanes in double precision, those of one half added to those of the other. */
INLINE Doubles doubled(Floats v) {
    float lanes[WIDTH];
    store(lanes, v);
    return __builtin_convertvector(*(const Halves *)lanes, Doubles) +
           __builtin_convertvector(*(const Halves *)(lanes + WIDTH / 2), Doubles);
}

/* The next WIDTH of `left` floats; `fill` behind the end. */
INLINE Floats load_part(const float *p, int left, float fill) {
    if (left >= WIDTH) return load(p);
    float lanes[WIDTH];
    for (int i = 0; i < WIDTH; i++) lanes[i] = i < left ? p[i] : fill;
    return load(lanes);
}

INLINE void store_part(float *p, int left, Floats v) {
    if (left >= WIDTH) return store(p, v);
    for (int i = 0; i < left; i++) p[i] = v[i];
}

/* Tokens of which it is open whether they are kept, in their order. */
typedef struct {
    const float *preference, *weight;
    int count;
    int32_t low, high; /* keys: kept above `high`, dropped up to `low` */
    double above;      /* the weight of all that are kept for certain */
} Open;

#define PIVOTS 8
#define FEW 32
/* Of a cumulative sum in fp32, and of a difference of two such, up to 1. */
#define ROUNDING 0x1p-22

/* Brings `low` and `high` nearer to each other; false where that is not possible. */
static bool narrow(Open *open, double mass) {
    const int32_t low = open->low, high = open->high;
    Floats least = splat(INFINITY), most = splat(-INFINITY);
    for (int v = 0; v < open->count; v += WIDTH) {
        least = smaller(load_part(open->preference + v, open->count - v, INFINITY), least);
        most = greater(load_part(open->preference + v, open->count - v, -INFINITY), most);
    }
    const int32_t highest = ordered_one(largest(most)), lowest = ordered_one(-largest(-least));
    if (highest < high) open->high = highest;
    if (lowest > low) open->low = lowest - 1;
    const int64_t width = (int64_t)open->high - open->low;

    int32_t pivot[PIVOTS];
    Floats sums[PIVOTS];
    for (int j = 0; j < PIVOTS; j++) {
        pivot[j] = (int32_t)(open->high - (j + 1) * width / (PIVOTS + 1));
        sums[j] = splat(0);
    }
    if (width > 1)
        for (int v = 0; v < open->count; v += WIDTH) {
            const Ints key = ordered(load_part(open->preference + v, open->count - v, -INFINITY));
            const Floats weight = load_part(open->weight + v, open->count - v, 0);
            for (int j = 0; j < PIVOTS; j++) sums[j] += where(key > pivot[j], weight);
        }
    for (int j = 0; j < PIVOTS; j++) {
        const double more = sum(sums[j]);
        /* Each lane adds count / WIDTH floats, then the lanes are added. */
        const double slack = more * (open->count / WIDTH + 2 * WIDTH) * 0x1p-23 + ROUNDING;
        if (open->above + more + slack < mass) open->high = pivot[j];
        if (open->above + more - slack >= mass) {
            open->low = pivot[j];
            break;
        }
    }
    return open->low != low || open->high != high;
}

static int compare(const void *one, const void *other) {
    const int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

void lorry_keep_mass(const float *weight, const float *preference, float floor, float mass,
                     int32_t count, float *kept, void *room) {
    int64_t *const order = room;
    float *const preferences = (float *)(order + count), *const weights = preferences + count;
    int32_t *const ids = (int32_t *)(weights + count);

    Open open = {preference, weight, count, ordered_one(floor), INT_MAX, 0};
    narrow(&open, mass);
    Doubles above = {0};
    int left = 0;
    for (int v = 0; v < count; v += WIDTH) {
        const Ints key = ordered(load_part(preference + v, count - v, -INFINITY));
        const Floats sure = where(key > open.high, load_part(weight + v, count - v, 0));
        store_part(kept + v, count - v, sure);
        above += doubled(sure);
        unsigned some = lanes_of((key > open.low) & (key <= open.high));
        for (; some; some &= some - 1) {
            const int id = v + __builtin_ctz(some);
            if (id == count) break; /* what fills up the last vector */
            preferences[left] = preference[id];
            weights[left] = weight[id];
            ids[left++] = id;
        }
    }
    for (int i = 0; i < WIDTH / 2; i++) open.above += above[i];

    open.preference = preferences;
    open.weight = weights;
    open.count = left;
    while (open.count > FEW && narrow(&open, mass)) {
        left = 0;
        for (int i = 0; i < open.count; i++) {
            const int32_t key = ordered_one(preferences[i]);
            if (key > open.high) {
                kept[ids[i]] = weights[i];
                open.above += weights[i];
            }
            preferences[left] = preferences[i];
            weights[left] = weights[i];
            ids[left] = ids[i];
            left += (key > open.low) & (key <= open.high);
        }
        open.count = left;
    }

    /* The plain way: a cumulative sum in double precision, every sum rounded to single. Of
     * equals the first token comes first. */
    for (int i = 0; i < open.count; i++)
        order[i] = (int64_t)(((uint64_t)~ordered_one(preferences[i]) << 32) | (uint32_t)ids[i]);
    if ((int64_t)open.high - open.low > 1)
        qsort(order, (size_t)open.count, sizeof *order, compare);
    for (int i = 0; i < open.count; i++) {
        const int id = (int32_t)order[i];
        open.above += weight[id];
        const float before = (float)open.above - weight[id];
        if (!(before >= mass)) kept[id] = weight[id];
    }
}

#define STRETCH (64 * WIDTH) /* tokens whose probabilities are added up together */

/* The plain way: the first token whose cumulative sum exceeds `number` of the whole. */
static int32_t draw_exactly(const float *weight, float total, int count, double number) {
    double whole = 0, up_to = 0;
    int32_t last = 0;
    for (int v = 0; v < count; v++) {
        whole += weight[v] / total;
        if (weight[v] != 0) last = v;
    }
    for (int v = 0; v < count; v++) {
        up_to += weight[v] / total;
        if (up_to > number * whole) return v;
    }
    return last;
}

int32_t lorry_draw(const float *weight, float total, int32_t count, double number, void *room) {
    double *const stretches = room;
    double whole = 0, up_to = 0;
    for (int first = 0, s = 0; first < count; first += STRETCH, s++) {
        const int end = count - first < STRETCH ? count : first + STRETCH;
        Doubles sums = {0};
        for (int v = first; v < end; v += WIDTH)
            sums += doubled(load_part(weight + v, end - v, 0) / splat(total));
        stretches[s] = 0;
        for (int i = 0; i < WIDTH / 2; i++) stretches[s] += sums[i];
        whole += stretches[s];
    }
    /* Sums of `count` doubles in two orders differ by less than half of this. */
    const double at = number * whole, slack = whole * count * 0x1p-50;
    for (int first = 0, s = 0; first < count; first += STRETCH, s++) {
        if (up_to + stretches[s] < at - slack) {
            up_to += stretches[s];
            continue;
        }
        const int end = count - first < STRETCH ? count : first + STRETCH;
        for (int v = first; v < end; v++) {
            const double before = up_to;
            up_to += weight[v] / total;
            if (up_to < at - slack) continue;
            if (up_to > at + slack && before < at - slack) return v;
            /* Too near to the end of a token to tell. */
            return draw_exactly(weight, total, count, number);
        }
    }
    return draw_exactly(weight, total, count, number);
}

#endif
