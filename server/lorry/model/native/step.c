/* One step of a Llama-shaped model on a CPU: every layer, every row, in one call.
 *
 * The phases of a layer are separated by barriers. Within a phase the threads share
 * the work by token, by key head or by block of outputs; nothing is written by two.
 */
#include "step.h"
#include "attention.h"
#include "linear.h"
#include "lora.h"
#include "pool.h"
#include "vectors.h"

struct Engine {
    Pool pool;
    const Model *model; /* Python's own: slots appear in it as adapters come */
    int max_tokens, max_pairs, max_context;
    const Step *step;
    float *x_TH, *normed_TH, *qkv, *attended, *gate, *up, *worth_T, *hidden, *scores;
    uint8_t *codes;
    /* For `lorry_linear`. */
    const Linear *linear;
    const float *input;
    float *output;
    int tokens;
};

#define SHARE(total, thread, threads) ((int)((int64_t)(total) * (thread) / (threads)))

static void rms_norm(const float *x, const float *weight, float *out, int size, float epsilon) {
    Floats squares = all(0);
    for (int i = 0; i < size; i += WIDTH) squares = fused(load(x + i), load(x + i), squares);
    Floats factor = all(1.0f / sqrtf(sum(squares) / size + epsilon));
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

static void encode_tokens(Engine *e, const float *x, int in, int first, int last) {
    for (int t = first; t < last; t++)
        e->worth_T[t] = encode(x + (size_t)t * in, e->codes + (size_t)t * 2 * in, in);
}

/* Three modules at most read the same input; each has its own part of `hidden`. */
static float *hidden_of(Engine *e, int module) {
    return e->hidden + (size_t)module * e->max_pairs * e->model->max_rank;
}

/* y [T, stride] (+)= this thread's blocks of one module, its deltas included.
 * `offset`: the module's first output within the linear and within y. */
static void module(Engine *e, const Linear *linear, const Slots *slots, const Pairs *pairs,
                   int part, int offset, int out, float *y, int stride, int tokens, int thread) {
    const int first = SHARE(out / BLOCK, thread, e->pool.size);
    const int last = SHARE(out / BLOCK, thread + 1, e->pool.size);
    const int block = offset / BLOCK;
    linear_blocks(linear, e->codes, e->worth_T, y, stride, tokens, block + first, block + last);
    expand(slots, pairs, hidden_of(e, part), y + offset, stride, e->model->max_rank, first * BLOCK,
           last * BLOCK);
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
    memcpy(layer->k_NHD + (size_t)step->cell[t] * keys, k, sizeof(float) * keys);
    memcpy(layer->v_NHD + (size_t)step->cell[t] * keys, v, sizeof(float) * keys);
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
        const int begin = layer->window && end > layer->window ? end - layer->window : 0;
        attend(e->qkv + (size_t)t * (queries + 2 * keys) + h * group * size,
               layer->k_NHD + h * size, layer->v_NHD + h * size,
               e->attended + (size_t)t * queries + h * group * size,
               step->cells + step->context[step->row[t]] + begin, end - begin, group, size, keys,
               m->attention_scale,
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
            store(gate + i, g / (all(1.0f) + exponential(-g)) * load(up + i));
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
    const int stride = queries + 2 * keys, inner = m->inner, rank = m->max_rank;
    const int first = SHARE(tokens, thread, threads), last = SHARE(tokens, thread + 1, threads);
    const size_t row = (size_t)hidden;

    for (int t = first; t < last; t++)
        rms_norm(e->x_TH + t * row, layer->attention_norm, e->normed_TH + t * row, hidden,
                 m->epsilon);
    encode_tokens(e, e->normed_TH, hidden, first, last);
    barrier(pool);
    shrink(&layer->q_slots, pairs, e->normed_TH, hidden, hidden_of(e, 0), rank, thread, threads);
    shrink(&layer->k_slots, pairs, e->normed_TH, hidden, hidden_of(e, 1), rank, thread, threads);
    shrink(&layer->v_slots, pairs, e->normed_TH, hidden, hidden_of(e, 2), rank, thread, threads);
    barrier(pool);
    module(e, &layer->qkv, &layer->q_slots, pairs, 0, 0, queries, e->qkv, stride, tokens, thread);
    module(e, &layer->qkv, &layer->k_slots, pairs, 1, queries, keys, e->qkv, stride, tokens,
           thread);
    module(e, &layer->qkv, &layer->v_slots, pairs, 2, queries + keys, keys, e->qkv, stride,
           tokens, thread);
    barrier(pool);
    for (int t = first; t < last; t++) prepare_heads(e, layer, t);
    barrier(pool);
    attend_share(e, layer, thread);
    barrier(pool);
    encode_tokens(e, e->attended, queries, first, last);
    shrink(&layer->o_slots, pairs, e->attended, queries, hidden_of(e, 0), rank, thread, threads);
    barrier(pool);
    module(e, &layer->o, &layer->o_slots, pairs, 0, 0, hidden, e->normed_TH, hidden, tokens,
           thread);
    add_share(e, e->normed_TH, thread);
    barrier(pool);

    for (int t = first; t < last; t++)
        rms_norm(e->x_TH + t * row, layer->mlp_norm, e->normed_TH + t * row, hidden, m->epsilon);
    encode_tokens(e, e->normed_TH, hidden, first, last);
    barrier(pool);
    shrink(&layer->gate_slots, pairs, e->normed_TH, hidden, hidden_of(e, 0), rank, thread, threads);
    shrink(&layer->up_slots, pairs, e->normed_TH, hidden, hidden_of(e, 1), rank, thread, threads);
    barrier(pool);
    module(e, &layer->gate_up, &layer->gate_slots, pairs, 0, 0, inner, e->gate, 2 * inner, tokens,
           thread);
    module(e, &layer->gate_up, &layer->up_slots, pairs, 1, inner, inner, e->gate, 2 * inner,
           tokens, thread);
    activate(e, thread);
    barrier(pool);
    for (int t = first; t < last; t++)
        e->worth_T[t] =
            encode(e->gate + (size_t)t * 2 * inner, e->codes + (size_t)t * 2 * inner, inner);
    shrink(&layer->down_slots, pairs, e->gate, 2 * inner, hidden_of(e, 0), rank, thread, threads);
    barrier(pool);
    module(e, &layer->down, &layer->down_slots, pairs, 0, 0, hidden, e->normed_TH, hidden, tokens,
           thread);
    add_share(e, e->normed_TH, thread);
    barrier(pool);
}

/* What every sampled row needs of its logits, while they are still in a near cache. */
static void summarise(const float *logits, int vocab, float *norm, int32_t *best) {
    Floats most = load(logits), totals = all(0);
    for (int v = WIDTH; v < vocab; v += WIDTH) most = greater(most, load(logits + v));
    const float top = largest(most);
    int found = 0;
    while (found < vocab - 1 && logits[found] != top) found++;
    for (int v = 0; v < vocab; v += WIDTH) totals += exponential(load(logits + v) - all(top));
    *norm = top + logf(sum(totals));
    *best = found;
}

static void run_step(void *argument, int thread) {
    Engine *e = argument;
    const Model *m = e->model;
    const Step *step = e->step;
    const int threads = e->pool.size, hidden = m->hidden;
    for (int t = SHARE(step->num_tokens, thread, threads);
         t < SHARE(step->num_tokens, thread + 1, threads); t++)
        memcpy(e->x_TH + (size_t)t * hidden, m->embedding + (size_t)step->ids[t] * hidden,
               sizeof(float) * hidden);
    barrier(&e->pool);
    for (int l = 0; l < m->num_layers; l++) run_layer(e, &m->layers[l], thread);
    const int first = SHARE(step->num_wanted, thread, threads);
    const int last = SHARE(step->num_wanted, thread + 1, threads);
    for (int k = first; k < last; k++)
        rms_norm(e->x_TH + (size_t)step->wanted[k] * hidden, m->norm,
                 e->normed_TH + (size_t)k * hidden, hidden, m->epsilon);
    encode_tokens(e, e->normed_TH, hidden, first, last);
    barrier(&e->pool);
    shrink(&m->head_slots, &step->head, e->normed_TH, hidden, hidden_of(e, 0), m->max_rank, thread,
           threads);
    barrier(&e->pool);
    module(e, &m->head, &m->head_slots, &step->head, 0, 0, m->head.out, step->logits, m->vocab,
           step->num_wanted, thread);
    barrier(&e->pool);
    for (int k = first; k < last; k++)
        summarise(step->logits + (size_t)k * m->vocab, m->vocab, step->norm + k, step->best + k);
}

static void run_linear(void *argument, int thread) {
    Engine *e = argument;
    const int in = e->linear->in, threads = e->pool.size, blocks = e->linear->out / BLOCK;
    encode_tokens(e, e->input, in, SHARE(e->tokens, thread, threads),
                  SHARE(e->tokens, thread + 1, threads));
    barrier(&e->pool);
    linear_blocks(e->linear, e->codes, e->worth_T, e->output, e->linear->out, e->tokens,
                  SHARE(blocks, thread, threads), SHARE(blocks, thread + 1, threads));
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

static int larger(int a, int b) { return a > b ? a : b; }

static void *reserve(size_t count, size_t size) {
    /* A cache line's alignment, and a line more: whole vectors are read and written. */
    void *memory = NULL;
    return posix_memalign(&memory, 64, count * size + 64) ? NULL : memory;
}

Engine *lorry_engine(const Model *model, int32_t max_tokens, int32_t max_pairs,
                     int32_t max_context, int32_t num_threads) {
    Engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->model = model;
    e->max_tokens = max_tokens;
    e->max_pairs = max_pairs;
    e->max_context = max_context;
    const size_t tokens = (size_t)max_tokens;
    const int queries = model->heads * model->head_size, keys = model->kv_heads * model->head_size;
    const int widest = larger(larger(model->hidden, queries), model->inner);
    e->x_TH = reserve(tokens * model->hidden, sizeof(float));
    e->normed_TH = reserve(tokens * model->hidden, sizeof(float));
    e->qkv = reserve(tokens * (queries + 2 * keys), sizeof(float));
    e->attended = reserve(tokens * queries, sizeof(float));
    e->gate = reserve(tokens * 2 * model->inner, sizeof(float));
    e->worth_T = reserve(tokens, sizeof(float));
    e->hidden = reserve((size_t)3 * max_pairs * model->max_rank, sizeof(float));
    e->scores = reserve((size_t)num_threads * HEADS * PADDED(max_context), sizeof(float));
    e->codes = reserve(tokens * 2 * widest, 1);
    if (!e->x_TH || !e->normed_TH || !e->qkv || !e->attended || !e->gate || !e->worth_T ||
        !e->hidden || !e->scores || !e->codes || pool_start(&e->pool, num_threads)) {
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
    free(e->qkv);
    free(e->attended);
    free(e->gate);
    free(e->worth_T);
    free(e->hidden);
    free(e->scores);
    free(e->codes);
    free(e);
}
