/* One step of a Llama-shaped model on a CPU: every layer, every row, in one call.
 *
 * The phases of a layer are separated by barriers. Within a phase the threads share
 * the work by token, by key head or by block of outputs; nothing is written by two.
 */
#include "step.h"
#include "attention.h"
#include "draw.h"
#include "engine.h"
#include "modules.h"
#include "pack.h"
#include "vectors.h"

static void rms_norm(const float *x, const float *weight, float *out, int size, float epsilon) {
    Floats squares = splat(0);
    for (int i = 0; i < size; i += WIDTH) squares = fused(load(x + i), load(x + i), squares);
    Floats factor = splat(1.0f / sqrtf(sum(squares) / size + epsilon));
    for (int i = 0; i < size; i += WIDTH)
        store(out + i, load(weight + i) * (load(x + i) * factor));
}

static void rotate(float *head, const float *cos, const float *sin, int size) {
    const int half = size / 2;
    for (int d = 0; d < half; d++) {
        const float first = head[d], second = head[d + half];
        head[d] = first * cos[d] - second * sin[d];
        head[d + half] = second * cos[d] + first * sin[d];
    }
}

static void prepare_heads(Engine *e, const Layer *layer, int t) {
    const Model *m = e->model;
    const Step *step = e->step;
    const int size = m->head_size, queries = m->heads * size, keys = m->kv_heads * size;
    float *q = e->qkv + (size_t)t * (queries + 2 * keys), *k = q + queries, *v = k + keys;
    const float *cos = step->cos + (size_t)t * size / 2, *sin = step->sin + (size_t)t * size / 2;
    for (int h = 0; h < m->heads + m->kv_heads; h++) {
        const float *norm = h < m->heads ? layer->q_norm : layer->k_norm;
        if (norm) rms_norm(q + h * size, norm, q + h * size, size, m->epsilon);
        if (layer->rotary) rotate(q + h * size, cos, sin, size);
    }
    uint16_t *const kept_k = layer->k_NHD + (size_t)step->cell[t] * keys;
    uint16_t *const kept_v = layer->v_NHD + (size_t)step->cell[t] * keys;
    for (int i = 0; i < keys; i += WIDTH) {
        store_half(kept_k + i, load(k + i));
        store_half(kept_v + i, load(v + i));
    }
}

static void attend_share(Engine *e, const Layer *layer, int thread) {
    const Model *m = e->model;
    const Step *step = e->step;
    const int size = m->head_size, group = m->heads / m->kv_heads;
    const int queries = m->heads * size, keys = m->kv_heads * size;
    /* Token by token in turn: late tokens of a prompt see more, so blocks would be uneven. */
    for (int unit = thread; unit < step->num_tokens * m->kv_heads; unit += e->pool.size) {
        const int t = unit / m->kv_heads, h = unit % m->kv_heads;
        const int end = step->position[t] + 1;
        const int window = layer->attention.window;
        const int begin = window && end > window ? end - window : 0;
        attend(&layer->attention, e->qkv + (size_t)t * (queries + 2 * keys) + h * group * size,
               layer->k_NHD + h * size, layer->v_NHD + h * size,
               e->attended + (size_t)t * queries + h * group * size,
               step->cells + step->context[step->row[t]] + begin, end - begin, h * group, group,
               size, keys,
               e->scores + (size_t)thread * HEADS * PADDED(e->max_context));
    }
}

static void activate(Engine *e, int thread) {
    const int tokens = e->step->num_tokens, inner = e->model->inner;
    const int first = SHARE(inner / BLOCK, thread, e->pool.size) * BLOCK;
    const int last = SHARE(inner / BLOCK, thread + 1, e->pool.size) * BLOCK;
    for (int t = 0; t < tokens; t++) {
        float *gate = e->gate + (size_t)t * 2 * inner, *up = gate + inner;
        for (int i = first; i < last; i += WIDTH) {
            Floats g = load(gate + i);
            store(gate + i, g / (splat(1.0f) + exponential(-g)) * load(up + i));
        }
    }
}

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

