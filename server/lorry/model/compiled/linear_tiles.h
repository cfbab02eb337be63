/* Linears of many tokens on Intel AMX: sixteen tokens' bytes of a chunk, or eight tokens' rows of
 * codes, high and low, are one tile, and the same 64 inputs of a block of weights are another.
 *
 * Sums of integers are exact in any order, and what comes after them is that of `linear_chunks.h`
 * and `linear_codes.h`: the bits are those of the other instruction sets. Tokens that overlap those
 * of the tile before are computed twice, to the same bits: every tile is whole, and one shape serves
 * all.
 */
#ifndef LORRY_LINEAR_TILES_H
#define LORRY_LINEAR_TILES_H

#include "linear_chunks.h"
#include "linear_codes.h"
#include "tiles.h"

#if HAS_TILES

#if WIDTH != BLOCK
#error "a row of a tile of sums is a register"
#endif

#if CHUNK != TILE_BYTES
#error "a row of a tile is a chunk of a token"
#endif

#define EIGHT (TILE_ROWS / 2) /* tokens of a tile of codes */
#define SIXTEEN TILE_ROWS     /* tokens of a tile of bytes */
#define TILE_INPUTS TILE_BYTES
#define TILES_MOST 4 /* of bytes, that share one unpacking of weights */

typedef int32_t Sums[TILE_ROWS][BLOCK] __attribute__((aligned(64)));

/* Eight tokens. */
typedef struct {
    const uint8_t *codes; /* [2 * EIGHT, in] */
    const float *x_scale; /* [EIGHT] */
    float *y;             /* [EIGHT, stride] */
} Group;

/* The group that begins at token EIGHT * `number`, or the last eight tokens. */
INLINE Group group_of(const Linear *linear, const uint8_t *codes, const float *x_scale, float *y,
                      int stride, int tokens, int number) {
    const int left = tokens - EIGHT, t = EIGHT * number < left ? EIGHT * number : left;
    return (Group){codes + (size_t)t * 2 * (size_t)linear->in, x_scale + t,
                   y + (size_t)t * (size_t)stride};
}

/* Of what else is to be fetched, the part of the inputs from `i` on. */
INLINE void fetch_more(Range more, int i) {
    const int at = i / MORE_EVERY, end = at + TILE_INPUTS / MORE_EVERY;
    for (int line = at; line < end && line < more.lines; line++)
        _mm_prefetch(more.at + (size_t)line * LINE, _MM_HINT_T1);
}

INLINE Range more_of(const Linear *linear, Ahead *ahead) {
    if (!ahead) return NOTHING;
    return ahead_take(ahead, linear->in / TILE_INPUTS * (TILE_INPUTS / MORE_EVERY));
}

/* `count` groups x `blocks` outputs, 1 or 2 of each, compile-time constants where it is called.
 * `soon`: `soons` blocks of weights that come next. */
INLINE void tiles_of_codes(const Linear *linear, const Group *groups, int stride, int block,
                   const uint8_t *soon, int soons, Range more, int count, int blocks) {
    const int in = linear->in, whole = in / TILE_INPUTS * TILE_INPUTS;
    const size_t block_bytes = (size_t)in * BLOCK;
    const uint8_t *weights = linear->codes + (size_t)block * block_bytes;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    /* Sums 0 and 1 are the first group's, 2 and 3 the second's. */
#define MULTIPLY(FIRST, SECOND, STRIDE, AT)                                        \
    do {                                                                           \
        const uint8_t *met = weights + (size_t)(AT) * BLOCK;                       \
        tile_load(6, met, TILE_BYTES);                                             \
        if (blocks == 2) tile_load(7, met + block_bytes, TILE_BYTES);              \
        tile_load(4, FIRST, STRIDE);                                               \
        tile_dot(0, 4, 6);                                                         \
        if (blocks == 2) tile_dot(1, 4, 7);                                        \
        if (count == 2) {                                                          \
            tile_load(5, SECOND, STRIDE);                                          \
            tile_dot(2, 5, 6);                                                     \
            if (blocks == 2) tile_dot(3, 5, 7);                                    \
        }                                                                          \
    } while (0)
    for (int i = 0; i < whole; i += TILE_INPUTS) {
        for (int b = 0; b < soons; b++)
            for (int line = 0; line < TILE_ROWS; line++)
                _mm_prefetch((const char *)soon + b * block_bytes + (size_t)i * BLOCK + line * LINE,
                             _MM_HINT_T0);
        fetch_more(more, i);
        MULTIPLY(groups[0].codes + i, groups[1].codes + i, (size_t)in, i);
    }
    if (whole < in) {
        /* The last weights once more, where they were met before by codes of zero. */
        const int before = TILE_INPUTS - (in - whole);
        uint8_t last[2][TILE_ROWS][TILE_INPUTS] __attribute__((aligned(64)));
        for (int g = 0; g < count; g++)
            for (int r = 0; r < TILE_ROWS; r++) {
                memset(last[g][r], 0, (size_t)before);
                memcpy(last[g][r] + before, groups[g].codes + (size_t)r * (size_t)in + whole,
                       (size_t)(in - whole));
            }
        MULTIPLY(last[0], last[1], TILE_BYTES, in - TILE_INPUTS);
    }
#undef MULTIPLY
    Sums sums[2][2];
    tile_store(0, sums[0][0], TILE_BYTES);
    if (blocks == 2) tile_store(1, sums[0][1], TILE_BYTES);
    if (count == 2) tile_store(2, sums[1][0], TILE_BYTES);
    if (count == 2 && blocks == 2) tile_store(3, sums[1][1], TILE_BYTES);
    for (int b = 0; b < blocks; b++) {
        const int o = (block + b) * BLOCK;
        const Ints offset = *(const Ints *)(linear->sum_O + o) * OFFSET;
        const Floats scale = load(linear->scale_O + o);
        for (int g = 0; g < count; g++)
            for (int t = 0; t < EIGHT; t++)
                store(groups[g].y + (size_t)t * (size_t)stride + o,
                      answer_of_codes(linear, o, bytes(sums[g][b][2 * t]),
                                      bytes(sums[g][b][2 * t + 1]), offset, scale,
                                      groups[g].x_scale[t]));
    }
}

