/* Where a step begins and ends: embeddings and logits. */
#ifndef LORRY_ENDS_H
#define LORRY_ENDS_H

#include "engine.h"
#include "mlp.h"
#include "modules.h"
#include "norms.h"
#include "step.h"
#include "vectors.h"
#include <string.h>

static void embed(Engine *e, int t) {
    const Step *step = e->step;
    const int hidden = e->model->hidden;
    const float *own = step->own == NULL ? NULL : step->own[t];
    const size_t row = (size_t)step->ids[t] * hidden;
    float *x = e->x_TH + (size_t)t * hidden;
    const int kind = own ? SINGLE : e->model->embedding_kind;
    if (kind == SINGLE) {
        const float *table = e->model->embedding;
        memcpy(x, own ? own : table + row, sizeof(float) * hidden);
        return;
    }
    const uint16_t *half = (const uint16_t *)e->model->embedding + row;
    for (int i = 0; i < hidden; i += WIDTH)
        store(x + i, kind == HALF ? load_half(half + i) : load_bfloat(half + i));
}

/* Factors, a norm and learned positions, too. */
static __attribute__((noinline)) void embed_scaled(Engine *e, int t) {
    const Model *m = e->model;
    const Step *step = e->step;
    float *x = e->x_TH + (size_t)t * m->hidden;
    const float factor = step->own && step->own[t] ? m->own_factor : m->embedding_factor;
    embed(e, t);
    for (int i = 0; i < m->hidden; i += WIDTH) store(x + i, load(x + i) * splat(factor));
    if (m->embedding_norm.weight) normalise(&m->embedding_norm, x, x, m->hidden);
    if (!m->positions) return;
    const float *position = m->positions + (size_t)step->position[t] * m->hidden;
    for (int i = 0; i < m->hidden; i += WIDTH) store(x + i, load(x + i) + load(position + i));
}

/* The factor and the cap of this thread's blocks of logits. */
static __attribute__((noinline)) void scale_logits(Engine *e, int thread) {
    const Model *m = e->model;
    const Step *step = e->step;
    const int stride = m->head_slots.out, blocks = stride / BLOCK;
    const int first = SHARE(blocks, thread, e->pool.size) * BLOCK;
    const int last = SHARE(blocks, thread + 1, e->pool.size) * BLOCK;
    for (int k = 0; k < step->num_wanted; k++) {
        if (step->raw && step->raw[k]) continue;
        for (int v = first; v < last; v += WIDTH) {
            float *logits = step->logits + (size_t)k * stride + v;
            Floats y = load(logits) * splat(m->logit_factor);
            if (m->logit_cap > 0) y = tangent(y / splat(m->logit_cap)) * splat(m->logit_cap);
            store(logits, y);
        }
    }
}

/* This thread's blocks of logits, of the tokens whose adapter has a head of its own. */
static __attribute__((noinline)) void multiply_own_heads(Engine *e, int thread) {
    const Step *step = e->step;
    const int stride = e->model->head_slots.out, blocks = stride / BLOCK;
    const int first = SHARE(blocks, thread, e->pool.size);
    const int share = SHARE(blocks, thread + 1, e->pool.size);
    for (int h = 0; h < step->num_own_heads; h++) {
        const OwnHead *own = step->own_heads + h;
        const int known = own->linear->out / BLOCK, last = share < known ? share : known;
        const size_t at = (size_t)own->first;
        if (first >= last) continue;
        ahead_clear(e->ahead + thread);
        linear_blocks(own->linear, from_token(e->encoded, own->linear->in, at),
                      step->logits + at * stride, stride, own->last - own->first, first, last,
                      e->ahead + thread);
    }
}

#define NEVER (-1e30f) /* minus infinity would be taken for an overflow */

/* Of wanted tokens `first` to `last` - 1: no word that their own head lacks is ever drawn. */
static __attribute__((noinline)) void forget_unknown_words(Engine *e, int first, int last) {
    const Step *step = e->step;
    for (int h = 0; h < step->num_own_heads; h++) {
        const OwnHead *own = step->own_heads + h;
        const int begin = first > own->first ? first : own->first;
        const int end = last < own->last ? last : own->last;
        for (int k = begin; k < end; k++) {
            float *logits = step->logits + (size_t)k * e->model->head_slots.out;
            for (int v = own->words; v < e->model->vocab; v++) logits[v] = NEVER;
        }
    }
}

/* What every sampled row needs of its logits, while they are still in a near cache. vocab: a
 * multiple of 16, `words` and nothing. */
static void summarise(float *logits, int words, int vocab, float *norm, int32_t *best) {
    for (int v = words; v < vocab; v++) logits[v] = -INFINITY;
    Floats most = load(logits), totals = splat(0);
    for (int v = WIDTH; v < vocab; v += WIDTH) most = greater(most, load(logits + v));
    const float top = largest(most);
    int found = 0;
    while (found < vocab - 1 && logits[found] != top) found++;
    for (int v = 0; v < vocab; v += WIDTH) totals += exponential(load(logits + v) - splat(top));
    *norm = top + logf(sum(totals));
    *best = found;
}

#endif
