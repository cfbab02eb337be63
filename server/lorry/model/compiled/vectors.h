/* As many floats at a time as a register holds, in the compiler's own vector types: one
 * source for AVX2 (8) and AVX-512 (16). What the types cannot say is written by hand for
 * each, at the end.
 *
 * Multiply-adds are fused where `fused` stands and nowhere else (-ffp-contract=off):
 * left to itself a compiler fuses in one copy of a loop and not in another, and a row's
 * last bits would depend on how many rows lie beside it.
 */
#ifndef LORRY_VECTORS_H
#define LORRY_VECTORS_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 16 /* outputs that lie together in packed weights; every width is a multiple */

/* A type wider than the registers would live in memory. */
#if defined(__AVX512VNNI__)
#define WIDTH 16
#else
#define WIDTH 8
#endif

/* aligned(4): loads and stores make no claim on alignment. */
typedef float Floats __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load(const float *p) { return *(const Floats *)p; }
INLINE void store(float *p, Floats v) { *(Floats *)p = v; }
INLINE Floats splat(float x);
INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }
INLINE Ints to_ints(Floats v) { return __builtin_convertvector(v, Ints); }

/* a * b + c, rounded once. */
INLINE Floats fused(Floats a, Floats b, Floats c);
/* a > b ? a : b and a < b ? a : b: the second where one of them is not a number. */
INLINE Floats greater(Floats a, Floats b);
INLINE Floats smaller(Floats a, Floats b);
INLINE Ints greater_int(Ints a, Ints b);
INLINE float sum(Floats v);
INLINE int32_t sum_of_ints(Ints v) {
    int32_t total = 0;
    for (int i = 0; i < WIDTH; i++) total += v[i];
    return total;
}
/* The upper half of a float, which is a number of its own, to single. */
INLINE Floats load_bfloat(const uint16_t *p);
/* Half precision to single, and single to the nearest half, to even between two. */
INLINE Floats load_half(const uint16_t *p);
INLINE void store_half(uint16_t *p, Floats v);
/* The floats at WIDTH places. */
INLINE Floats gather(const float *p, Ints places);
/* The sums of WIDTH vectors, each in its lane. */
INLINE Floats sums(const Floats *v);
/* As many bytes as a register holds; 4 or 8 bytes, again and again. */
INLINE Ints bytes(const void *p) { return *(const Ints *)p; }
INLINE Ints all_fours(const void *p);
INLINE Ints all_eights(const void *p);
/* 16 bytes, again and again. */
INLINE Ints all_sixteens(const void *p);
/* In each byte, that byte of the table's 16 which `indices` (0 to 15) names. */
INLINE Ints look_up(Ints table, Ints indices);
/* Each byte's upper half in its lower; the upper half is undefined. */
INLINE Ints shifted_down(Ints v);
/* acc += in each of WIDTH lanes, the dot product of 4 unsigned and 4 signed bytes. AVX2 adds
 * two products in 16 bits: those up to 128 and 127, or 255 and 64, stay exact. */
INLINE Ints dots(Ints acc, Ints without_sign, Ints with_sign);

/* acc += in each of WIDTH lanes, the dot product of 4 weights and 4 bytes, both with a sign: exact
 * for bytes up to 127. Weights are `signed_weights` or looked up in `signed_table`, and acc begins
 * as `start_of` the sum of all bytes that it will meet. */
INLINE Ints signed_weights(Ints weights);
INLINE Ints signed_table(const int8_t *levels);
INLINE int32_t start_of(int32_t sum);
INLINE Ints signed_dots(Ints acc, Ints weights, Ints x);

/* A bit for each lane that is all ones. */
INLINE unsigned lanes_of(Ints mask);

/* The largest of its lanes, where all are numbers. */
INLINE float largest(Floats v);

/* `a` in lanes that are all ones, `b` in lanes that are all zeros. */
INLINE Floats chosen(Ints mask, Floats a, Floats b) {
    return (Floats)(((Ints)a & mask) | ((Ints)b & ~mask));
}

