/* One step of a model on a CPU: every layer, every row, in one call.
 *
 * The phases of a layer are separated by barriers. Within a phase the threads share
 * the work by token, by key head or by block of outputs; nothing is written by two.
 */
#include "step.h"
#include "draw.h"
#include "ends.h"
#include "engine.h"
#include "heads.h"
#include "mixture.h"
#include "mlp.h"
#include "modules.h"
#include "norms.h"
#include "pack.h"
#include "pack_weights.h"
#include "quantize4.h"
#include "reading.h"
#include "vectors.h"

static void add_share(Engine *e, const float *delta, int thread) {
    const int tokens = e->step->num_tokens, size = e->model->hidden;
    const int first = SHARE(size / BLOCK, thread, e->pool.size) * BLOCK;
    const int last = SHARE(size / BLOCK, thread + 1, e->pool.size) * BLOCK;
    for (int t = 0; t < tokens; t++)
        for (int i = first; i < last; i += WIDTH) {
            float *x = e->x_TH + (size_t)t * size + i;
            store(x, load(x) + load(delta + (size_t)t * size + i));
        }
}

/* x += factor * after(delta), of tokens `first` to `last` - 1, whole rows. */
static __attribute__((noinline)) void add_rows(Engine *e, const Norm *after, float factor,
                                               float *delta, int first, int last) {
    const int size = e->model->hidden;
    for (int t = first; t < last; t++) {
        float *x = e->x_TH + (size_t)t * size, *mine = delta + (size_t)t * size;
        if (after->weight) normalise(after, mine, mine, size);
        for (int i = 0; i < size; i += WIDTH)
            store(x + i, load(x + i) + load(mine + i) * splat(factor));
    }
}

/* What a linear reads of tokens `first` to `last` - 1: x, or its norm. */
static const float *normed(Engine *e, const Norm *norm, int first, int last) {
    const size_t row = (size_t)e->model->hidden;
    if (!norm->weight) return e->x_TH;
    for (int t = first; t < last; t++)
        normalise(norm, e->x_TH + t * row, e->normed_TH + t * row, e->model->hidden);
    return e->normed_TH;
}

static void run_layer(Engine *e, const Layer *layer, int thread) {
    const Model *m = e->model;
    const Step *step = e->step;
    const Pairs *pairs = &step->body;
    Pool *pool = &e->pool;
    const int threads = pool->size, tokens = step->num_tokens, hidden = m->hidden;
    const int queries = m->heads * m->head_size, keys = m->kv_heads * m->head_size;
    const int stride = queries + 2 * keys, inner = layer->inner, wide = m->gated ? 2 * inner : inner;
    const int first = SHARE(tokens, thread, threads), last = SHARE(tokens, thread + 1, threads);
    const Modules qkv = {layer->qkv, layer->qkv_slots, layer->qkv_parts, pairs};
    const Modules o = {&layer->o, &layer->o_slots, 1, pairs};
    const Modules gate_up = {layer->gate_up, layer->gate_up_slots, layer->gate_up_parts, pairs};
    const Modules down = {&layer->down, &layer->down_slots, 1, pairs};
    /* Of attention: the MLP beside it reads what it read. */
    float *const answer = layer->parallel ? e->branch_TH : e->normed_TH;

    const float *x = normed(e, &layer->attention_norm, first, last);
    encode_tokens(e, &qkv, x, hidden, first, last);
    encode_inwards(e, &qkv, x, hidden, first, last, thread);
    barrier(pool);
    multiply(e, &qkv, &o, e->qkv, stride, tokens, thread);
    add_deltas(e, &qkv, e->qkv, stride, thread);
    barrier(pool);
    if (layer->plain_heads)
        for (int t = first; t < last; t++) prepare_heads(e, layer, t);
    else
        for (int t = first; t < last; t++)
            prepare_other_heads(e, layer, t, e->spare + (size_t)thread * e->widest);
    barrier(pool);
    units_run(&e->units, m, layer, step, (int)(layer - m->layers), thread, e->qkv, e->attended);
    barrier(pool);
    encode_tokens(e, &o, e->attended, queries, first, last);
    encode_inwards(e, &o, e->attended, queries, first, last, thread);
    barrier(pool);
    multiply(e, &o, &gate_up, answer, hidden, tokens, thread);
    add_deltas(e, &o, answer, hidden, thread);
    if (layer->plain_sums) add_share(e, answer, thread);
    barrier(pool);

    if (!layer->plain_sums && !layer->parallel)
        add_rows(e, &layer->after_attention, layer->attention_residual, answer, first, last);
    x = normed(e, &layer->mlp_norm, first, last);
    float *mlp = e->normed_TH;
    if (layer->mixture.experts) {
        barrier(pool);
        run_mixture(e, &layer->mixture, x, thread);
        mlp = e->mixture.answer;
    }
    if (layer->gate_up_parts) {
        encode_tokens(e, &gate_up, x, hidden, first, last);
        encode_inwards(e, &gate_up, x, hidden, first, last, thread);
        if (layer->parallel)
            add_rows(e, &layer->after_attention, layer->attention_residual, answer, first, last);
        barrier(pool);
        multiply(e, &gate_up, &down, e->gate, wide, tokens, thread);
        add_deltas(e, &gate_up, e->gate, wide, thread);
        if (layer->gate_up_parts == 2 && m->activation == SILU) activate(e, inner, thread);
        else {
            /* A gate and what it meets are two threads' where they are one module's. */
            if (m->gated && layer->gate_up_parts == 1) barrier(pool);
            activate_other(e, inner, thread);
        }
        barrier(pool);
        encode_tokens(e, &down, e->gate, wide, first, last);
        encode_inwards(e, &down, e->gate, wide, first, last, thread);
        barrier(pool);
        const Modules next = {NULL, layer[1].qkv_slots, layer[1].qkv_parts, pairs};
        multiply(e, &down, layer + 1 < m->layers + m->num_layers ? &next : NULL, e->normed_TH,
                 hidden, tokens, thread);
        add_deltas(e, &down, e->normed_TH, hidden, thread);
        if (layer->mixture.experts) add_shared(e, &layer->mixture, e->normed_TH, thread);
    } else if (layer->parallel)
        add_rows(e, &layer->after_attention, layer->attention_residual, answer, first, last);
    if (layer->plain_sums) add_share(e, mlp, thread);
    barrier(pool);
    if (!layer->plain_sums) {
        add_rows(e, &layer->after_mlp, layer->mlp_residual, mlp, first, last);
        barrier(pool);
    }
}

