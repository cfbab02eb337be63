/* What lives as long as a model: the threads, and the memory that a step works in.
 */
#ifndef LORRY_ENGINE_H
#define LORRY_ENGINE_H

#include "activations.h"
#include "ahead.h"
#include "attention_units.h"
#include "lora.h"
#include "pool.h"
#include "step.h"
#include <stdlib.h>

struct Engine {
    Pool pool;
    const Model *model; /* Python's own: slots appear in it as adapters come */
    int max_tokens, max_pairs;
    int widest; /* the widest row of any linear */
    const Step *step;
    float *x_TH, *normed_TH, *branch_TH, *qkv, *attended, *gate, *up, *hidden;
    Activations encoded;
    int8_t *hidden_codes;
    /* Of tokens with vectors: inward inputs and the base's answers to them. */
    Activations inward; /* [MODULES_MOST, max_tokens] */
    float *answers;
    float *products; /* of tokens with vectors: what their Kronecker products add */
    float *dense;    /* for each thread, some tokens' answers of dense changes */
    int widest_out;
    float *spare; /* a row for each thread, as wide as any */
    Ahead *ahead; /* one for each thread */
    Units units;
    /* For `lorry_linear`, `lorry_module` and `lorry_attend`. */
    const Layer *layers;
    int num_layers;
    const Linear *linear;
    const Slots *slots;
    const Pairs *pairs;
    const float *input;
    float *output;
    int tokens;
};

/* Three at most that read the same input; each has its own part of `hidden`. */
#define MODULES_MOST 3

#define PRODUCT_ROOM 4096 /* floats for a Kronecker product, at least: `packed_matrices.ROOM` */

static void free_activations(Activations x) {
    free(x.codes);
    free(x.scale_T);
    free(x.high);
    free(x.low);
    free(x.chunks);
    free(x.low_T);
}

static int larger(int a, int b) { return a > b ? a : b; }

static void *reserve(size_t count, size_t size) {
    /* A cache line's alignment, and a line more: whole vectors are read and written. */
    void *memory = NULL;
    return posix_memalign(&memory, 64, count * size + 64) ? NULL : memory;
}

static Activations reserve_activations(size_t tokens, size_t widest) {
    const size_t stride = stride_of(tokens), chunks = widest / CHUNK * stride;
    return (Activations){
        .codes = reserve(tokens * 2 * widest, 1),
        .scale_T = reserve(tokens, sizeof(float)),
        .high = reserve(chunks, CHUNK),
        .low = reserve(chunks, CHUNK),
        .chunks = reserve(chunks, sizeof(Chunk)),
        .low_T = reserve(tokens, sizeof(int32_t)),
        .stride = stride,
    };
}

static int has_memory(Activations x) {
    return x.codes && x.scale_T && x.high && x.low && x.chunks && x.low_T;
}

Engine *lorry_engine(const Model *model, int32_t max_tokens, int32_t max_pairs,
                     int32_t max_context, int32_t num_threads) {
    Engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->model = model;
    e->max_tokens = max_tokens;
    e->max_pairs = max_pairs;
    const size_t tokens = (size_t)max_tokens;
    const int queries = model->heads * model->head_size, keys = model->kv_heads * model->head_size;
    const int widest = larger(larger(model->hidden, queries), model->inner);
    const int rows = larger(larger(model->hidden, queries + 2 * keys), 2 * model->inner);
    e->widest = larger(rows, (model->vocab + BLOCK - 1) / BLOCK * BLOCK);
    e->widest = larger(e->widest, PRODUCT_ROOM);
    e->x_TH = reserve(tokens * model->hidden, sizeof(float));
    e->normed_TH = reserve(tokens * model->hidden, sizeof(float));
    e->branch_TH = reserve(tokens * model->hidden, sizeof(float));
    e->qkv = reserve(tokens * (queries + 2 * keys), sizeof(float));
    e->attended = reserve(tokens * queries, sizeof(float));
    e->gate = reserve(tokens * 2 * model->inner, sizeof(float));
    e->hidden = reserve((size_t)MODULES_MOST * max_pairs * model->max_rank, sizeof(float));
    e->encoded = reserve_activations(tokens, (size_t)widest);
    e->hidden_codes = reserve((size_t)num_threads * 2 * MANY * model->max_rank, 1);
    e->inward = reserve_activations(MODULES_MOST * tokens, (size_t)widest);
    e->answers = reserve(tokens * rows, sizeof(float));
    e->widest_out = larger(model->hidden, larger(queries + 2 * keys, 2 * model->inner));
    e->widest_out = larger(e->widest_out, model->head_slots.out);
    e->products = reserve(tokens * e->widest_out, sizeof(float));
    e->dense = reserve((size_t)num_threads * 16 * e->widest_out, sizeof(float));
    e->spare = reserve((size_t)num_threads * e->widest, sizeof(float));
    e->ahead = calloc((size_t)num_threads, sizeof *e->ahead);
    if (!e->x_TH || !e->normed_TH || !e->branch_TH || !e->qkv || !e->attended || !e->gate ||
        !e->hidden || !has_memory(e->encoded) || !e->hidden_codes || !has_memory(e->inward) ||
        !e->answers || !e->products || !e->dense || !e->spare || !e->ahead ||
        units_start(&e->units, model, max_tokens, max_context, num_threads) ||
        pool_start(&e->pool, num_threads)) {
        e->pool.size = 0;
        lorry_engine_free(e);
        return NULL;
    }
    return e;
}

void lorry_engine_free(Engine *e) {
    if (e->pool.size) pool_stop(&e->pool);
    free(e->x_TH);
    free(e->normed_TH);
    free(e->branch_TH);
    free(e->qkv);
    free(e->attended);
    free(e->gate);
    free(e->hidden);
    units_stop(&e->units);
    free_activations(e->encoded);
    free(e->hidden_codes);
    free_activations(e->inward);
    free(e->answers);
    free(e->products);
    free(e->dense);
    free(e->spare);
    free(e->ahead);
    free(e);
}

#endif