/* to[d * stride + l] = from[l][at + d], for BLOCK rows and 8 d. */
INLINE void transpose_eight(const uint16_t *const *from, int at, uint16_t *to, size_t stride) {
    __m256i a[8], b[8];
    for (int l = 0; l < 8; l++) {
        const __m128i low = _mm_loadu_si128((const __m128i *)(from[l] + at));
        const __m128i high = _mm_loadu_si128((const __m128i *)(from[l + 8] + at));
        a[l] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    for (int l = 0; l < 8; l += 2) {
        b[l] = _mm256_unpacklo_epi16(a[l], a[l + 1]);
        b[l + 1] = _mm256_unpackhi_epi16(a[l], a[l + 1]);
    }
    for (int l = 0; l < 8; l += 4)
        for (int i = 0; i < 2; i++) {
            a[l + 2 * i] = _mm256_unpacklo_epi32(b[l + i], b[l + 2 + i]);
            a[l + 2 * i + 1] = _mm256_unpackhi_epi32(b[l + i], b[l + 2 + i]);
        }
    for (int d = 0; d < 4; d++) {
        _mm256_storeu_si256((__m256i *)(to + 2 * d * stride), _mm256_unpacklo_epi64(a[d], a[d + 4]));
        _mm256_storeu_si256((__m256i *)(to + (2 * d + 1) * stride),
                            _mm256_unpackhi_epi64(a[d], a[d + 4]));
    }
}

/* The largest |x|; not a number where one of them is none. As integers, the bits of
 * floats without a sign are in the floats' order, and above infinity lie the NaNs. */
INLINE float largest_magnitude(const float *x, int count) {
    Ints most = {0};
    for (int i = 0; i < count; i += WIDTH)
        most = greater_int(most, (Ints)load(x + i) & 0x7fffffff);
    union {
        int32_t bits;
        float value;
    } best = {.bits = most[0]};
    for (int i = 1; i < WIDTH; i++) best.bits = most[i] > best.bits ? most[i] : best.bits;
    return best.value;
}

/* To the nearest integer, halves to even, for |v| < 2^22. */
INLINE Floats nearest(Floats v) {
    const Floats magic = splat(12582912.0f); /* 1.5 * 2^23 */
    return (v + magic) - magic;
}

/* e^v, relative error below 2e-7: Cody-Waite reduction and Cephes' polynomial. */
INLINE Floats exponential(Floats v) {
    v = greater(splat(-87.0f), smaller(splat(88.0f), v));
    Floats n = nearest(v * splat(1.44269504088896341f));
    Floats r = fused(n, splat(2.12194440e-4f), fused(n, splat(-0.693359375f), v));
    Floats p = splat(1.9875691500e-4f);
    p = fused(p, r, splat(1.3981999507e-3f));
    p = fused(p, r, splat(8.3334519073e-3f));
    p = fused(p, r, splat(4.1665795894e-2f));
    p = fused(p, r, splat(1.6666665459e-1f));
    p = fused(p, r, splat(5.0000001201e-1f));
    p = fused(p * r, r, r) + splat(1.0f);
    Ints power = (to_ints(n) + 127) << 23;
    return p * (Floats)power;
}

#if WIDTH == 16

INLINE Floats splat(float x) { return (Floats)_mm512_set1_ps(x); }
INLINE Floats fused(Floats a, Floats b, Floats c) {
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE Floats greater(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE Ints greater_int(Ints a, Ints b) {
    return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b);
}
INLINE unsigned lanes_of(Ints mask) { return _mm512_movepi32_mask((__m512i)mask); }
INLINE float sum(Floats v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE float largest(Floats v) { return _mm512_reduce_max_ps((__m512)v); }
INLINE Floats gather(const float *p, Ints places) {
    return (Floats)_mm512_i32gather_ps((__m512i)places, p, 4);
}
INLINE Floats load_bfloat(const uint16_t *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (Floats)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE Floats load_half(const uint16_t *p) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE void store_half(uint16_t *p, Floats v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE Floats sums(const Floats *v) {
    __m512d fours[4];
    for (int i = 0; i < 4; i++) {
        __m512d twos[2];
        for (int j = 0; j < 2; j++) {
            const __m512 a = (__m512)v[4 * i + 2 * j], b = (__m512)v[4 * i + 2 * j + 1];
            twos[j] = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        }
        fours[i] = (__m512d)_mm512_add_ps((__m512)_mm512_unpacklo_pd(twos[0], twos[1]),
                                          (__m512)_mm512_unpackhi_pd(twos[0], twos[1]));
    }
    /* Each quarter of fours[i] now has a part of the sums 4 i to 4 i + 3. */
    __m512 eights[2];
    for (int i = 0; i < 2; i++) {
        const __m512 a = (__m512)fours[2 * i], b = (__m512)fours[2 * i + 1];
        eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88),
                                  _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    return (Floats)_mm512_add_ps(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88),
                                 _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
}
INLINE Ints all_fours(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (Ints)_mm512_set1_epi32(four);
}
INLINE Ints all_eights(const void *p) {
    int64_t eight;
    memcpy(&eight, p, sizeof eight);
    return (Ints)_mm512_set1_epi64(eight);
}
INLINE Ints all_sixteens(const void *p) {
    return (Ints)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p));
}
INLINE Ints look_up(Ints table, Ints indices) {
    return (Ints)_mm512_shuffle_epi8((__m512i)table, (__m512i)indices);
}
INLINE Ints shifted_down(Ints v) { return (Ints)_mm512_srli_epi16((__m512i)v, 4); }
INLINE Ints dots(Ints acc, Ints without_sign, Ints with_sign) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)without_sign, (__m512i)with_sign);
}

