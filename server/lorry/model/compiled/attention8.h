/* Attention over a cache of signed bytes with a scale for each token and key head.
 *
 * Heads are turned first (`spread`), queries and keys alike, so that a product stays what it was, and values,
 * which are turned back at the end. Queries in bytes meet keys in bytes, and weights in 7 bits meet values in bytes. Within a tile a
 * key's weight is e^(score - the tile's largest) times its value's scale, in steps of a 127th of the
 * largest scale that the query sees there: one factor is left for a query and a tile.
 *
 * Sums of integers are exact in any order, and every other sum has one order that no width of a
 * register changes. So a token has the same bits on every instruction set, too.
 */
#ifndef LORRY_ATTENTION8_H
#define LORRY_ATTENTION8_H

#include "activations.h"
#include "attention.h"

#define FOUR 4 /* bytes that a lane of a product sums */

/* 1.5 * 2^23: what is added to it is rounded to an integer, in its lower bits. */
#define MAGIC 12582912.0f
#define MAGIC_BITS 0x4b400000

/* Where the product's first operand has no sign, it is stored 128 larger: `signed_dots`. */
#if defined(WEIGHT_OFFSET)
#define SIGN_BITS ((int32_t)0x80808080)
#else
#define SIGN_BITS 0
#endif

/* e^v for v <= 0, relative error below 4e-6: enough beside weights of 7 bits. */
INLINE Floats exponential_below(Floats v) {
    v = greater(splat(-87.0f), v);
    const Floats log2e = splat(1.44269504088896341f);
    const Floats rounded = fused(v, log2e, splat(MAGIC));
    const Floats r = fused(v, log2e, splat(MAGIC) - rounded);
    Floats p = splat(9.58285e-3f);
    p = fused(p, r, splat(5.590643e-2f));
    p = fused(p, r, splat(2.4024099e-1f));
    p = fused(p, r, splat(6.9312419e-1f));
    p = fused(p, r, splat(1.0f));
    return (Floats)((Ints)p + ((Ints)rounded << 23));
}

/* x [size] -> codes; what one is worth. */
INLINE float encode_bytes(const float *x, int8_t *codes, float worth, int size) {
    const Floats factor = splat(1 / worth);
    for (int d = 0; d < size; d += WIDTH)
        *(Codes8 *)(codes + d) =
            __builtin_convertvector(to_ints(nearest(load(x + d) * factor)), Codes8);
    return worth;
}

/* A head of the cache; its scale is in half precision, rounded up, and no number where one of x is
 * none or where it is beyond half precision. `lorry.model.kv_cache` has the same formula. */
INLINE void keep_bytes(const float *x, int8_t *codes, uint16_t *scale, int size) {
    const uint16_t least = 1, infinite = 0x7c00, none = 0x7e00;
    float even[size];
    spread(x, even, size);
    uint16_t half = (uint16_t)_cvtss_sh(largest_magnitude(even, size) / BYTES, _MM_FROUND_TO_POS_INF);
    half = half >= infinite ? none : MAX(half, least);
    encode_bytes(even, codes, _cvtsh_ss(half), size);
    *scale = half;
}

INLINE float encode_query(const float *x, int8_t *codes, int size) {
    float even[size];
    spread(x, even, size);
    return encode_bytes(even, codes, at_least_tiny(largest_magnitude(even, size)) / BYTES, size);
}

INLINE void fetch_bytes(const int8_t *at, int size) {
    for (int d = 0; d < size; d += LINE) _mm_prefetch((const char *)(at + d), _MM_HINT_T1);
}

/* to [KEYS]: the scales of keys `first` to `last` - 1; 0 elsewhere. */
INLINE void read_scales(const uint16_t *scales, const int32_t *cells, size_t stride, int first,
                        int last, float *to) {
    uint16_t halves[KEYS] = {0};
    for (int l = first; l < last; l++) halves[l] = scales[cells[l] * stride];
    for (int l = 0; l < KEYS; l += WIDTH) store(to + l, load_half(halves + l));
}

#if WIDTH == 16
#define SPREAD 64 /* numbers of a head that are transposed at once, where it has so many */