/* Output blocks `first` to `last` - 1 of every token: y [T, stride]. `ahead` NULL: nothing is
 * fetched. */
static __attribute__((noinline)) void codes_in_tiles(const Linear *linear, const uint8_t *codes,
                                                     const float *x_scale, float *y, int stride,
                                                     int tokens, int first, int last,
                                                     Ahead *ahead) {
    const size_t block_bytes = (size_t)linear->in * BLOCK;
    const int groups = (tokens + EIGHT - 1) / EIGHT;
    for (int block = first, blocks; block < last; block += blocks) {
        blocks = last - block >= 2 ? 2 : 1;
        const uint8_t *here = linear->codes + (size_t)block * block_bytes;
        for (int g = 0, pass = 0; g < groups; g += 2, pass++) {
            const int count = groups - g >= 2 ? 2 : 1;
            const Group two[2] = {
                group_of(linear, codes, x_scale, y, stride, tokens, g),
                group_of(linear, codes, x_scale, y, stride, tokens, g + 1),
            };
            /* As blocks_of_codes does: one stream, or the next blocks while the first tokens meet these. */
            const int stream = groups <= 2, soons = !ahead ? 0 : stream ? blocks : pass < blocks;
            const uint8_t *soon = stream ? here + STREAM_AHEAD
                                         : here + (size_t)(blocks + pass) * block_bytes;
            const Range more = more_of(linear, ahead);
#define TILES(C, B)                  \
    if (count == C && blocks == B)    \
        tiles_of_codes(linear, two, stride, block, soon, soons, more, C, B);
            TILES(1, 1)
            TILES(1, 2)
            TILES(2, 1)
            TILES(2, 2)
#undef TILES
        }
    }
}

/* The first token of tile `number`, or of the last sixteen tokens. */
INLINE int first_of_tile(int tokens, int number) {
    const int left = tokens - SIXTEEN;
    return SIXTEEN * number < left ? SIXTEEN * number : left;
}

/* A chunk of a block, as a tile: the packed weights themselves or, in 4 bits, `levels`, what `table`
 * has for them. Fetches what is to be fetched meanwhile. */
INLINE const void *unpacked(Weights weights, Ints table, Sums levels, int bits) {
    for (int line = 0; line < TILE_ROWS * bits / 8; line++) {
        const uint8_t *codes = weights.codes + line * LINE;
        if (weights.soon) _mm_prefetch((const char *)codes + weights.soon, _MM_HINT_T0);
        if (bits == 8) continue;
        const Ints both = bytes(codes);
        *(Ints *)levels[2 * line] = look_up(table, both & 0x0f0f0f0f);
        *(Ints *)levels[2 * line + 1] = look_up(table, shifted_down(both) & 0x0f0f0f0f);
    }
    for (int line = 0; line < CHUNK / MORE_EVERY && line < weights.more.lines; line++)
        _mm_prefetch(weights.more.at + (size_t)line * LINE, _MM_HINT_T1);
    return bits == 8 ? (const void *)weights.codes : levels;
}

/* Tiles `number` to `number` + `count` - 1 of the tokens, TILES_MOST at most, x one block of
 * outputs. `soon`: fetch the weights that far ahead, in bytes; 0: nothing. */
