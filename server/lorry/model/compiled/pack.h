/* An adapter's A and B to the codes that a step reads: the arithmetic of
 * `lorry.model.compiled.adapter.codes_of`, bit for bit.
 */
#ifndef LORRY_PACK_H
#define LORRY_PACK_H

#include "lora.h"
#include "step.h"
#include "vectors.h"
#include <math.h>
#include <string.h>

#define WEIGHT_CODES 127
#define LEAST 1e-30f /* what is smaller counts as nothing */

typedef int8_t Codes __attribute__((vector_size(WIDTH), aligned(1), may_alias));

/* The next bfloat16 that is not smaller. */
static uint16_t round_up(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0xffff) >> 16);
}

/* factor[r]: the scale of row r's codes. */
static void pack_a(const float *a_RI, int8_t *packed, float *factor, int rank, int in) {
    const int padded = (rank + GROUP - 1) / GROUP * GROUP;
    int8_t *sums = packed + (size_t)padded * (size_t)in;
    memset(packed, 0, (size_t)padded * ((size_t)in + sizeof(int32_t)));
    for (int r = 0; r < rank; r++) {
        const float *row = a_RI + (size_t)r * (size_t)in;
        int8_t *to = packed + (size_t)(r / GROUP) * GROUP * (size_t)in + r % GROUP * 8;
        float largest = largest_magnitude(row, in);
        if (largest < LEAST) largest = LEAST;
        const Floats scale = splat(WEIGHT_CODES / largest);
        Ints totals = {0};
        for (int i = 0; i < in; i += WIDTH) {
            const Ints codes = to_ints(nearest(load(row + i) * scale));
            const Codes narrow = __builtin_convertvector(codes, Codes);
            totals += codes;
            for (int half = 0; half < WIDTH / 8; half++)
                memcpy(to + (size_t)(i + 8 * half) * GROUP, (const char *)&narrow + 8 * half, 8);
        }
        int32_t sum = 0;
        for (int i = 0; i < WIDTH; i++) sum += totals[i];
        memcpy(sums + (size_t)r * sizeof sum, &sum, sizeof sum);
        factor[r] = largest / WEIGHT_CODES;
    }
}

/* row: room for `rank`, padded to BLOCK. */
static void pack_b(const float *b_OR, const float *factor, uint8_t *packed, float *row, int rank,
                   int out) {
    const int padded = (rank + GROUP - 1) / GROUP * GROUP;
    const int wide = (rank + BLOCK - 1) / BLOCK * BLOCK;
    for (int r = rank; r < wide; r++) row[r] = 0;
    for (int o = 0; o < out; o++) {
        uint8_t *to = packed + (size_t)(o / BLOCK) * b_block(padded);
        for (int r = 0; r < rank; r++) row[r] = b_OR[(size_t)o * (size_t)rank + r] * factor[r];
        const float largest = largest_magnitude(row, wide);
        const uint16_t scale = largest < LEAST ? 0 : round_up(largest / WEIGHT_CODES);
        float rounded;
        const uint32_t bits = (uint32_t)scale << 16;
        memcpy(&rounded, &bits, sizeof rounded);
        const Floats each = splat(scale ? 1.0f / rounded : 0.0f);
        for (int r = 0; r < padded; r += WIDTH) {
            const Ints codes = to_ints(nearest(load(row + r) * each)) + B_OFFSET;
            const Codes narrow = __builtin_convertvector(codes, Codes);
            for (int four = 0; four < WIDTH && r + four < padded; four += 4)
                memcpy(to + (size_t)(r + four) * BLOCK + o % BLOCK * 4,
                       (const char *)&narrow + four, 4);
        }
        memcpy(to + (size_t)padded * BLOCK + o % BLOCK * sizeof scale, &scale, sizeof scale);
    }
}

#endif
