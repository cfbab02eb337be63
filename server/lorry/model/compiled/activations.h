/* What linears multiply: a token's activations as integers.
 *
 * Most linears meet a row of bytes with a scale for each CHUNK of inputs, and a second row of what
 * the first left over, where a chunk is far larger than the others: `lorry.model.chunks`. Output
 * heads, adapters and linears whose inputs are not whole chunks meet two rows of codes, high and
 * low, of which `lorry.model.int8` has the arithmetic.
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
/* A chunk gets low bytes if it is this many times the average of its row. */
#define FAR_4_BITS 2.0f
#define FAR_8_BITS 1.5f

#define STREAM_AHEAD 4096 /* bytes; half of it is slower, twice of it no faster */
#define MORE_EVERY 16     /* inputs; 4 asks for more than comes, and everything waits */

#define VECTORS (BLOCK / WIDTH)

/* Whether a linear reads chunks; else it reads codes. */
INLINE int reads_chunks(const Linear *linear) { return !linear->sum_O; }

/* From how many times the average on a chunk has low bytes, as this linear reads it; 0: it reads
 * codes. */
INLINE float far_of(const Linear *linear) {
    if (!reads_chunks(linear)) return 0;
    return linear->levels ? FAR_4_BITS : FAR_8_BITS;
}

/* A chunk of a token's bytes. */
typedef struct {
    float scale;       /* what one of the high bytes is worth */
    int32_t start;     /* `start_of` the sum of the high bytes */
    int32_t low_start; /* of the low ones, if it has some */
} Chunk;

/* Of some tokens, in one of the two forms or in both. */
typedef struct {
    uint8_t *codes; /* [T, 2, in] */
    float *scale_T; /* of the high row's codes */
    int8_t *high, *low; /* [in / CHUNK, stride, CHUNK]: what tokens side by side meet at once */
    Chunk *chunks;      /* [in / CHUNK, stride] */
    uint8_t *far;       /* [in / CHUNK, stride]: 255 where a chunk has low bytes, else 0 */
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
        .far = x.far + t,
        .stride = x.stride,
    };
}

/* Which of the first `tokens` tokens, 16 at most, have low bytes in a chunk: a bit for each. */
INLINE unsigned far_tokens(Activations x, size_t chunk, int tokens) {
    const __m128i far = _mm_loadu_si128((const __m128i *)(x.far + chunk * x.stride));
    return (unsigned)_mm_movemask_epi8(far) & ((1u << tokens) - 1);
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

/* x [in] -> one token's bytes and chunks, with low bytes from `far` times the average on. */
INLINE void encode_chunks(const float *x, Activations to, int in, float far) {
    const int count = in / CHUNK;
    float all = 0;
    for (int c = 0; c < count; c++) {
        const float absmax = at_least_tiny(largest_magnitude(x + c * CHUNK, CHUNK));
        to.chunks[c * to.stride].scale = absmax;
        all += absmax;
    }
    const float most = far * (all / (float)count);
    for (int c = 0; c < count; c++) {
        Chunk *chunk = to.chunks + c * to.stride;
        const size_t at = c * to.stride * CHUNK;
        const float absmax = chunk->scale;
        float rest[CHUNK];
        chunk->scale = absmax / BYTES;
        chunk->start =
            start_of(encode_chunk(x + c * CHUNK, splat(BYTES / absmax), to.high + at, rest));
        to.far[c * to.stride] = absmax > most ? 255 : 0;
        if (absmax > most)
            chunk->low_start = start_of(encode_chunk(rest, splat(1.0f), to.low + at, NULL));
    }
}

/* One token in the forms that are asked for: chunks if `far` is not 0. */
INLINE void encode_token(const float *x, Activations to, int in, int codes, float far) {
    if (codes) *to.scale_T = encode(x, to.codes, in);
    if (far > 0) encode_chunks(x, to, in, far);
}

#define NOTHING ((Range){NULL, 0})

#endif
