/* Weights of 4 bits, in bitsandbytes' blocks: nf4 and fp4 differ in their 16 levels alone.
 *
 * A code becomes its level, a signed byte, by one shuffle, and meets the activations' bytes. A
 * chunk's sum is one of integers. The chunks' sums are scaled and added up in order, output by
 * output: the bits of a result depend neither on the tile nor on the width of a register.
 * `lorry.model.four_bit` says how a weight becomes codes, and what the roundings cost.
 */
#ifndef LORRY_LINEAR4_H
#define LORRY_LINEAR4_H

#include "activations.h"
#include "ahead.h"
#include "step.h"
#include "vectors.h"

#define CHUNK_LINES (CHUNK / 8) /* cache lines of codes in a chunk of a block */

/* As many accumulators as there are registers for. More tokens share one unpacking. */
#if WIDTH == 16
#define TILE_TOKENS4 12
#else
#define TILE_TOKENS4 4
#endif

/* `total` and a chunk more, of its sum; scale: the weights' and the activations'. */
INLINE Floats with_chunk4(Floats total, Ints sum, Floats scale, float x_scale) {
    return fused(to_floats(sum), scale * splat(x_scale), total);
}

/* WIDTH outputs from `o` on of one token, of all its chunks. */
INLINE Floats answer4(const Linear *linear, int o, Floats total) {
    Floats out = total * load(linear->scale_O + o);
    if (linear->bias_O) out += load(linear->bias_O + o);
    return out;
}

/* A chunk of weights of one block: CHUNK_LINES lines of codes. */
typedef struct {
    const uint8_t *codes;
    Ints table;
    int soon;   /* fetch the codes that far ahead, in bytes; 0: nothing */
    Range more; /* and a line of this for every MORE_EVERY inputs */
} Weights4;

/* acc += the weights' products with x [tokens, CHUNK]; `tokens` is a compile-time constant where it
 * is called. */
INLINE void multiply_chunk(Weights4 weights, const int8_t *x, Ints (*acc)[VECTORS], int tokens) {
    const int every = MORE_EVERY / 8;
    for (int line = 0; line < CHUNK_LINES; line++) {
        const uint8_t *codes = weights.codes + line * LINE;
        if (weights.soon) _mm_prefetch((const char *)codes + weights.soon, _MM_HINT_T0);
        if (line % every == 0 && line / every < weights.more.lines)
            _mm_prefetch(weights.more.at + (size_t)(line / every) * LINE, _MM_HINT_T1);
        Ints both[VECTORS];
        for (int v = 0; v < VECTORS; v++) both[v] = bytes(codes + v * 4 * WIDTH);
        for (int half = 0; half < 2; half++) {
            Ints levels[VECTORS];
            for (int v = 0; v < VECTORS; v++)
                levels[v] = look_up(weights.table,
                                    (half ? shifted_down(both[v]) : both[v]) & 0x0f0f0f0f);
            for (int t = 0; t < tokens; t++) {
                const Ints four = all_fours(x + t * CHUNK + 8 * line + 4 * half);
                for (int v = 0; v < VECTORS; v++)
                    acc[t][v] = signed_dots(acc[t][v], levels[v], four);
            }
        }
    }
}

/* total += what the low bytes of one token add to a block. A function of its own: few tokens have
 * low bytes, and few of their chunks. */
static __attribute__((noinline)) void add_low4(const Linear *linear, Activations x, int block,
                                               Floats *total) {
    const int in = linear->in;
    const uint8_t *codes = linear->codes + (size_t)block * (size_t)in * (BLOCK / 2);
    const uint16_t *chunk_scale = linear->chunk_scale + (size_t)block * (size_t)(in / CHUNK) * BLOCK;
    const Ints table = signed_table(linear->levels);
    for (int c = *x.low_T, next; c >= 0; c = next) {
        const Chunk *chunk = x.chunks + c * x.stride;
        const Weights4 weights = {codes + c * CHUNK_LINES * LINE, table, 0, NOTHING};
        Ints acc[1][VECTORS];
        for (int v = 0; v < VECTORS; v++) acc[0][v] = signed_start(chunk->low_sum);
        multiply_chunk(weights, x.low + c * x.stride * CHUNK, acc, 1);
        for (int v = 0; v < VECTORS; v++)
            total[v] = with_chunk4(total[v], acc[0][v],
                                   load_half(chunk_scale + c * BLOCK + v * WIDTH),
                                   chunk->scale * (1.0f / LOW_BYTES));
        next = chunk->next;
    }
}