#else

INLINE Floats splat(float x) { return (Floats)_mm256_set1_ps(x); }
INLINE Floats fused(Floats a, Floats b, Floats c) {
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE Floats greater(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Floats smaller(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE Ints greater_int(Ints a, Ints b) {
    return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b);
}
INLINE unsigned lanes_of(Ints mask) {
    return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps((__m256i)mask));
}
INLINE Floats gather(const float *p, Ints places) {
    return (Floats)_mm256_i32gather_ps(p, (__m256i)places, 4);
}
INLINE Floats load_bfloat(const uint16_t *p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (Floats)_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE Floats load_half(const uint16_t *p) {
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE void store_half(uint16_t *p, Floats v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE float sum(Floats v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v),
                             _mm256_extractf128_ps((__m256)v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE float largest(Floats v) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)v),
                                   _mm256_extractf128_ps((__m256)v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE Floats sums(const Floats *v) {
    __m256 fours[2];
    for (int i = 0; i < 2; i++) {
        const __m256 low = _mm256_hadd_ps((__m256)v[4 * i], (__m256)v[4 * i + 1]);
        const __m256 high = _mm256_hadd_ps((__m256)v[4 * i + 2], (__m256)v[4 * i + 3]);
        fours[i] = _mm256_hadd_ps(low, high);
    }
    /* Each half of fours[i] now has a part of the sums 4 i to 4 i + 3. */
    return (Floats)_mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                                 _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}
INLINE Ints all_fours(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (Ints)_mm256_set1_epi32(four);
}
INLINE Ints all_eights(const void *p) {
    int64_t eight;
    memcpy(&eight, p, sizeof eight);
    return (Ints)_mm256_set1_epi64x(eight);
}
INLINE Ints all_sixteens(const void *p) {
    return (Ints)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
}
INLINE Ints look_up(Ints table, Ints indices) {
    return (Ints)_mm256_shuffle_epi8((__m256i)table, (__m256i)indices);
}
INLINE Ints shifted_down(Ints v) { return (Ints)_mm256_srli_epi16((__m256i)v, 4); }
INLINE Ints dots(Ints acc, Ints without_sign, Ints with_sign) {
#if defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)without_sign, (__m256i)with_sign);
#else
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)without_sign, (__m256i)with_sign);
    return (Ints)_mm256_add_epi32((__m256i)acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

/* The instruction takes one side without a sign: weights are 128 too large, which the start makes
 * good. */
#define WEIGHT_OFFSET 128
INLINE Ints signed_weights(Ints weights) { return weights ^ (int32_t)0x80808080; }
INLINE int32_t start_of(int32_t sum) { return -WEIGHT_OFFSET * sum; }
INLINE Ints signed_dots(Ints acc, Ints weights, Ints x) { return dots(acc, weights, x); }

#else

INLINE Ints signed_weights(Ints weights) { return weights; }
INLINE int32_t start_of(int32_t sum) {
    (void)sum;
    return 0;
}
/* Weights without their sign, which the bytes take on. */
INLINE Ints signed_dots(Ints acc, Ints weights, Ints x) {
    return dots(acc, (Ints)_mm256_abs_epi8((__m256i)weights),
                (Ints)_mm256_sign_epi8((__m256i)x, (__m256i)weights));
}

#endif

INLINE Ints signed_table(const int8_t *levels) { return signed_weights(all_sixteens(levels)); }

#endif
