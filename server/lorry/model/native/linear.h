/* The int8 linear: the arithmetic of `lorry.model.int8.Int8Linear`, integer for integer.
 *
 * A token's activations are two rows of codes, high and low; both meet the same
 * weights, so they are neighbours and one load of the weights serves both.
 */
#ifndef LORRY_LINEAR_H
#define LORRY_LINEAR_H

#include "ahead.h"
#include "step.h"
#include "vectors.h"
#include <math.h>
#include <string.h>

#define CODES 63
#define OFFSET 64 /* codes are stored unsigned, 1 to 127 */

#define STREAM_AHEAD 4096 /* bytes; half and twice of it are slower */

#define VECTORS (BLOCK / WIDTH)

/* As many accumulators as there are registers for. */
#if WIDTH == 16
#define TILE_TOKENS 4
#define TILE_BLOCKS 2
#define ONCE_TOKENS 8 /* up to which a step reads each block of weights once, by itself */
#else
#define TILE_TOKENS 2
#define TILE_BLOCKS 1
#define ONCE_TOKENS TILE_TOKENS
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

/* `tokens` x `blocks` outputs, both compile-time constants where it is called. `more`: what
 * else to fetch meanwhile, a line for every four inputs at most. */
INLINE void linear_tile(const Linear *linear, const uint8_t *codes, const float *worth, float *y,
                        int stride, int block, Range more, int tokens, int blocks) {
    const int in = linear->in, rows = 2 * tokens;
    const size_t block_bytes = (size_t)in * BLOCK;
    const int8_t *weights = linear->codes + block * block_bytes;
    Ints acc[2 * ONCE_TOKENS][TILE_BLOCKS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < blocks; b++)
            for (int v = 0; v < VECTORS; v++) acc[r][b][v] = (Ints){0};
    for (int i = 0; i < in; i += 4) {
        /* The weights that come next: their memory, and not the arithmetic, is what a step
         * of few tokens waits for, and it lies in runs too short for the processor to notice
         * where they lead. */
        if (blocks == 1)
            _mm_prefetch((const char *)(weights + i * BLOCK + STREAM_AHEAD), _MM_HINT_T0);
        for (int b = 0; b < blocks && blocks > 1; b++)
            _mm_prefetch((const char *)(weights + (blocks + b) * block_bytes + i * BLOCK),
                         _MM_HINT_T0);
        if (i < 4 * more.lines) _mm_prefetch(more.at + (size_t)i / 4 * LINE, _MM_HINT_T1);
        for (int r = 0; r < rows; r++) {
            const Ints four = all_fours(codes + (size_t)r * in + i);
            for (int b = 0; b < blocks; b++)
                for (int v = 0; v < VECTORS; v++)
                    acc[r][b][v] =
                        dots(acc[r][b][v], four,
                             bytes(weights + b * block_bytes + (i * BLOCK + v * 4 * WIDTH)));
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
                          int stride, int tokens, int first, int last, Ahead *ahead) {
    const size_t row = 2 * (size_t)linear->in;
    int block = first;
    /* Weights outside, tokens inside: a block of weights stays in the nearest cache. */
    while (block < last) {
        const int once = ONCE_TOKENS > TILE_TOKENS && tokens <= ONCE_TOKENS;
        const int blocks = !once && last - block >= TILE_BLOCKS ? TILE_BLOCKS : 1;
        int t = 0;
#define TILE(T, B)                                                                              \
    linear_tile(linear, codes + t * row, worth + t, y + (size_t)t * stride, stride, block, \
                ahead_take(ahead, linear->in / 4), T, B)
        if (once) {
#if ONCE_TOKENS > TILE_TOKENS
            if (tokens == 1) TILE(1, 1);
            if (tokens == 2) TILE(2, 1);
            if (tokens == 3) TILE(3, 1);
            if (tokens == 4) TILE(4, 1);
            if (tokens == 5) TILE(5, 1);
            if (tokens == 6) TILE(6, 1);
            if (tokens == 7) TILE(7, 1);
            if (tokens == 8) TILE(8, 1);
#endif
        } else if (blocks == TILE_BLOCKS) {
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
