/* Linears that read activations in chunks, in 4 and in 8 bits.
 *
 * Weights become signed bytes, in 4 bits by a shuffle that looks up a code's level, and meet the
 * activations' bytes. A chunk's sum is one of integers. The chunks' sums are scaled and added up in
 * order, output by output, those of low bytes by themselves: the bits of a result depend neither on
 * the tile nor on the width of a register. `lorry.model.chunks` says what the roundings cost.
 */
#ifndef LORRY_LINEAR_CHUNKS_H
#define LORRY_LINEAR_CHUNKS_H

#include "activations.h"
#include "ahead.h"
#include "step.h"
#include "vectors.h"

/* As many accumulators as there are registers for. More tokens share one unpacking. */
#if WIDTH == 16
#define CHUNK_TOKENS 12
#else
#define CHUNK_TOKENS 4
#endif

#define LOW_TOKENS 4 /* that share a reading of the weights */

#define NONE (-1)

/* A chunk of weights of one block. `bits`, here and below: a compile-time constant where it is
 * called. */
typedef struct {
    const uint8_t *codes;
    const uint16_t *scale; /* 4 bits */
    Ints table;            /* 4 bits: of levels */
    int soon;              /* fetch the codes that far ahead, in bytes; 0: nothing */
    Range more;            /* and a line of this for every MORE_EVERY inputs */
} Weights;

INLINE size_t chunk_bytes(int bits) { return CHUNK * BLOCK / 8 * (size_t)bits; }

/* The first chunk of a block. */
INLINE Weights weights_of(const Linear *linear, int block, int soon, Range more, int bits) {
    const size_t first = (size_t)block * (size_t)(linear->in / CHUNK);
    Weights weights = {.codes = linear->codes + first * chunk_bytes(bits), .soon = soon, .more = more};
    if (bits == 4) {
        weights.scale = linear->chunk_scale + first * BLOCK;
        weights.table = signed_table(linear->levels);
    }
    return weights;
}

INLINE void next_chunk(Weights *weights, int bits) {
    weights->codes += chunk_bytes(bits);
    if (bits == 4) weights->scale += BLOCK;
    weights->more.at += CHUNK / MORE_EVERY * LINE;
    weights->more.lines -= CHUNK / MORE_EVERY;
}

/* acc[t] += the chunk's products with x[t] [CHUNK]; `tokens` is a compile-time constant where it is
 * called. */
INLINE void multiply_chunk(Weights weights, const int8_t *const *x, Ints (*acc)[VECTORS], int tokens,
                           int bits) {
    const int inputs = 32 / bits, every = MORE_EVERY / inputs; /* of a line */
    for (int line = 0; line < CHUNK / inputs; line++) {
        const uint8_t *codes = weights.codes + line * LINE;
        /* A step of few tokens waits for the weights' memory rather than for arithmetic, and it
         * lies in runs too short for the processor to notice where they lead. */
        if (weights.soon) _mm_prefetch((const char *)codes + weights.soon, _MM_HINT_T0);
        if (line % every == 0 && line / every < weights.more.lines)
            _mm_prefetch(weights.more.at + (size_t)(line / every) * LINE, _MM_HINT_T1);
        Ints all[VECTORS];
        for (int v = 0; v < VECTORS; v++) all[v] = bytes(codes + v * 4 * WIDTH);
        for (int part = 0; part < inputs / 4; part++) {
            Ints met[VECTORS];
            for (int v = 0; v < VECTORS; v++)
                met[v] = bits == 8 ? signed_weights(all[v])
                                   : look_up(weights.table,
                                             (part ? shifted_down(all[v]) : all[v]) & 0x0f0f0f0f);
            for (int t = 0; t < tokens; t++) {
                const Ints four = all_fours(x[t] + inputs * line + 4 * part);
                for (int v = 0; v < VECTORS; v++) acc[t][v] = signed_dots(acc[t][v], met[v], four);
            }
        }
    }
}

/* total += a chunk's sum of one token, in WIDTH outputs from `v` on. */
INLINE Floats with_chunk(Floats total, Ints sum, Weights weights, int v, float x_scale, int bits) {
    Floats scale = splat(x_scale);
    if (bits == 4) scale *= load_half(weights.scale + v * WIDTH);
    return fused(to_floats(sum), scale, total);
}

