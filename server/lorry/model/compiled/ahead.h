/* Memory that is fetched while something else is computed.
 *
 * A step of few tokens waits for memory in the adapters' phases, and for arithmetic in the
 * base's. So a linear asks for what the next phases read, a cache line now and then; it lies in
 * the second cache by the time that they come.
 */
#ifndef LORRY_AHEAD_H
#define LORRY_AHEAD_H

#include <immintrin.h>
#include <stddef.h>

#define LINE 64
#define AHEAD_LINES 8192 /* half of a second cache: more would push out what is asked for first */
#define AHEAD_RANGES 256

typedef struct {
    const char *at;
    int lines;
} Range;

typedef struct {
    Range ranges[AHEAD_RANGES];
    int count, next, lines;
} Ahead;

static void ahead_clear(Ahead *ahead) { ahead->count = ahead->next = ahead->lines = 0; }

/* Ask for `bytes` at `at`, after what was asked for before. */
static void fetch(Ahead *ahead, const void *at, size_t bytes) {
    const int lines = (int)((bytes + LINE - 1) / LINE);
    if (!lines || ahead->count == AHEAD_RANGES || ahead->lines + lines > AHEAD_LINES) return;
    ahead->ranges[ahead->count++] = (Range){at, lines};
    ahead->lines += lines;
}

/* The next lines to ask for, `most` of them at most. */
static Range ahead_take(Ahead *ahead, int most) {
    if (ahead->next == ahead->count) return (Range){NULL, 0};
    Range *range = &ahead->ranges[ahead->next];
    if (range->lines <= most) return ahead->ranges[ahead->next++];
    const Range taken = {range->at, most};
    range->at += (size_t)most * LINE;
    range->lines -= most;
    return taken;
}

#endif
