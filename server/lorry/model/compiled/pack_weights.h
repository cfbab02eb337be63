/* Weights of a linear, row by row, to the order in which a step reads them: the arithmetic of
 * pack.py, bit for bit. Rows beyond the linear's own are zero.
 */
#ifndef LORRY_PACK_WEIGHTS_H
#define LORRY_PACK_WEIGHTS_H

#include "activations.h"
#include "step.h"
#include "vectors.h"
#include <math.h>
#include <string.h>

/* codes [rows, in] -> packed [blocks, in / 4, BLOCK, 4] and sums [blocks * BLOCK]; the blocks
 * were zero. */
static void pack_weights8(const int8_t *codes, int rows, int in, int8_t *packed, int32_t *sums) {
    for (int o = 0; o < rows; o++, codes += in) {
        int8_t *to = packed + (size_t)(o / BLOCK) * BLOCK * (size_t)in + o % BLOCK * 4;
        int32_t sum = 0;
        for (int i = 0; i < in; i += 4) {
            memcpy(to + (size_t)i * BLOCK, codes + i, 4);
            sum += codes[i] + codes[i + 1] + codes[i + 2] + codes[i + 3];
        }
        sums[o] = sum;
    }
}

/* codes [rows, in / 2], the first of two inputs in the upper half -> packed [blocks, in / 8,
 * BLOCK, 4], the first 4 of 8 inputs in the lower halves; chunk_scale [rows, in / CHUNK] ->
 * packed_scale [blocks, in / CHUNK, BLOCK]. */
static void pack_weights4(const uint8_t *codes, const uint16_t *chunk_scale, int rows, int in,
                          uint8_t *packed, uint16_t *packed_scale) {
    const int chunks = in / CHUNK;
    for (int o = 0; o < rows; o++, codes += in / 2, chunk_scale += chunks) {
        const size_t block = (size_t)(o / BLOCK);
        uint8_t *to = packed + block * BLOCK / 2 * (size_t)in + o % BLOCK * 4;
        for (int i = 0; i < in; i += 8, to += BLOCK * 4) {
            const uint8_t *from = codes + i / 2; /* 4 bytes: inputs i to i + 7 */
            to[0] = (uint8_t)(from[0] >> 4 | (from[2] & 0xf0));
            to[1] = (uint8_t)((from[0] & 15) | from[2] << 4);
            to[2] = (uint8_t)(from[1] >> 4 | (from[3] & 0xf0));
            to[3] = (uint8_t)((from[1] & 15) | from[3] << 4);
        }
        for (int c = 0; c < chunks; c++)
            packed_scale[(block * (size_t)chunks + (size_t)c) * BLOCK + o % BLOCK] = chunk_scale[c];
    }
}

/* w [rows, in] -> codes of 8 bits and the scale of each row: bitsandbytes' row-wise
 * quantization (arXiv:2208.07339, section 2.1). */
static void quantize8(const float *w, int rows, int in, int8_t *codes, float *scale) {
    typedef int8_t Bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));
    for (int o = 0; o < rows; o++, w += in, codes += in) {
        float largest = largest_magnitude(w, in);
        if (largest < 1e-30f) largest = 1e-30f;
        const Floats factor = splat(127.0f / largest);
        for (int i = 0; i < in; i += WIDTH)
            *(Bytes *)(codes + i) =
                __builtin_convertvector(to_ints(nearest(load(w + i) * factor)), Bytes);
        scale[o] = largest / 127.0f;
    }
}

#endif