static void run_step(void *argument, int thread) {
    Engine *e = argument;
    const Model *m = e->model;
    const Step *step = e->step;
    const int threads = e->pool.size, hidden = m->hidden;
    const int begin = SHARE(step->num_tokens, thread, threads);
    const int end = SHARE(step->num_tokens, thread + 1, threads);
    if (m->plain_embedding)
        for (int t = begin; t < end; t++) embed(e, t);
    else
        for (int t = begin; t < end; t++) embed_scaled(e, t);
    barrier(&e->pool);
    for (int l = 0; l < m->num_layers; l++) run_layer(e, &m->layers[l], thread);
    const int first = SHARE(step->num_wanted, thread, threads);
    const int last = SHARE(step->num_wanted, thread + 1, threads);
    for (int k = first; k < last; k++) {
        float *normed = e->normed_TH + (size_t)k * hidden;
        const float *x = e->x_TH + (size_t)step->wanted[k] * hidden;
        if (m->norm.weight) normalise(&m->norm, x, normed, hidden);
        else memcpy(normed, x, sizeof(float) * hidden);
        if (step->seen) memcpy(step->seen + (size_t)k * hidden, normed, sizeof(float) * hidden);
    }
    const Modules head = {&m->head, &m->head_slots, 1, &step->head};
    encode_tokens(e, &head, e->normed_TH, hidden, first, last);
    barrier(&e->pool);
    const int stride = m->head_slots.out;
    if (!step->all_own) {
        multiply(e, &head, NULL, step->logits, stride, step->num_wanted, thread);
        add_deltas(e, &head, step->logits, stride, thread);
    }
    if (step->num_own_heads) multiply_own_heads(e, thread);
    if (!m->plain_logits) scale_logits(e, thread);
    barrier(&e->pool);
    if (step->num_own_heads) forget_unknown_words(e, first, last);
    for (int k = first; k < last; k++)
        summarise(step->logits + (size_t)k * stride, m->vocab, stride, step->norm + k, step->best + k);
}

static void run_linear(void *argument, int thread) {
    Engine *e = argument;
    const int in = e->linear->in, threads = e->pool.size, blocks = e->linear->out / BLOCK;
    static const Pairs none;
    const Modules alone = {e->linear, NULL, 1, &none};
    encode_tokens(e, &alone, e->input, in, SHARE(e->tokens, thread, threads),
                  SHARE(e->tokens, thread + 1, threads));
    barrier(&e->pool);
    Ahead *ahead = e->ahead + thread;
    ahead_clear(ahead);
    linear_blocks(e->linear, e->encoded, e->output, e->linear->out, e->tokens,
                  SHARE(blocks, thread, threads), SHARE(blocks, thread + 1, threads), ahead);
}