static void run_layer(Engine *e, const Layer *layer, int thread) {
    const Model *m = e->model;
    const Step *step = e->step;
    const Pairs *pairs = &step->body;
    Pool *pool = &e->pool;
    const int threads = pool->size, tokens = step->num_tokens, hidden = m->hidden;
    const int queries = m->heads * m->head_size, keys = m->kv_heads * m->head_size;
    const int stride = queries + 2 * keys, inner = m->inner;
    const int first = SHARE(tokens, thread, threads), last = SHARE(tokens, thread + 1, threads);
    const size_t row = (size_t)hidden;
    const Modules qkv = {&layer->qkv, layer->qkv_slots, 3, pairs};
    const Modules o = {&layer->o, &layer->o_slots, 1, pairs};
    const Modules gate_up = {&layer->gate_up, layer->gate_up_slots, 2, pairs};
    const Modules down = {&layer->down, &layer->down_slots, 1, pairs};

    for (int t = first; t < last; t++)
        rms_norm(e->x_TH + t * row, layer->attention_norm, e->normed_TH + t * row, hidden,
                 m->epsilon);
    encode_tokens(e, e->normed_TH, hidden, hidden, first, last);
    encode_inwards(e, &qkv, e->normed_TH, hidden, first, last, thread);
    barrier(pool);
    multiply(e, &qkv, &o, e->qkv, stride, tokens, thread);
    add_deltas(e, &qkv, e->qkv, stride, thread);
    barrier(pool);
    for (int t = first; t < last; t++) prepare_heads(e, layer, t);
    barrier(pool);
    attend_share(e, layer, thread);
    barrier(pool);
    encode_tokens(e, e->attended, queries, queries, first, last);
    encode_inwards(e, &o, e->attended, queries, first, last, thread);
    barrier(pool);
    multiply(e, &o, &gate_up, e->normed_TH, hidden, tokens, thread);
    add_deltas(e, &o, e->normed_TH, hidden, thread);
    add_share(e, e->normed_TH, thread);
    barrier(pool);

    for (int t = first; t < last; t++)
        rms_norm(e->x_TH + t * row, layer->mlp_norm, e->normed_TH + t * row, hidden, m->epsilon);
    encode_tokens(e, e->normed_TH, hidden, hidden, first, last);
    encode_inwards(e, &gate_up, e->normed_TH, hidden, first, last, thread);
    barrier(pool);
    multiply(e, &gate_up, &down, e->gate, 2 * inner, tokens, thread);
    add_deltas(e, &gate_up, e->gate, 2 * inner, thread);
    activate(e, thread);
    barrier(pool);
    encode_tokens(e, e->gate, 2 * inner, inner, first, last);
    encode_inwards(e, &down, e->gate, 2 * inner, first, last, thread);
    barrier(pool);
    const Modules next = {NULL, layer[1].qkv_slots, 3, pairs};
    multiply(e, &down, layer + 1 < m->layers + m->num_layers ? &next : NULL, e->normed_TH, hidden,
             tokens, thread);
    add_deltas(e, &down, e->normed_TH, hidden, thread);
    add_share(e, e->normed_TH, thread);
    barrier(pool);
}

/* What every sampled row needs of its logits, while they are still in a near cache. */
static void summarise(const float *logits, int vocab, float *norm, int32_t *best) {
    Floats most = load(logits), totals = splat(0);
    for (int v = WIDTH; v < vocab; v += WIDTH) most = greater(most, load(logits + v));
    const float top = largest(most);
    int found = 0;
    while (found < vocab - 1 && logits[found] != top) found++;
    for (int v = 0; v < vocab; v += WIDTH) totals += exponential(load(logits + v) - splat(top));
    *norm = top + logf(sum(totals));
    *best = found;
}

