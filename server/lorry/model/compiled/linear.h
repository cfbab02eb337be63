/* A linear of any kind. */
#ifndef LORRY_LINEAR_H
#define LORRY_LINEAR_H

#include "linear_chunks.h"
#include "linear_codes.h"
#include "linear_tiles.h"

/* Output blocks `first` to `last` - 1 of every token: y [T, stride]. What comes next is fetched
 * meanwhile, `ahead` too. */
static void linear_blocks(const Linear *linear, Activations x, float *y, int stride, int tokens,
                          int first, int last, Ahead *ahead) {
#if HAS_TILES
    if (fits_tiles(linear, tokens)) {
        linear_in_tiles(linear, x, y, stride, tokens, first, last, ahead);
        return;
    }
#endif
    if (!reads_chunks(linear))
        blocks_of_codes(linear, x.codes, x.scale_T, y, stride, tokens, first, last, ahead);
    else if (linear->levels) blocks4(linear, x, y, stride, tokens, first, last, ahead);
    else blocks8(linear, x, y, stride, tokens, first, last, ahead);
}

/* The same of weights that were just read. */
static void linear_again(const Linear *linear, Activations x, float *y, int stride, int tokens,
                         int first, int last) {
#if HAS_TILES
    if (fits_tiles(linear, tokens)) {
        linear_in_tiles(linear, x, y, stride, tokens, first, last, NULL);
        return;
    }
#endif
    if (!reads_chunks(linear))
        again_of_codes(linear, x.codes, x.scale_T, y, stride, tokens, first, last);
    else if (linear->levels) again4(linear, x, y, stride, tokens, first, last);
    else again8(linear, x, y, stride, tokens, first, last);
}

#endif
