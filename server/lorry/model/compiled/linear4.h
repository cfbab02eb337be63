/* Weights of 4 bits, in bitsandbytes' blocks: nf4 and fp4 differ in their 16 levels alone.
 *
 * A code becomes its level, a signed byte, by one shuffle; from there on the arithmetic is that
 * of 8 bits, integer for integer within a chunk of inputs. The chunks' sums are scaled and added
 * up in order, output by output: the bits of a result depend neither on the tile nor on the
 * width of a register. `lorry.model.four_bit` says how a weight becomes codes, and what the
 * rounded levels cost.
 */
#ifndef LORRY_LINEAR4_H
#define LORRY_LINEAR4_H

#include "activations.h"
#include "ahead.h"
#include "step.h"
#include "vectors.h"

#define CHUNK 64                /* inputs with one scale */
#define CHUNK_LINES (CHUNK / 8) /* cache lines of codes in a chunk of a block */

/* As many accumulators as there are registers for. More tokens share one unpacking. */
#if WIDTH == 16
#define TILE_TOKENS4 8
#else
#define TILE_TOKENS4 2
#endif

/* Two operands of a dot product, of 4 inputs each. */
typedef struct {
    Ints first, second;
} Levels;

/* `total` and a chunk more, of its rows' sums. */
INLINE Floats with_chunk4(Floats total, Ints high, Ints low, Floats scale) {
    return fused(fused(to_floats(low), splat(1.0f / CODES), to_floats(high)), scale, total);
}

/* WIDTH outputs from `o` on of one token, of all its chunks. */
INLINE Floats answer4(const Linear *linear, int o, Floats total, Floats offset, Floats scale,
                      float x_scale) {
    Floats out = (total - offset) * scale * splat(x_scale);
    if (linear->bias_O) out += load(linear->bias_O + o);
    return out;
}

/* `tokens` x one block of outputs; `tokens` is a compile-time constant where it is called. `soon`:
 * fetch the weights that far ahead, in bytes; 0: nothing. `more`: what else to fetch meanwhile, a
 * line for every `MORE_EVERY` inputs. */
INLINE void tile4(const Linear *linear, const uint8_t *codes, const float *x_scale, float *y,
                  int stride, int block, int soon, Range more, int tokens) {
    const int in = linear->in, rows = 2 * tokens;
    const uint8_t *weights = linear->codes + (size_t)block * (size_t)in * (BLOCK / 2);
    const uint16_t *chunk_scale = linear->chunk_scale + (size_t)block * (size_t)(in / CHUNK) * BLOCK;
    const Ints table = all_sixteens(linear->levels);
    Floats total[TILE_TOKENS4][VECTORS];
    for (int t = 0; t < tokens; t++)
        for (int v = 0; v < VECTORS; v++) total[t][v] = splat(0);
    for (int i = 0; i < in; i += CHUNK) {
        Ints acc[2 * TILE_TOKENS4][VECTORS];
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECTORS; v++) acc[r][v] = (Ints){0};
        for (int line = 0; line < CHUNK_LINES; line++, weights += LINE) {
            const int at = i + 8 * line;
            if (soon) _mm_prefetch((const char *)weights + soon, _MM_HINT_T0);
            if (at % MORE_EVERY == 0 && at < MORE_EVERY * more.lines)
                _mm_prefetch(more.at + (size_t)at / MORE_EVERY * LINE, _MM_HINT_T1);
            Levels levels[VECTORS];
            for (int v = 0; v < VECTORS; v++) {
                const Ints both = bytes(weights + v * 4 * WIDTH);
                levels[v].first = look_up(table, both & 0x0f0f0f0f);
                levels[v].second = look_up(table, shifted_down(both) & 0x0f0f0f0f);
            }
            for (int r = 0; r < rows; r++) {
                const uint8_t *row = codes + (size_t)r * (size_t)in + at;
                const Ints first = all_fours(row), second = all_fours(row + 4);
                for (int v = 0; v < VECTORS; v++) {
                    acc[r][v] = dots(acc[r][v], first, levels[v].first);
                    acc[r][v] = dots(acc[r][v], second, levels[v].second);
                }
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            const Floats scale = load_half(chunk_scale + i / CHUNK * BLOCK + v * WIDTH);
            for (int t = 0; t < tokens; t++)
                total[t][v] = with_chunk4(total[t][v], acc[2 * t][v], acc[2 * t + 1][v], scale);
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        const int o = block * BLOCK + v * WIDTH;
        const Floats offset = load(linear->offset_O + o);
        const Floats scale = load(linear->scale_O + o);
        for (int t = 0; t < tokens; t++)
            store(y + (size_t)t * stride + o,
                  answer4(linear, o, total[t][v], offset, scale, x_scale[t]));
    }
}

#define TILE(T)                                                                         \
    if (count == T)                                                                     \
        tile4(linear, codes + t * row, x_scale + t, y + (size_t)t * stride, stride, block, \
              SOON, MORE, T);
#if TILE_TOKENS4 > 2
#define TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8)
#else
#define TILES TILE(1) TILE(2)
#endif

/* Output blocks `first` to `last` - 1 of every token: y [T, stride]. Nothing is fetched. A
 * function of its own: a compiler that sees both makes the other one slower. */
static __attribute__((noinline)) void again4(const Linear *linear, const uint8_t *codes,
                                             const float *x_scale, float *y, int stride,
                                             int tokens, int first, int last) {
    const size_t row = 2 * (size_t)linear->in;
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
static void blocks4(const Linear *linear, const uint8_t *codes, const float *x_scale, float *y,
                    int stride, int tokens, int first, int last, Ahead *ahead) {
    const size_t row = 2 * (size_t)linear->in;
    const int count = tokens < TILE_TOKENS4 ? tokens : TILE_TOKENS4, t = 0;
    for (int block = first; block < last; block++) {
        /* The first tokens wait for the weights' memory; the others find them in a cache. */
#define SOON STREAM_AHEAD
#define MORE ahead_take(ahead, linear->in / MORE_EVERY)
        TILES
#undef SOON
#undef MORE
        if (count < tokens)
            again4(linear, codes + count * row, x_scale + count, y + (size_t)count * stride,
                   stride, tokens - count, block, block + 1);
    }
}

#undef TILES
#undef TILE

#endif
