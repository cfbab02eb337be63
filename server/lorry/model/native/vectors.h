/* Sixteen floats at a time, in the compiler's own vector types: one source for AVX2
 * (two registers each) and AVX-512 (one). Only the integer dot product is written by
 * hand for each. */
#ifndef LORRY_VECTORS_H
#define LORRY_VECTORS_H

#include <immintrin.h>
#include <stdint.h>

#define WIDTH 16

/* aligned(4): loads and stores make no claim on alignment. */
typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load(const float *p) { return *(const Floats *)p; }
INLINE void store(float *p, Floats v) { *(Floats *)p = v; }
INLINE Floats all(float x) { return (Floats){0} + x; }
INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }
INLINE Ints to_ints(Floats v) { return __builtin_convertvector(v, Ints); }

INLINE float sum(Floats v) {
    float lanes[WIDTH];
    store(lanes, v);
    float total = 0;
    for (int i = 0; i < 8; i++) lanes[i] += lanes[i + 8];
    for (int i = 0; i < 4; i++) lanes[i] += lanes[i + 4];
    total = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
    return total;
}

INLINE float largest(Floats v) {
    float lanes[WIDTH];
    store(lanes, v);
    float best = lanes[0];
    for (int i = 1; i < WIDTH; i++) best = lanes[i] > best ? lanes[i] : best;
    return best;
}

/* `where` is all ones or all zeros in each lane, as comparisons give it. */
INLINE Floats pick(Ints where, Floats yes, Floats no) {
    return (Floats)((where & (Ints)yes) | (~where & (Ints)no));
}

INLINE Floats greater(Floats a, Floats b) { return pick(a > b, a, b); }
INLINE Floats smaller(Floats a, Floats b) { return pick(a < b, a, b); }

INLINE Floats magnitude(Floats v) {
    return (Floats)((Ints)v & ((Ints){0} + 0x7fffffff));
}

/* To the nearest integer, halves to even, for |v| < 2^22. */
INLINE Floats nearest(Floats v) {
    const Floats magic = all(12582912.0f); /* 1.5 * 2^23 */
    return (v + magic) - magic;
}

/* e^v, relative error below 2e-7: Cody-Waite reduction and Cephes' polynomial. */
INLINE Floats exponential(Floats v) {
    v = greater(smaller(v, all(88.0f)), all(-87.0f));
    Floats n = nearest(v * all(1.44269504088896341f));
    Floats r = v - n * all(0.693359375f) - n * all(-2.12194440e-4f);
    Floats p = all(1.9875691500e-4f);
    p = p * r + all(1.3981999507e-3f);
    p = p * r + all(8.3334519073e-3f);
    p = p * r + all(4.1665795894e-2f);
    p = p * r + all(1.6666665459e-1f);
    p = p * r + all(5.0000001201e-1f);
    p = p * r * r + r + all(1.0f);
    Ints power = (to_ints(n) + 127) << 23;
    return p * (Floats)power;
}

/* acc += for each of 16 outputs, the dot product of 4 unsigned codes (the same for all)
 * and 4 signed ones. Unsigned codes are at most 127: AVX2's 16-bit sums stay exact. */
INLINE Ints dot4(Ints acc, int32_t codes, const int8_t *weights) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(codes),
                                     _mm512_loadu_si512(weights));
#else
    const __m256i x = _mm256_set1_epi32(codes), ones = _mm256_set1_epi16(1);
    union {
        Ints whole;
        __m256i half[2];
    } a = {.whole = acc};
    for (int i = 0; i < 2; i++) {
        __m256i w = _mm256_loadu_si256((const __m256i *)(weights + 32 * i));
        __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), ones);
        a.half[i] = _mm256_add_epi32(a.half[i], sums);
    }
    return a.whole;
#endif
}

#endif
