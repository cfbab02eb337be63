/* Reads memory and does nothing with it: what a step would take that only waits for its weights.
 */
#ifndef LORRY_READING_H
#define LORRY_READING_H

#include "pool.h"
#include <stdint.h>

typedef struct {
    const Pool *pool;
    const uint64_t *const *starts;
    const int64_t *counts; /* numbers of each region */
    int regions;
    _Atomic uint64_t sum; /* or a compiler would read nothing */
} Reading;

/* A part of every region, as the threads of a step share every linear. */
static void run_reading(void *argument, int thread) {
    Reading *r = argument;
    const int threads = r->pool->size;
    uint64_t sum = 0;
    for (int i = 0; i < r->regions; i++) {
        const uint64_t *region = r->starts[i];
        const int64_t first = r->counts[i] * thread / threads;
        const int64_t last = r->counts[i] * (thread + 1) / threads;
        for (int64_t at = first; at < last; at++) sum += region[at];
    }
    atomic_fetch_add_explicit(&r->sum, sum, memory_order_relaxed);
}

#endif