/* low[at[k]] += what the low bytes of `tokens` tokens of a chunk add. `tokens`: a compile-time
 * constant where it is called. */
INLINE void add_low(Weights weights, Activations x, size_t chunk, const int *at,
                    Floats (*low)[VECTORS], int tokens, int bits) {
    const int8_t *bytes_of[LOW_TOKENS];
    const Chunk *of[LOW_TOKENS];
    Ints acc[LOW_TOKENS][VECTORS];
    for (int k = 0; k < tokens; k++) {
        const size_t place = chunk * x.stride + (size_t)at[k];
        bytes_of[k] = x.low + place * CHUNK;
        of[k] = x.chunks + place;
        for (int v = 0; v < VECTORS; v++) acc[k][v] = (Ints){0} + of[k]->low_start;
    }
    weights.soon = 0;
    weights.more = NOTHING;
    multiply_chunk(weights, bytes_of, acc, tokens, bits);
    for (int k = 0; k < tokens; k++)
        for (int v = 0; v < VECTORS; v++)
            low[at[k]][v] = with_chunk(low[at[k]][v], acc[k][v], weights, v,
                                       of[k]->scale * (1.0f / LOW_BYTES), bits);
}

/* The same of the tokens in `far`, a bit for each. A function of its own: few chunks are far. */
static __attribute__((noinline)) void add_lows(const Weights *weights, Activations x, size_t chunk,
                                               unsigned far, Floats (*low)[VECTORS], int bits) {
    while (far) {
        int at[LOW_TOKENS], count = 0;
        for (; far && count < LOW_TOKENS; far &= far - 1) at[count++] = __builtin_ctz(far);
#define LOW(T)                                                               \
    if (count == T) {                                                        \
        if (bits == 8) add_low(*weights, x, chunk, at, low, T, 8);           \
        else add_low(*weights, x, chunk, at, low, T, 4);                     \
    }
        LOW(1) LOW(2) LOW(3) LOW(4)
#undef LOW
    }
}

/* The only chunk of a token that is far; NONE: there is none, or there are several. */
INLINE int only_far(Activations x, int in) {
    int found = NONE;
    for (int c = 0; c < in / CHUNK; c++) {
        if (!x.far[(size_t)c * x.stride]) continue;
        if (found != NONE) return NONE;
        found = c;
    }
    return found;
}

/* What the low bytes of one token's chunk add to a block of 4 bits. A function of its own: it keeps
 * no register from the chunks before. */
static __attribute__((noinline)) void low_of_only(const Linear *linear, Activations x, int block,
                                                  int chunk, Floats (*low)[VECTORS]) {
    static const int first[1] = {0};
    Weights weights = weights_of(linear, block, 0, NOTHING, 4);
    weights.codes += (size_t)chunk * chunk_bytes(4);
    weights.scale += chunk * BLOCK;
    for (int v = 0; v < VECTORS; v++) low[0][v] = splat(0);
    add_low(weights, x, (size_t)chunk, first, low, 1, 4);
}

/* WIDTH outputs from `o` on of one token. */
INLINE Floats answer_of(const Linear *linear, int o, Floats total, Floats low) {
    Floats out = (total + low) * load(linear->scale_O + o);
    if (linear->bias_O) out += load(linear->bias_O + o);
    return out;
}

/* `tokens` x one block of outputs; `tokens` is a compile-time constant where it is called. `soon`:
 * fetch the weights that far ahead, in bytes; 0: nothing. `more`: what else to fetch meanwhile, a
 * line for every `MORE_EVERY` inputs. `only`: the token's only far chunk, whose low bytes are then
 * multiplied last; NONE: they are multiplied chunk by chunk. The bits are the same. */
