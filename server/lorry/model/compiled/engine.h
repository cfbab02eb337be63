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

/* What a mixture of experts works in; mixture.h says what is what. */
typedef struct {
    float *score, *compared, *part, *gate, *down, *answer, *shared_T;
    int32_t *chosen, *pair, *row, *start;
    Activations encoded;
} MixtureRows;

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
    MixtureRows mixture;
    Units units;
    /* For `lorry_linear`, `lorry_module`, `lorry_mixture` and `lorry_attend`. */
    const Layer *layers;
    int num_layers;
    const Linear *linear;
    const Mixture *one;
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
    free(x.far);
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
        .far = reserve(chunks, 1),
        .stride = stride,
    };
}

static int has_memory(Activations x) {
    return x.codes && x.scale_T && x.high && x.low && x.chunks && x.far;
}

/* 0, or -1 where memory cannot be had. Nothing is reserved for a model without mixtures. */
static int mixture_start(MixtureRows *r, const Model *model, size_t tokens) {
    int experts = 0, chosen = 0, inner = 0;
    for (int l = 0; l < model->num_layers; l++) {
        const Mixture *m = &model->layers[l].mixture;
        experts = larger(experts, m->experts);
        chosen = larger(chosen, m->chosen);
        inner = larger(inner, m->inner);
    }
    if (!experts) return 0;
    const size_t rows = tokens * chosen, hidden = model->hidden;
    r->score = reserve(tokens * experts, sizeof(float));
    r->compared = reserve(tokens * experts, sizeof(float));
    r->part = reserve(rows, sizeof(float));
    r->gate = reserve(rows * 2 * inner, sizeof(float));
    r->down = reserve(rows * hidden, sizeof(float));
    r->answer = reserve(tokens * hidden, sizeof(float));
    r->shared_T = reserve(tokens, sizeof(float));
    r->chosen = reserve(rows, sizeof(int32_t));
    r->pair = reserve(rows, sizeof(int32_t));
    r->row = reserve(rows, sizeof(int32_t));
    r->start = reserve((size_t)experts + 1, sizeof(int32_t));
    r->encoded = reserve_activations(rows, (size_t)larger(model->hidden, inner));
    return !r->score || !r->compared || !r->part || !r->gate || !r->down || !r->answer ||
                   !r->shared_T || !r->chosen || !r->pair || !r->row || !r->start ||
                   !has_memory(r->encoded)
               ? -1
               : 0;
}

static void mixture_stop(MixtureRows *r) {
    free(r->score);
    free(r->compared);
    free(r->part);
    free(r->gate);
    free(r->down);
    free(r->answer);
    free(r->shared_T);
    free(r->chosen);
    free(r->pair);
    free(r->row);
    free(r->start);
    free_activations(r->encoded);
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
        mixture_start(&e->mixture, model, tokens) ||
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
    mixture_stop(&e->mixture);
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
