/* What linears multiply: a token's activations as integers.
 *
 * Weights of 8 bits and adapters meet two rows of codes, high and low, of which
 * `lorry.model.int8` has the arithmetic. Weights of 4 bits meet a row of bytes with a scale for
 * each CHUNK of inputs, and a second row of what the first left over, where a chunk is far larger
 * than the others: `lorry.model.four_bit`.
 */
#ifndef LORRY_ACTIVATIONS_H
#define LORRY_ACTIVATIONS_H

#include "ahead.h"
#include "step.h"
#include "vectors.h"

#define CODES 63
#define OFFSET 64 /* codes are stored unsigned, 1 to 127 */
#define CHUNK 64   /* inputs with one scale */
#define BYTES 127  /* the largest of a chunk's bytes */
#define LOW_BYTES 254 /* what one of the high bytes is worth in low ones */
#define FAR 2 /* a chunk gets low bytes if it is this many times the average of its row */

#define STREAM_AHEAD 4096 /* bytes; half of it is slower, twice of it no faster */
#define MORE_EVERY 16     /* inputs; 4 asks for more than comes, and everything waits */

#define VECTORS (BLOCK / WIDTH)

/* A chunk of a token's bytes. */
typedef struct {
    float scale;     /* what one of the high bytes is worth */
    int32_t sum;     /* of the high bytes */
    int32_t low_sum; /* of the low ones, if it has some */
    int32_t next;    /* chunk of the token that has some; -1: none is left */
} Chunk;

/* Of some tokens. Each linear reads one of the two forms. */
typedef struct {
    uint8_t *codes; /* [T, 2, in] */
    float *scale_T; /* of the high row's codes */
    int8_t *high, *low; /* [in / CHUNK, stride, CHUNK]: what tokens side by side meet at once */
    Chunk *chunks;      /* [in / CHUNK, stride] */
    int32_t *low_T;     /* the first chunk with low bytes; -1: there is none */
    size_t stride;
} Activations;

/* Of `tokens`. 16 more than a multiple of 64 cache lines: a few tokens' chunks lie in different
 * sets of the nearest cache. */
INLINE size_t stride_of(size_t tokens) { return (tokens + 63) / 64 * 64 + 16; }

/* Those from token `t` on. */
INLINE Activations from_token(Activations x, int in, size_t t) {
    return (Activations){
        .codes = x.codes + t * 2 * (size_t)in,
        .scale_T = x.scale_T + t,
        .high = x.high + t * CHUNK,
        .low = x.low + t * CHUNK,
        .chunks = x.chunks + t,
        .low_T = x.low_T + t,
        .stride = x.stride,
    };
}

typedef uint8_t Codes8 __attribute__((vector_size(WIDTH), aligned(1), may_alias));

/* A row of zeros has no largest element. One with a NaN must keep it: its codes mean nothing,
 * their scale is then NaN, too. */
INLINE float at_least_tiny(float absmax) { return absmax < 1e-30f ? 1e-30f : absmax; }

/* x [in] -> codes [2, in], and the scale of the high row's codes. */
INLINE float encode(const float *x, uint8_t *codes, int in) {
    const float absmax = at_least_tiny(largest_magnitude(x, in));
    Floats factor = splat(CODES / absmax);
    uint8_t *high = codes, *low = codes + in;
    for (int i = 0; i < in; i += WIDTH) {
        Floats code = load(x + i) * factor, rounded = nearest(code);
        Floats rest = nearest((code - rounded) * splat(CODES));
        *(Codes8 *)(high + i) = __builtin_convertvector(to_ints(rounded) + OFFSET, Codes8);
        *(Codes8 *)(low + i) = __builtin_convertvector(to_ints(rest) + OFFSET, Codes8);
    }
    return absmax / CODES;
}

/* CHUNK numbers, in units of a byte, -> bytes; the sum of these. rest: what they leave over, times
 * LOW_BYTES. */
INLINE int32_t encode_chunk(const float *x, Floats factor, int8_t *bytes, float *rest) {
    Ints total = {0};
    for (int i = 0; i < CHUNK; i += WIDTH) {
        const Floats number = load(x + i) * factor, rounded = nearest(number);
        const Ints code = to_ints(rounded);
        *(Codes8 *)(bytes + i) = __builtin_convertvector(code, Codes8);
        total += code;
        if (rest) store(rest + i, (number - rounded) * splat(LOW_BYTES));
    }
    return sum_of_ints(total);
}

/* x [in] -> one token's bytes and chunks. */
INLINE void encode_chunks(const float *x, Activations to, int in) {
    const int count = in / CHUNK;
    int32_t *next = to.low_T;
    float all = 0;
    for (int c = 0; c < count; c++) {
        const float absmax = at_least_tiny(largest_magnitude(x + c * CHUNK, CHUNK));
        to.chunks[c * to.stride].scale = absmax;
        all += absmax;
    }
    const float most = FAR * (all / (float)count);
    for (int c = 0; c < count; c++) {
        Chunk *chunk = to.chunks + c * to.stride;
        const size_t at = c * to.stride * CHUNK;
        const float absmax = chunk->scale;
        float rest[CHUNK];
        chunk->scale = absmax / BYTES;
        chunk->sum = encode_chunk(x + c * CHUNK, splat(BYTES / absmax), to.high + at, rest);
        if (!(absmax > most)) continue;
        chunk->low_sum = encode_chunk(rest, splat(1.0f), to.low + at, NULL);
        *next = c;
        next = &chunk->next;
    }
    *next = -1;
}

/* One token in the forms that are asked for. */
INLINE void encode_token(const float *x, Activations to, int in, int codes, int bytes) {
    if (codes) *to.scale_T = encode(x, to.codes, in);
    if (bytes) encode_chunks(x, to, in);
}

#define NOTHING ((Range){NULL, 0})

#endif