INLINE void tile(const Linear *linear, Activations x, float *y, int stride, int block, int soon,
                 Range more, int only, int tokens, int bits) {
    Weights weights = weights_of(linear, block, soon, more, bits);
    Floats total[CHUNK_TOKENS][VECTORS], low[CHUNK_TOKENS][VECTORS];
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < VECTORS; v++) total[t][v] = low[t][v] = splat(0);
    for (size_t c = 0; c < (size_t)(linear->in / CHUNK); c++) {
        const Chunk *of = x.chunks + c * x.stride;
        const int8_t *bytes_of[CHUNK_TOKENS];
        Ints acc[CHUNK_TOKENS][VECTORS];
        for (int t = 0; t < tokens; t++) {
            bytes_of[t] = x.high + (c * x.stride + (size_t)t) * CHUNK;
            for (int v = 0; v < VECTORS; v++) acc[t][v] = (Ints){0} + of[t].start;
        }
        multiply_chunk(weights, bytes_of, acc, tokens, bits);
        for (int t = 0; t < tokens; t++)
            for (int v = 0; v < VECTORS; v++)
                total[t][v] = with_chunk(total[t][v], acc[t][v], weights, v, of[t].scale, bits);
        /* Now, as the weights are near: read again later, they would stop the stream from memory. */
        const unsigned far = far_tokens(x, c, tokens);
        if (__builtin_expect(far != 0, 0) && only == NONE) {
            static const int first[1] = {0};
            if (tokens == 1) add_low(weights, x, c, first, low, 1, bits);
            else add_lows(&weights, x, c, far, low, bits);
        }
        next_chunk(&weights, bits);
    }
    if (bits == 4 && tokens == 1 && only != NONE) {
        Floats last[1][VECTORS];
        low_of_only(linear, x, block, only, last);
        for (int v = 0; v < VECTORS; v++) low[0][v] = last[0][v];
    }
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < VECTORS; v++) {
            const int o = block * BLOCK + v * WIDTH;
            store(y + (size_t)t * stride + o, answer_of(linear, o, total[t][v], low[t][v]));
        }
}

#define TILE(T, BITS)                                                                             \
    if (count == T)                                                                               \
        tile(linear, from_token(x, linear->in, t), y + (size_t)t * stride, stride, block, soon,   \
             more, only, T, BITS);
#if CHUNK_TOKENS > 4
#define TILES(B)                                                                            \
    TILE(1, B) TILE(2, B) TILE(3, B) TILE(4, B) TILE(5, B) TILE(6, B) TILE(7, B) TILE(8, B) \
        TILE(9, B) TILE(10, B) TILE(11, B) TILE(12, B)
#else
#define TILES(B) TILE(1, B) TILE(2, B) TILE(3, B) TILE(4, B)
#endif

/* again: output blocks `first` to `last` - 1 of every token, y [T, stride]; nothing is fetched.
 * blocks: the same, with what comes next fetched meanwhile. Functions of their own: a compiler that
 * sees several makes each slower. */
#define BLOCKS(BITS)                                                                            \
    static __attribute__((noinline)) void again##BITS(const Linear *linear, Activations x,      \
                                                      float *y, int stride, int tokens,         \
                                                      int first, int last) {                    \
        const int soon = 0, only = NONE;                                                        \
        const Range more = NOTHING;                                                             \
        for (int block = first; block < last; block++)                                          \
            for (int t = 0, count; t < tokens; t += count) {                                    \
                count = tokens - t < CHUNK_TOKENS ? tokens - t : CHUNK_TOKENS;                  \
                TILES(BITS)                                                                     \
            }                                                                                   \
    }                                                                                           \
    static __attribute__((noinline)) void blocks##BITS(const Linear *linear, Activations x,     \
                                                       float *y, int stride, int tokens,        \
                                                       int first, int last, Ahead *ahead) {     \
        const int count = tokens < CHUNK_TOKENS ? tokens : CHUNK_TOKENS, t = 0;                 \
        const int soon = STREAM_AHEAD;                                                          \
        /* One token of 4 bits waits for memory, which comes sooner so. */                      \
        const int only = BITS == 4 && tokens == 1 ? only_far(x, linear->in) : NONE;             \
        for (int block = first; block < last; block++) {                                        \
            /* The first tokens wait for the weights' memory; the others find them near. */     \
            const Range more = ahead_take(ahead, linear->in / MORE_EVERY);                      \
            TILES(BITS)                                                                         \
            if (count < tokens)                                                                 \
                again##BITS(linear, from_token(x, linear->in, (size_t)count),                   \
                            y + (size_t)count * stride, stride, tokens - count, block,          \
                            block + 1);                                                         \
        }                                                                                       \
    }
BLOCKS(4)
BLOCKS(8)

#undef BLOCKS
#undef TILES
#undef TILE

#endif
