/* The int8 linear: the arithmetic of `lorry.model.int8.Int8Linear`, integer for integer.
 *
 * A token's activations are two rows of codes, high and low; both meet the same
 * weights, so they are neighbours and one load of the weights serves both.
 */
#ifndef LORRY_LINEAR_H
#define LORRY_LINEAR_H

#include "step.h"
#include "vectors.h"
#include <math.h>
#include <string.h>

#define CODES 63
#define OFFSET 64 /* codes are stored unsigned, 1 to 127 */

#define VECTORS (BLOCK / WIDTH)

/* As many accumulators as there are registers for. */
#if WIDTH == 16
#define TILE_TOKENS 4
#define TILE_BLOCKS 2
#else
#define TILE_TOKENS 2
#define TILE_BLOCKS 1
#endif

/* x [in] -> codes [2, in], and what a code of the high row is worth. */
INLINE float encode(const float *x, uint8_t *codes, int in) {
    float absmax = largest_magnitude(x, in);
    /* A row of zeros has no largest element. One with a NaN must keep it: its codes mean
     * nothing, what they are worth is then NaN, too. */
    if (absmax < 1e-30f) absmax = 1e-30f;
    Floats factor = all(CODES / absmax);
    uint8_t *high = codes, *low = codes + in;
    typedef uint8_t Bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));
    for (int i = 0; i < in; i += WIDTH) {
        Floats code = load(x + i) * factor, rounded = nearest(code);
        Floats rest = nearest((code - rounded) * all(CODES));
        *(Bytes *)(high + i) = __builtin_convertvector(to_ints(rounded) + OFFSET, Bytes);
        *(Bytes *)(low + i) = __builtin_convertvector(to_ints(rest) + OFFSET, Bytes);
    }
    return absmax / CODES;
}

/* `tokens` x `blocks` outputs, both compile-time constants where it is called. */
INLINE void linear_tile(const Linear *linear, const uint8_t *codes, const float *worth, float *y,
                        int stride, int block, int tokens, int blocks) {
    const int in = linear->in, rows = 2 * tokens;
    const size_t block_bytes = (size_t)in * BLOCK;
    const int8_t *weights = linear->codes + block * block_bytes;
    Ints acc[2 * TILE_TOKENS][TILE_BLOCKS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < blocks; b++)
            for (int v = 0; v < VECTORS; v++) acc[r][b][v] = (Ints){0};
    for (int i = 0; i < in; i += 4) {
        /* The weights of the blocks that come next: their memory, and not the arithmetic,
         * is what a step of few tokens waits for, and blocks are too short for the
         * processor to notice where they lead. */
        for (int b = 0; b < blocks; b++)
            _mm_prefetch((const char *)(weights + (blocks + b) * block_bytes + i * BLOCK),
                         _MM_HINT_T0);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, codes + (size_t)r * in + i, 4);
            for (int b = 0; b < blocks; b++)
                for (int v = 0; v < VECTORS; v++)
                    acc[r][b][v] = dot4(acc[r][b][v], four,
                                        weights + b * block_bytes + (i * BLOCK + v * 4 * WIDTH));
        }
    }
    for (int bv = 0; bv < blocks * VECTORS; bv++) {
        const int b = bv / VECTORS, v = bv % VECTORS, o = (block + b) * BLOCK + v * WIDTH;
        Ints offset = *(const Ints *)(linear->sum_O + o) * OFFSET;
        Floats scale = load(linear->scale_O + o);
        for (int t = 0; t < tokens; t++) {
            Floats high = to_floats(acc[2 * t][b][v] - offset);
            Floats low = to_floats(acc[2 * t + 1][b][v] - offset);
            Floats out = fused(low, all(1.0f / CODES), high) * scale * all(worth[t]);
            if (linear->bias_O) out += load(linear->bias_O + o);
            store(y + (size_t)t * stride + o, out);
        }
    }
}

/* Output blocks `first` to `last` - 1 of every token: y [T, stride]. */
static void linear_blocks(const Linear *linear, const uint8_t *codes, const float *worth, float *y,
                          int stride, int tokens, int first, int last) {
    const size_t row = 2 * (size_t)linear->in;
    int block = first;
    /* Weights outside, tokens inside: a block of weights stays in the nearest cache. */
    while (block < last) {
        const int blocks = last - block >= TILE_BLOCKS ? TILE_BLOCKS : 1;
        int t = 0;
#define TILE(T, B)                                                                              \
    linear_tile(linear, codes + t * row, worth + t, y + (size_t)t * stride, stride, block, T, B)
        if (blocks == TILE_BLOCKS) {
            for (; t + TILE_TOKENS <= tokens; t += TILE_TOKENS) TILE(TILE_TOKENS, TILE_BLOCKS);
#if TILE_TOKENS > 2
            if (tokens - t == 3) TILE(3, TILE_BLOCKS);
            if (tokens - t == 2) TILE(2, TILE_BLOCKS);
#endif
            if (tokens - t == 1) TILE(1, TILE_BLOCKS);
        } else {
            for (; t < tokens; t++) TILE(1, 1);
        }
#undef TILE
        block += blocks;
    }
}

#endif
