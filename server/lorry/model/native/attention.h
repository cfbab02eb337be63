/* One new token against its cached past, for the query heads that share a key head. */
#ifndef LORRY_ATTENTION_H
#define LORRY_ATTENTION_H

#include "step.h"
#include "vectors.h"

/* q_GD, out_GD: `group` query heads, contiguous. k_NHD, v_NHD: at this key head already.
 * cells: the `length` cells to see. scores: [group, length]. */
static void attend(const float *q_GD, const float *k_NHD, const float *v_NHD, float *out_GD,
                   const int32_t *cells, int length, int group, int size, size_t cell_stride,
                   float scale, float *scores) {
    for (int l = 0; l < length; l++) {
        const float *k = k_NHD + cells[l] * cell_stride;
        for (int g = 0; g < group; g++) {
            const float *q = q_GD + g * size;
            Floats acc = all(0);
            for (int d = 0; d < size; d += WIDTH) acc += load(q + d) * load(k + d);
            scores[g * length + l] = sum(acc) * scale;
        }
    }
    for (int g = 0; g < group; g++) {
        float *mine = scores + g * length, best = mine[0], total = 0;
        for (int l = 1; l < length; l++) best = mine[l] > best ? mine[l] : best;
        int l = 0;
        Floats totals = all(0);
        for (; l + WIDTH <= length; l += WIDTH) {
            Floats e = exponential(load(mine + l) - all(best));
            store(mine + l, e);
            totals += e;
        }
        total = sum(totals);
        for (; l < length; l++) {
            mine[l] = exponential(all(mine[l] - best))[0];
            total += mine[l];
        }
        /* Four vectors at a time: a head of 64 is one pass over the values. */
        for (int d = 0; d < size; d += 4 * WIDTH) {
            const int vectors = size - d >= 4 * WIDTH ? 4 : (size - d) / WIDTH;
            Floats acc[4] = {all(0), all(0), all(0), all(0)};
            for (l = 0; l < length; l++) {
                const float *v = v_NHD + cells[l] * cell_stride + d;
                Floats weight = all(mine[l]);
                if (vectors == 4)
                    for (int i = 0; i < 4; i++) acc[i] += weight * load(v + i * WIDTH);
                else
                    for (int i = 0; i < vectors; i++) acc[i] += weight * load(v + i * WIDTH);
            }
            for (int i = 0; i < vectors; i++)
                store(out_GD + g * size + d + i * WIDTH, acc[i] * all(1.0f / total));
        }
    }
}

#endif
