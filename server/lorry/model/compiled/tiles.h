/* Tiles of Intel AMX: 8 registers of 16 rows x 64 bytes, and the one operation on them that a
 * linear needs.
 *
 * With -DLORRY_TILES_EMULATED they are memory, and each operation is the manual's own pseudo code
 * (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBSSD and TDPBUSD): for tests on
 * processors without AMX.
 *
 * A register's number is a literal 0 to 7 or a macro that is one: an instruction names it.
 */
#ifndef LORRY_TILES_H
#define LORRY_TILES_H

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AMX_INT8__) || defined(LORRY_TILES_EMULATED)
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

#if HAS_TILES

#define TILE_REGISTERS 8
#define TILE_ROWS 16
#define TILE_BYTES 64 /* of a row */

/* What `ldtilecfg` reads. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Every tile whole. */
static const TileConfig WHOLE_TILES = {
    .palette = 1,
    .bytes = {TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES, TILE_BYTES,
              TILE_BYTES},
    .rows = {TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS, TILE_ROWS,
             TILE_ROWS},
};

/* tile_config(config)            of this thread; every tile is zero then
 * tile_release()                 no tile has a value or a shape
 * tile_zero(t)
 * tile_load(t, from, stride)     row r is what lies at from + r * stride
 * tile_store(t, to, stride)
 * tile_dot(sum, a, b)            sum[m][n] += the sum over k of a[m][k] * b[k / 4][4 n + k % 4]:
 *                                int32, of unsigned and signed bytes, modulo 2^32
 * tile_signed_dot(sum, a, b)     the same of bytes that are all signed */
#ifndef LORRY_TILES_EMULATED

#define tile_config(config) _tile_loadconfig(config)
#define tile_release() _tile_release()
#define tile_zero(t) _tile_zero(t)
/* A compiler is not told that a load reads memory: what is written there must be before it. */
#define tile_load(t, from, stride)                              \
    do {                                                        \
        const void *tile_from = (from);                         \
        __asm__ volatile("" ::"r"(tile_from) : "memory");       \
        _tile_loadd(t, tile_from, stride);                      \
    } while (0)
#define tile_store(t, to, stride)                               \
    do {                                                        \
        void *tile_to = (to);                                   \
        _tile_stored(t, tile_to, stride);                       \
        __asm__ volatile("" ::"r"(tile_to) : "memory");         \
    } while (0)
#define tile_dot(sum, a, b) _tile_dpbusd(sum, a, b)
#define tile_signed_dot(sum, a, b) _tile_dpbssd(sum, a, b)

#else

static _Thread_local TileConfig tile_shape; /* palette 0: none */
static _Thread_local uint8_t tile_memory[TILE_REGISTERS][TILE_ROWS][TILE_BYTES];

/* Where a processor raises an exception. */
static inline void tile_require(int holds) {
    if (!holds) abort();
}

static inline void tile_config(const TileConfig *config) {
    tile_require(config->palette == 1 && config->start_row == 0);
    for (int t = 0; t < 16; t++) {
        const int rows = config->rows[t], bytes = config->bytes[t];
        tile_require(t < TILE_REGISTERS ? rows <= TILE_ROWS && bytes <= TILE_BYTES && !rows == !bytes
                               : !rows && !bytes);
    }
    for (int i = 0; i < 14; i++) tile_require(!config->reserved[i]);
    tile_shape = *config;
    memset(tile_memory, 0, sizeof tile_memory);
}

static inline void tile_release(void) { memset(&tile_shape, 0, sizeof tile_shape); }

static inline void tile_require_shape(int t) {
    tile_require(tile_shape.palette == 1 && t >= 0 && t < TILE_REGISTERS && tile_shape.rows[t]);
}

static inline void tile_zero(int t) {
    tile_require_shape(t);
    memset(tile_memory[t], 0, sizeof tile_memory[t]);
}

static inline void tile_load(int t, const void *from, size_t stride) {
    tile_zero(t);
    for (int r = 0; r < tile_shape.rows[t]; r++)
        memcpy(tile_memory[t][r], (const uint8_t *)from + r * stride, tile_shape.bytes[t]);
}

static inline void tile_store(int t, void *to, size_t stride) {
    tile_require_shape(t);
    for (int r = 0; r < tile_shape.rows[t]; r++)
        memcpy((uint8_t *)to + r * stride, tile_memory[t][r], tile_shape.bytes[t]);
}

static inline void tile_any_dot(int sum, int a, int b, int with_sign) {
    tile_require_shape(sum);
    tile_require_shape(a);
    tile_require_shape(b);
    tile_require(sum != a && sum != b && a != b);
    const int fours = tile_shape.bytes[a] / 4, columns = tile_shape.bytes[sum] / 4;
    tile_require(tile_shape.bytes[a] % 4 == 0 && tile_shape.bytes[sum] % 4 == 0 &&
                 tile_shape.rows[sum] == tile_shape.rows[a] &&
                 tile_shape.bytes[sum] == tile_shape.bytes[b] && tile_shape.rows[b] == fours);
    for (int m = 0; m < tile_shape.rows[sum]; m++) {
        uint32_t row[TILE_BYTES / 4];
        memcpy(row, tile_memory[sum][m], sizeof row);
        for (int k = 0; k < fours; k++)
            for (int n = 0; n < columns; n++) {
                const uint8_t *x = tile_memory[a][m] + 4 * k;
                const int8_t *w = (const int8_t *)tile_memory[b][k] + 4 * n;
                for (int i = 0; i < 4; i++)
                    row[n] += (uint32_t)((with_sign ? (int8_t)x[i] : x[i]) * w[i]);
            }
        memcpy(tile_memory[sum][m], row, sizeof row);
    }
}

static inline void tile_dot(int sum, int a, int b) { tile_any_dot(sum, a, b, 0); }
static inline void tile_signed_dot(int sum, int a, int b) { tile_any_dot(sum, a, b, 1); }

#endif

#endif

#endif