static void run_module(void *argument, int thread) {
    Engine *e = argument;
    const int in = e->slots->in, out = e->slots->out, threads = e->pool.size;
    const int first = SHARE(e->tokens, thread, threads);
    const int last = SHARE(e->tokens, thread + 1, threads);
    const Modules alone = {e->linear, e->slots, 1, e->pairs};
    encode_tokens(e, &alone, e->input, in, first, last);
    encode_inwards(e, &alone, e->input, in, first, last, thread);
    barrier(&e->pool);
    multiply(e, &alone, NULL, e->output, out, e->tokens, thread);
    add_deltas(e, &alone, e->output, out, thread);
}

static void run_one_mixture(void *argument, int thread) {
    Engine *e = argument;
    run_mixture(e, e->one, e->input, thread);
}

static void run_attention(void *argument, int thread) {
    Engine *e = argument;
    for (int turn = 0; turn < e->num_layers; turn++) {
        units_run(&e->units, e->model, e->layers + turn, e->step, turn, thread, e->qkv,
                  e->attended);
        barrier(&e->pool);
    }
}

/* recipe.sources() of what this was compiled from. */
const char *lorry_sources(void) { return LORRY_SOURCES; }

void lorry_run(Engine *engine, const Step *step) {
    engine->step = step;
    units_plan(&engine->units, engine->model, step, engine->pool.size);
    pool_run(&engine->pool, run_step, engine);
}

int64_t lorry_read(Engine *engine, const uint64_t *const *starts, const int64_t *counts,
                   int32_t regions) {
    Reading reading = {&engine->pool, starts, counts, regions, 0};
    pool_run(&engine->pool, run_reading, &reading);
    return (int64_t)reading.sum;
}

void lorry_linear(Engine *engine, const Linear *linear, const float *x, float *y, int32_t tokens) {
    engine->linear = linear;
    engine->input = x;
    engine->output = y;
    engine->tokens = tokens;
    pool_run(&engine->pool, run_linear, engine);
}

void lorry_module(Engine *engine, const Linear *linear, const Slots *slots, const Pairs *pairs,
                  const float *x, float *y, int32_t tokens) {
    engine->linear = linear;
    engine->slots = slots;
    engine->pairs = pairs;
    engine->input = x;
    engine->output = y;
    engine->tokens = tokens;
    pool_run(&engine->pool, run_module, engine);
}

void lorry_mixture(Engine *engine, const Mixture *mixture, const float *x, float *y,
                   int32_t tokens) {
    const Step step = {.num_tokens = tokens};
    engine->step = &step;
    engine->one = mixture;
    engine->input = x;
    pool_run(&engine->pool, run_one_mixture, engine);
    memcpy(y, engine->mixture.answer, (size_t)tokens * engine->model->hidden * sizeof *y);
}

void lorry_attend(Engine *engine, const Layer *layers, int32_t num_layers, const Step *step,
                  const float *qkv, float *attended) {
    const Model *m = engine->model;
    const size_t queries = (size_t)m->heads * m->head_size, keys = (size_t)m->kv_heads * m->head_size;
    engine->layers = layers;
    engine->num_layers = num_layers;
    engine->step = step;
    memcpy(engine->qkv, qkv, step->num_tokens * (queries + 2 * keys) * sizeof *qkv);
    units_plan(&engine->units, m, step, engine->pool.size);
    pool_run(&engine->pool, run_attention, engine);
    memcpy(attended, engine->attended, step->num_tokens * queries * sizeof *attended);
}

int lorry_pack(const float *a_RI, const float *b_OR, float scaling, int32_t rank, int32_t in,
               int32_t out, int8_t *a, uint8_t *b) {
    float *factor = calloc(2 * ((size_t)rank + BLOCK), sizeof *factor);
    if (!factor) return -1;
    pack_a(a_RI, a, factor, rank, in);
    for (int r = 0; r < rank; r++) factor[r] *= scaling;
    pack_b(b_OR, factor, b, factor + rank, rank, out);
    free(factor);
    return 0;
}

void lorry_quantize4(const float *w, int64_t blocks, int32_t size, const float *bounds,
                     const uint8_t *order, uint8_t *packed, float *absmax) {
    quantize4(w, blocks, size, bounds, order, packed, absmax);
}

void lorry_quantize8(const float *w, int32_t rows, int32_t in, int8_t *codes, float *scale) {
    quantize8(w, rows, in, codes, scale);
}

void lorry_pack8(const int8_t *codes, int32_t rows, int32_t in, int8_t *packed, int32_t *sums) {
    pack_weights8(codes, rows, in, packed, sums);
}

void lorry_pack4(const uint8_t *codes, const uint16_t *chunk_scale, int32_t rows, int32_t in,
                 uint8_t *packed, uint16_t *packed_scale) {
    pack_weights4(codes, chunk_scale, rows, in, packed, packed_scale);
}