/* out[i] = quarter i of in[0], of in[1], in[2] and in[3]. */
INLINE void transpose_quarters(__m512i in0, __m512i in1, __m512i in2, __m512i in3, __m512i *out) {
    const __m512i a = _mm512_shuffle_i32x4(in0, in1, 0x44), b = _mm512_shuffle_i32x4(in0, in1, 0xee);
    const __m512i c = _mm512_shuffle_i32x4(in2, in3, 0x44), d = _mm512_shuffle_i32x4(in2, in3, 0xee);
    out[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    out[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    out[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    out[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

/* What `transpose_fours` does, of SPREAD numbers. */
INLINE void spread_fours(const int8_t *const *from, int at, uint8_t *to, size_t stride) {
    __m512i fours[4][4];
    for (int l = 0; l < 4; l++) {
        __m512i a[4];
        for (int k = 0; k < 4; k++)
            a[k] = _mm512_xor_si512(_mm512_loadu_si512(from[4 * l + k] + at),
                                    _mm512_set1_epi32(SIGN_BITS));
        const __m512i low = _mm512_unpacklo_epi32(a[0], a[1]);
        const __m512i high = _mm512_unpackhi_epi32(a[0], a[1]);
        const __m512i low2 = _mm512_unpacklo_epi32(a[2], a[3]);
        const __m512i high2 = _mm512_unpackhi_epi32(a[2], a[3]);
        fours[l][0] = _mm512_unpacklo_epi64(low, low2);
        fours[l][1] = _mm512_unpackhi_epi64(low, low2);
        fours[l][2] = _mm512_unpacklo_epi64(high, high2);
        fours[l][3] = _mm512_unpackhi_epi64(high, high2);
    }
    for (int k = 0; k < 4; k++) {
        __m512i whole[4];
        transpose_quarters(fours[0][k], fours[1][k], fours[2][k], fours[3][k], whole);
        for (int i = 0; i < 4; i++) _mm512_storeu_si512(to + (4 * i + k) * stride, whole[i]);
    }
}

/* What `interleave_four` does, of SPREAD numbers. */
INLINE void spread_four(const int8_t *const *from, int at, uint8_t *to) {
    __m512i a[4], whole[4];
    for (int l = 0; l < 4; l++) a[l] = _mm512_loadu_si512(from[l] + at);
    const __m512i low = _mm512_unpacklo_epi8(a[0], a[1]), high = _mm512_unpackhi_epi8(a[0], a[1]);
    const __m512i low2 = _mm512_unpacklo_epi8(a[2], a[3]), high2 = _mm512_unpackhi_epi8(a[2], a[3]);
    transpose_quarters(_mm512_unpacklo_epi16(low, low2), _mm512_unpackhi_epi16(low, low2),
                       _mm512_unpacklo_epi16(high, high2), _mm512_unpackhi_epi16(high, high2), whole);
    for (int i = 0; i < 4; i++) _mm512_storeu_si512(to + FOUR * at + 64 * i, whole[i]);
}
#endif

/* to[d / FOUR][l][d % FOUR] of BLOCK keys; those of a number lie `stride` bytes apart. As the
 * product's first operand. */
INLINE void transpose_fours(const int8_t *const *from, int size, uint8_t *to, size_t stride) {
    int d = 0;
#if WIDTH == 16
    for (; d + SPREAD <= size; d += SPREAD)
        spread_fours(from, d, to + (size_t)(d / FOUR) * stride, stride);
#endif
    for (; d < size; d += 16)
        for (int l = 0; l < BLOCK; l += 4) {
            __m128i a[4];
            for (int k = 0; k < 4; k++)
                a[k] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(from[l + k] + d)),
                                     _mm_set1_epi32(SIGN_BITS));
            const __m128i low = _mm_unpacklo_epi32(a[0], a[1]);
            const __m128i high = _mm_unpackhi_epi32(a[0], a[1]);
            const __m128i low2 = _mm_unpacklo_epi32(a[2], a[3]);
            const __m128i high2 = _mm_unpackhi_epi32(a[2], a[3]);
            uint8_t *at = to + (size_t)(d / FOUR) * stride + FOUR * l;
            _mm_storeu_si128((__m128i *)at, _mm_unpacklo_epi64(low, low2));
            _mm_storeu_si128((__m128i *)(at + stride), _mm_unpackhi_epi64(low, low2));
            _mm_storeu_si128((__m128i *)(at + 2 * stride), _mm_unpacklo_epi64(high, high2));
            _mm_storeu_si128((__m128i *)(at + 3 * stride), _mm_unpackhi_epi64(high, high2));
        }
}

/* to [size, FOUR]: of FOUR values, what belongs to a number of the head. */
INLINE void interleave_four(const int8_t *const *from, int size, uint8_t *to) {
    int d = 0;
#if WIDTH == 16
    for (; d + SPREAD <= size; d += SPREAD) spread_four(from, d, to);
#endif
    for (; d < size; d += 16) {
        __m128i a[4];
        for (int l = 0; l < 4; l++) a[l] = _mm_loadu_si128((const __m128i *)(from[l] + d));
        const __m128i low = _mm_unpacklo_epi8(a[0], a[1]), high = _mm_unpackhi_epi8(a[0], a[1]);
        const __m128i low2 = _mm_unpacklo_epi8(a[2], a[3]), high2 = _mm_unpackhi_epi8(a[2], a[3]);
        __m128i *at = (__m128i *)(to + FOUR * d);
        _mm_storeu_si128(at, _mm_unpacklo_epi16(low, low2));
        _mm_storeu_si128(at + 1, _mm_unpackhi_epi16(low, low2));
        _mm_storeu_si128(at + 2, _mm_unpacklo_epi16(high, high2));
        _mm_storeu_si128(at + 3, _mm_unpackhi_epi16(high, high2));
    }
}

/* room->value_scale, and room->values [KEYS / FOUR, size, FOUR]: of keys `first` to `last` - 1 of a
 * tile. What lies beside them has weight 0. */
static void interleave_values(const Past *past, const int32_t *cells, int first, int last,
                              int known, Room *room) {
    const int size = past->size;
    uint8_t *to = (uint8_t *)room->values;
    read_scales(past->v_scale, cells, past->scale_stride, first, last, room->value_scale);
    for (int begin = first / FOUR * FOUR; begin < last; begin += FOUR) {
        const int8_t *from[FOUR];
        for (int l = 0; l < FOUR; l++) {
            const int at = MAX(first, MIN(last - 1, begin + l)), ahead = begin + l + AHEAD_KEYS;
            from[l] = past->v_codes + cells[at] * past->cell_stride;
            if (ahead < known) fetch_bytes(past->v_codes + cells[ahead] * past->cell_stride, size);
        }
        interleave_four(from, size, to + (size_t)begin * size);
    }
}

/* The largest of a tile's value scales, and room->shares: each, in BYTES of that. */
static float share_scales(Room *room) {
    const float most = largest_magnitude(room->value_scale, KEYS);
    const Floats share = splat(BYTES) / splat(most);
    for (int l = 0; l < KEYS; l += WIDTH)
        store(room->shares + l, load(room->value_scale + l) * share);
    return most;
}

/* mixed[r] = factor[r] * mixed[r] + part_scale[r] * the sum over l of parts[r, l] * values[l], for
 * fours of keys `first` to `last` - 1. `rows`, `vectors`: constants where it is called. */
INLINE void mix_rows8(const uint8_t *values, const uint8_t *parts, size_t row_step,
                      size_t four_step, int first, int last, const float *factor,
                      const float *part_scale, float *mixed, int size, int d, int rows,
                      int vectors) {
    Ints acc[MIX_ROWS][SPAN];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) acc[r][i] = (Ints){0};
    for (int f = first; f < last; f++) {
        Ints value[SPAN];
        for (int i = 0; i < vectors; i++)
            value[i] = bytes(values + FOUR * ((size_t)f * size + d + i * WIDTH));
        for (int r = 0; r < rows; r++) {
            const Ints part = all_fours(parts + r * row_step + f * four_step);
            for (int i = 0; i < vectors; i++) acc[r][i] = dots(acc[r][i], part, value[i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) {
            float *at = mixed + (size_t)r * size + d + i * WIDTH;
            store(at, fused(to_floats(acc[r][i]), splat(part_scale[r]), load(at) * splat(factor[r])));
        }
}

/* The same, for 1 to MIX_ROWS rows and a whole head. */
INLINE void mix8(const uint8_t *values, const uint8_t *parts, size_t row_step, size_t four_step,
                 int first, int last, const float *factor, const float *part_scale, float *mixed,
                 int size, int rows) {
    for (int d = 0; d < size;) {
        const int vectors = size - d >= SPAN * WIDTH ? SPAN : 1;
#define MIX(R)                                                                                  \
    case R:                                                                                     \
        if (vectors == 1)                                                                       \
            mix_rows8(values, parts, row_step, four_step, first, last, factor, part_scale, mixed, \
                      size, d, R, 1);                                                           \
        else                                                                                    \
            mix_rows8(values, parts, row_step, four_step, first, last, factor, part_scale, mixed, \
                      size, d, R, SPAN);                                                        \
        break;
        switch (rows) {
            MIX(1)
            MIX(2)
            MIX(3)
            MIX(4)
            MIX(5)
            MIX(6)
        }
#undef MIX
        d += vectors * WIDTH;
    }
}

#endif
