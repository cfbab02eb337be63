/* Linears in 8 bits that read codes, heads above all: the arithmetic of
 * `lorry.model.int8.Int8Linear`, integer for integer.
 *
 * A token's activations are two rows of codes, high and low; both meet the same
 * weights, so they are neighbours and one load of the weights serves both.
 */
#ifndef LORRY_LINEAR_CODES_H
#define LORRY_LINEAR_CODES_H

#include "activations.h"
#include "ahead.h"
#include "step.h"
#include "vectors.h"
#include <math.h>
#include <string.h>

/* As many accumulators as there are registers for. */
#if WIDTH == 16
#define TILE_TOKENS 4
#define TILE_BLOCKS 2
#else
#define TILE_TOKENS 2
#define TILE_BLOCKS 1
#endif

/* WIDTH outputs from `o` on of one token, of its rows' sums; offset: OFFSET times the weights' sum. */
INLINE Floats answer_of_codes(const Linear *linear, int o, Ints high, Ints low, Ints offset,
                              Floats scale, float x_scale) {
    const Floats h = to_floats(high - offset), l = to_floats(low - offset);
    Floats out = fused(l, splat(1.0f / CODES), h) * scale * splat(x_scale);
    if (linear->bias_O) out += load(linear->bias_O + o);
    return out;
}

/* `tokens` x `blocks` outputs, both compile-time constants where it is called. `soon`: weights
 * that come next, or NULL: a line for every four inputs. `more`: what else to fetch meanwhile,
 * a line for every `MORE_EVERY`. */
INLINE void tile_of_codes(const Linear *linear, const uint8_t *codes, const float *x_scale,
                          float *y, int stride, int block, const uint8_t *soon, Range more,
                          int tokens, int blocks) {
    const int in = linear->in, rows = 2 * tokens;
    const size_t block_bytes = (size_t)in * BLOCK;
    const uint8_t *weights = linear->codes + block * block_bytes;
    Ints acc[2 * TILE_TOKENS][TILE_BLOCKS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < blocks; b++)
            for (int v = 0; v < VECTORS; v++) acc[r][b][v] = (Ints){0};
    for (int i = 0; i < in; i += 4) {
        /* A step of few tokens waits for the weights' memory rather than for arithmetic, and
         * it lies in runs too short for the processor to notice where they lead. */
        if (soon) _mm_prefetch((const char *)(soon + (size_t)i * BLOCK), _MM_HINT_T0);
        if (i % MORE_EVERY == 0 && i < MORE_EVERY * more.lines)
            _mm_prefetch(more.at + (size_t)i / MORE_EVERY * LINE, _MM_HINT_T1);
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
        for (int t = 0; t < tokens; t++)
            store(y + (size_t)t * stride + o,
                  answer_of_codes(linear, o, acc[2 * t][b][v], acc[2 * t + 1][b][v], offset, scale,
                                  x_scale[t]));
    }
}

/* `blocks` of outputs from `block` on, of every token; nothing is fetched. A function of its own:
 * a compiler that sees both makes the other one slower. */
static __attribute__((noinline)) void rest_of_codes(const Linear *linear, const uint8_t *codes,
                                                    const float *x_scale, float *y, int stride,
                                                    int block, int blocks, int tokens) {
    const size_t row = 2 * (size_t)linear->in;
#define TILE(T, B)                                                                               \
    tile_of_codes(linear, codes + t * row, x_scale + t, y + (size_t)t * stride, stride, block, NULL, \
                  NOTHING, T, B)
#define TILES(T)                                         \
    if (count == T) {                                    \
        if (blocks == TILE_BLOCKS) TILE(T, TILE_BLOCKS); \
        else TILE(T, 1);                                 \
    }
    for (int t = 0; t < tokens;) {
        const int left = tokens - t, count = left < TILE_TOKENS ? left : TILE_TOKENS;
        TILES(1)
        TILES(2)
#if TILE_TOKENS > 2
        TILES(3)
        TILES(4)
#endif
        t += count;
    }
#undef TILES
#undef TILE
}

/* Output blocks `first` to `last` - 1 of every token: y [T, stride]. */
static void blocks_of_codes(const Linear *linear, const uint8_t *codes, const float *x_scale,
                            float *y, int stride, int tokens, int first, int last, Ahead *ahead) {
    const size_t row = 2 * (size_t)linear->in, block_bytes = (size_t)linear->in * BLOCK;
    /* Tokens that fit in one tile read the weights as one stream. More of them take several
     * blocks at a time, as that spares loads of their codes; the tile that comes next is then
     * fetched in equal parts while the first tokens meet this one. */
    const int stream = tokens <= TILE_TOKENS;
    int block = first;
    /* Weights outside, tokens inside: a block of weights stays in the nearest cache. */
    while (block < last) {
        const int blocks = !stream && last - block >= TILE_BLOCKS ? TILE_BLOCKS : 1;
        const uint8_t *here = linear->codes + block * block_bytes;
        for (int t = 0, pass = 0; t < tokens; pass++) {
            if (pass == 2) {
                rest_of_codes(linear, codes + t * row, x_scale + t, y + (size_t)t * stride, stride,
                              block, blocks, tokens - t);
                break;
            }
            const int left = tokens - t, count = left < TILE_TOKENS ? left : TILE_TOKENS;
            const uint8_t *soon = stream          ? here + STREAM_AHEAD
                                 : pass < blocks ? here + (size_t)(blocks + pass) * block_bytes
                                                 : NULL;
#define TILE(T, B)                                                                              \
    tile_of_codes(linear, codes + t * row, x_scale + t, y + (size_t)t * stride, stride, block, soon, \
                  ahead_take(ahead, linear->in / MORE_EVERY), T, B)
#define TILES(T)                                       \
    if (count == T) {                                  \
        if (blocks == TILE_BLOCKS) TILE(T, TILE_BLOCKS); \
        else TILE(T, 1);                               \
    }
            TILES(1)
            TILES(2)
#if TILE_TOKENS > 2
            TILES(3)
            TILES(4)
#endif
#undef TILES
#undef TILE
            t += count;
        }
        block += blocks;
    }
}

/* The same without fetching anything. */
static void again_of_codes(const Linear *linear, const uint8_t *codes, const float *x_scale,
                           float *y, int stride, int tokens, int first, int last) {
    for (int block = first; block < last; block += TILE_BLOCKS)
        rest_of_codes(linear, codes, x_scale, y, stride, block,
                      last - block < TILE_BLOCKS ? 1 : TILE_BLOCKS, tokens);
}

#endif