static void run_step(void *argument, int thread) {
    Engine *e = argument;
    const Model *m = e->model;
    const Step *step = e->step;
    const int threads = e->pool.size, hidden = m->hidden;
    for (int t = SHARE(step->num_tokens, thread, threads);
         t < SHARE(step->num_tokens, thread + 1, threads); t++) {
        const float *own = step->own == NULL ? NULL : step->own[t];
        const float *row = own ? own : m->embedding + (size_t)step->ids[t] * hidden;
        memcpy(e->x_TH + (size_t)t * hidden, row, sizeof(float) * hidden);
    }
    barrier(&e->pool);
    for (int l = 0; l < m->num_layers; l++) run_layer(e, &m->layers[l], thread);
    const int first = SHARE(step->num_wanted, thread, threads);
    const int last = SHARE(step->num_wanted, thread + 1, threads);
    for (int k = first; k < last; k++) {
        float *normed = e->normed_TH + (size_t)k * hidden;
        rms_norm(e->x_TH + (size_t)step->wanted[k] * hidden, m->norm, normed, hidden, m->epsilon);
        if (step->seen) memcpy(step->seen + (size_t)k * hidden, normed, sizeof(float) * hidden);
    }
    encode_tokens(e, e->normed_TH, hidden, hidden, first, last);
    barrier(&e->pool);
    const Modules head = {&m->head, &m->head_slots, 1, &step->head};
    multiply(e, &head, NULL, step->logits, m->vocab, step->num_wanted, thread);
    add_deltas(e, &head, step->logits, m->vocab, thread);
    barrier(&e->pool);
    for (int k = first; k < last; k++)
        summarise(step->logits + (size_t)k * m->vocab, m->vocab, step->norm + k, step->best + k);
}

static void run_linear(void *argument, int thread) {
    Engine *e = argument;
    const int in = e->linear->in, threads = e->pool.size, blocks = e->linear->out / BLOCK;
    encode_tokens(e, e->input, in, in, SHARE(e->tokens, thread, threads),
                  SHARE(e->tokens, thread + 1, threads));
    barrier(&e->pool);
    Ahead *ahead = e->ahead + thread;
    ahead_clear(ahead);
    linear_blocks(e->linear, e->codes, e->scale_T, e->output, e->linear->out, e->tokens,
                  SHARE(blocks, thread, threads), SHARE(blocks, thread + 1, threads), ahead);
}

static void run_module(void *argument, int thread) {
    Engine *e = argument;
    const int in = e->slots->in, out = e->slots->out, threads = e->pool.size;
    const int first = SHARE(e->tokens, thread, threads);
    const int last = SHARE(e->tokens, thread + 1, threads);
    const Modules alone = {e->linear, e->slots, 1, e->pairs};
    encode_tokens(e, e->input, in, in, first, last);
    encode_inwards(e, &alone, e->input, in, first, last, thread);
    barrier(&e->pool);
    multiply(e, &alone, NULL, e->output, out, e->tokens, thread);
    add_deltas(e, &alone, e->output, out, thread);
}

static void run_attention(void *argument, int thread) {
    Engine *e = argument;
    attend_share(e, e->layer, thread);
}

/* recipe.sources() of what this was compiled from. */
const char *lorry_sources(void) { return LORRY_SOURCES; }

void lorry_run(Engine *engine, const Step *step) {
    engine->step = step;
    pool_run(&engine->pool, run_step, engine);
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

void lorry_attend(Engine *engine, const Layer *layer, const Step *step, const float *qkv,
                  float *attended) {
    const Model *m = engine->model;
    const size_t queries = (size_t)m->heads * m->head_size, keys = (size_t)m->kv_heads * m->head_size;
    engine->layer = layer;
    engine->step = step;
    memcpy(engine->qkv, qkv, step->num_tokens * (queries + 2 * keys) * sizeof *qkv);
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