INLINE void tiles(const Linear *linear, Activations x, float *y, int stride, int tokens, int number,
                  int count, int block, int soon, Range more, int bits) {
    Weights weights = weights_of(linear, block, soon, more, bits);
    const Ints table = bits == 4 ? all_sixteens(linear->levels) : (Ints){0};
    Activations met[TILES_MOST];
    Sums sums[TILES_MOST], levels;
    Floats total[TILES_MOST][SIXTEEN], low[TILES_MOST][SIXTEEN][VECTORS];
    for (int g = 0; g < count; g++) {
        met[g] = from_token(x, linear->in, (size_t)first_of_tile(tokens, number + g));
        for (int t = 0; t < SIXTEEN; t++) total[g][t] = low[g][t][0] = splat(0);
    }
    for (size_t c = 0; c < (size_t)(linear->in / CHUNK); c++) {
        tile_load(7, unpacked(weights, table, levels, bits), TILE_BYTES);
#define MULTIPLY(G, SUM, ROWS)                                      \
    if (G < count) {                                                \
        tile_load(ROWS, met[G].high + c * x.stride * CHUNK, CHUNK); \
        tile_zero(SUM);                                             \
        tile_signed_dot(SUM, ROWS, 7);                              \
        tile_store(SUM, sums[G], TILE_BYTES);                       \
    }
        MULTIPLY(0, 0, 4)
        MULTIPLY(1, 1, 5)
        MULTIPLY(2, 2, 6)
        MULTIPLY(3, 3, 4)
#undef MULTIPLY
        for (int g = 0; g < count; g++) {
            const Chunk *of = met[g].chunks + c * x.stride;
            for (int t = 0; t < SIXTEEN; t++)
                total[g][t] = with_chunk(total[g][t], bytes(sums[g][t]), weights, 0, of[t].scale, bits);
            const unsigned far = far_tokens(met[g], c, SIXTEEN);
            if (far) add_lows(&weights, met[g], c, far, low[g], bits);
        }
        next_chunk(&weights, bits);
    }
    for (int g = 0; g < count; g++) {
        float *to = y + (size_t)first_of_tile(tokens, number + g) * (size_t)stride + block * BLOCK;
        for (int t = 0; t < SIXTEEN; t++)
            store(to + (size_t)t * (size_t)stride,
                  answer_of(linear, block * BLOCK, total[g][t], low[g][t][0]));
    }
}

/* Output blocks `first` to `last` - 1 of every token: y [T, stride]. `ahead` NULL: nothing is
 * fetched. */
#define BLOCKS(BITS)                                                                              \
    static __attribute__((noinline)) void blocks_in_tiles##BITS(                                  \
        const Linear *linear, Activations x, float *y, int stride, int tokens, int first,         \
        int last, Ahead *ahead) {                                                                 \
        const int all = (tokens + SIXTEEN - 1) / SIXTEEN;                                         \
        for (int block = first; block < last; block++)                                            \
            for (int number = 0; number < all; number += TILES_MOST) {                            \
                const int count = all - number < TILES_MOST ? all - number : TILES_MOST;          \
                /* The first tokens wait for the weights' memory; the others find them near. */   \
                const int waits = ahead && !number;                                               \
                const Range more =                                                                \
                    waits ? ahead_take(ahead, linear->in / MORE_EVERY) : NOTHING;                 \
                tiles(linear, x, y, stride, tokens, number, count, block,                         \
                      waits ? STREAM_AHEAD : 0, more, BITS);                                      \
            }                                                                                     \
    }
BLOCKS(4)
BLOCKS(8)
#undef BLOCKS

/* Whether `linear_in_tiles` can and should multiply so many tokens. */
static int fits_tiles(const Linear *linear, int tokens) {
    if (reads_chunks(linear)) return tokens >= SIXTEEN;
    return tokens >= EIGHT && linear->in >= TILE_INPUTS;
}

static void linear_in_tiles(const Linear *linear, Activations x, float *y, int stride, int tokens,
                            int first, int last, Ahead *ahead) {
    /* Each time: shapes are a thread's own, and somebody else's library may have set others in
     * the caller's. Without them no signal and no switch has 8 KiB of tiles to save. */
    tile_config(&WHOLE_TILES);
    if (!reads_chunks(linear))
        codes_in_tiles(linear, x.codes, x.scale_T, y, stride, tokens, first, last, ahead);
    else if (linear->levels) blocks_in_tiles4(linear, x, y, stride, tokens, first, last, ahead);
    else blocks_in_tiles8(linear, x, y, stride, tokens, first, last, ahead);
    tile_release();
}

#endif

#endif
