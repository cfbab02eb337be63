/* Weights to 4 bits: the arithmetic of bitsandbytes' `quantize_4bit`, bit for bit.
 *
 * A weight over its block's largest magnitude falls between two bounds, which are the middles
 * between the levels; their number is the code's place in ascending order.
 */
#ifndef LORRY_QUANTIZE4_H
#define LORRY_QUANTIZE4_H

#include "step.h"
#include "vectors.h"

#define BOUNDS 15

/* w [blocks, size] -> packed [blocks, size / 2], the first of two codes in the upper half, and
 * absmax [blocks]. order: each place's code. size: a multiple of 16. */
static void quantize4(const float *w, int64_t blocks, int size, const float *bounds,
                      const uint8_t *order, uint8_t *packed, float *absmax) {
    for (int64_t b = 0; b < blocks; b++, w += size, packed += size / 2) {
        const float largest = largest_magnitude(w, size);
        absmax[b] = largest;
        const Floats factor = splat(1.0f / (largest > 1e-38f ? largest : 1e-38f));
        for (int i = 0; i < size; i += WIDTH) {
            /* A NaN is above every bound for bitsandbytes, too. */
            Floats scaled = load(w + i) * factor;
            scaled = smaller(splat(1.0f), greater(splat(-1.0f), scaled));
            Ints place = {0};
            for (int k = 0; k < BOUNDS; k++) place -= (Ints)(scaled > splat(bounds[k]));
            for (int l = 0; l < WIDTH; l += 2)
                packed[(i + l) / 2] = (uint8_t)(order[place[l]] << 4 | order[place[l + 1]]);
        }
    }
}

#endif