/* The answers of one token in a block, of the sum of its high bytes. */
INLINE void finish4(const Linear *linear, Activations x, int block, const Floats *total,
                    float *y) {
    Floats all[VECTORS];
    for (int v = 0; v < VECTORS; v++) all[v] = total[v];
    if (*x.low_T >= 0) add_low4(linear, x, block, all);
    for (int v = 0; v < VECTORS; v++) {
        const int o = block * BLOCK + v * WIDTH;
        store(y + o, answer4(linear, o, all[v]));
    }
}

/* `tokens` x one block of outputs; `tokens` is a compile-time constant where it is called. `soon`:
 * fetch the weights that far ahead, in bytes; 0: nothing. `more`: what else to fetch meanwhile, a
 * line for every `MORE_EVERY` inputs. */
INLINE void tile4(const Linear *linear, Activations x, float *y, int stride, int block, int soon,
                  Range more, int tokens) {
    const int in = linear->in, chunks = in / CHUNK;
    const uint16_t *chunk_scale = linear->chunk_scale + (size_t)block * (size_t)chunks * BLOCK;
    Weights4 weights = {linear->codes + (size_t)block * (size_t)in * (BLOCK / 2),
                        signed_table(linear->levels), soon, more};
    Floats total[TILE_TOKENS4][VECTORS];
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < VECTORS; v++) total[t][v] = splat(0);
    for (int c = 0; c < chunks; c++, chunk_scale += BLOCK) {
        Ints acc[TILE_TOKENS4][VECTORS];
        const Chunk *of_token = x.chunks + c * x.stride;
        for (int t = 0; t < tokens; t++)
            for (int v = 0; v < VECTORS; v++)
                acc[t][v] = signed_start(of_token[t].sum);
        multiply_chunk(weights, x.high + c * x.stride * CHUNK, acc, tokens);
        for (int v = 0; v < VECTORS; v++) {
            const Floats scale = load_half(chunk_scale + v * WIDTH);
            for (int t = 0; t < tokens; t++)
                total[t][v] = with_chunk4(total[t][v], acc[t][v], scale,
                                          of_token[t].scale);
        }
        weights.codes += CHUNK_LINES * LINE;
        weights.more.at += CHUNK / MORE_EVERY * LINE;
        weights.more.lines -= CHUNK / MORE_EVERY;
    }
    for (int t = 0; t < tokens; t++)
        finish4(linear, from_token(x, in, (size_t)t), block, total[t], y + (size_t)t * stride);
}

#define TILE(T)                                                                              \
    if (count == T)                                                                          \
        tile4(linear, from_token(x, linear->in, t), y + (size_t)t * stride, stride, block, SOON, \
              MORE, T);
#if TILE_TOKENS4 > 4
#define TILES                                                                               \
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) \
        TILE(12)
#else
#define TILES TILE(1) TILE(2) TILE(3) TILE(4)
#endif

/* Output blocks `first` to `last` - 1 of every token: y [T, stride]. Nothing is fetched. A
 * function of its own: a compiler that sees both makes the other one slower. */
static __attribute__((noinline)) void again4(const Linear *linear, Activations x, float *y,
                                             int stride, int tokens, int first, int last) {
    for (int block = first; block < last; block++)
        for (int t = 0, count; t < tokens; t += count) {
            count = tokens - t < TILE_TOKENS4 ? tokens - t : TILE_TOKENS4;
#define SOON 0
#define MORE NOTHING
            TILES
#undef SOON
#undef MORE
        }
}

/* The same, with what comes next fetched meanwhile. */
static void blocks4(const Linear *linear, Activations x, float *y, int stride, int tokens,
                    int first, int last, Ahead *ahead) {
    const int count = tokens < TILE_TOKENS4 ? tokens : TILE_TOKENS4, t = 0;
    for (int block = first; block < last; block++) {
        /* The first tokens wait for the weights' memory; the others find them in a cache. */
#define SOON STREAM_AHEAD
#define MORE ahead_take(ahead, linear->in / MORE_EVERY)
        TILES
#undef SOON
#undef MORE
        if (count < tokens)
            again4(linear, from_token(x, linear->in, (size_t)count), y + (size_t)count * stride,
                   stride, tokens - count, block, block + 1);
    }
}

#undef TILES
#undef TILE

#endif
