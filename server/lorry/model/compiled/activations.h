/* What a linear multiplies: a token's activations as two rows of codes, high and low, of which
 * `lorry.model.int8` has the arithmetic.
 */
#ifndef LORRY_ACTIVATIONS_H
#define LORRY_ACTIVATIONS_H

#include "ahead.h"
#include "vectors.h"

#define CODES 63
#define OFFSET 64 /* codes are stored unsigned, 1 to 127 */

#define STREAM_AHEAD 4096 /* bytes; half of it is slower, twice of it no faster */
#define MORE_EVERY 16     /* inputs; 4 asks for more than comes, and everything waits */

#define VECTORS (BLOCK / WIDTH)

/* x [in] -> codes [2, in], and the scale of the high row's codes. */
INLINE float encode(const float *x, uint8_t *codes, int in) {
    float absmax = largest_magnitude(x, in);
    /* A row of zeros has no largest element. One with a NaN must keep it: its codes mean
     * nothing, their scale is then NaN, too. */
    if (absmax < 1e-30f) absmax = 1e-30f;
    Floats factor = splat(CODES / absmax);
    uint8_t *high = codes, *low = codes + in;
    typedef uint8_t Bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));
    for (int i = 0; i < in; i += WIDTH) {
        Floats code = load(x + i) * factor, rounded = nearest(code);
        Floats rest = nearest((code - rounded) * splat(CODES));
        *(Bytes *)(high + i) = __builtin_convertvector(to_ints(rounded) + OFFSET, Bytes);
        *(Bytes *)(low + i) = __builtin_convertvector(to_ints(rest) + OFFSET, Bytes);
    }
    return absmax / CODES;
}

#define NOTHING ((Range){NULL, 0})

#endif
