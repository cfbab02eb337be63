/* What happens to a token's queries, keys and values before attention. */
#ifndef LORRY_HEADS_H
#define LORRY_HEADS_H

#include "engine.h"
#include "norms.h"
#include "step.h"
#include "vectors.h"
#include <string.h>

static void rotate(float *head, const float *cos, const float *sin, int size) {
    const int half = size / 2;
    for (int d = 0; d < half; d++) {
        const float first = head[d], second = head[d + half];
        head[d] = first * cos[d] - second * sin[d];
        head[d + half] = second * cos[d] + first * sin[d];
    }
}

static void rotate_pairs(float *head, const float *cos, const float *sin, int size) {
    for (int d = 0; d < size / 2; d++) {
        const float first = head[2 * d], second = head[2 * d + 1];
        head[2 * d] = first * cos[d] - second * sin[d];
        head[2 * d + 1] = second * cos[d] + first * sin[d];
    }
}

static void keep_heads(Engine *e, const Layer *layer, int t, const float *k, const float *v,
                       int keys) {
    const size_t cell = (size_t)e->step->cell[t], heads = (size_t)e->model->kv_heads;
    if (layer->k_scale_NH) {
        const int size = e->model->head_size;
        for (size_t h = 0; h < heads; h++) {
            const size_t at = cell * heads + h;
            keep_bytes(k + h * size, (int8_t *)layer->k_NHD + at * size, layer->k_scale_NH + at, size);
            keep_bytes(v + h * size, (int8_t *)layer->v_NHD + at * size, layer->v_scale_NH + at, size);
        }
        return;
    }
    uint16_t *const kept_k = (uint16_t *)layer->k_NHD + cell * keys;
    uint16_t *const kept_v = (uint16_t *)layer->v_NHD + cell * keys;
    for (int i = 0; i < keys; i += WIDTH) {
        store_half(kept_k + i, load(k + i));
        store_half(kept_v + i, load(v + i));
    }
}

/* Of a layer with `plain_heads`. */
static void prepare_heads(Engine *e, const Layer *layer, int t) {
    const Model *m = e->model;
    const Step *step = e->step;
    const int size = m->head_size, queries = m->heads * size, keys = m->kv_heads * size;
    float *q = e->qkv + (size_t)t * (queries + 2 * keys), *k = q + queries, *v = k + keys;
    const float *cos = step->cos + (size_t)t * size / 2, *sin = step->sin + (size_t)t * size / 2;
    for (int h = 0; h < m->heads + m->kv_heads; h++) {
        const Norm *norm = h < m->heads ? &layer->q_norm : &layer->k_norm;
        if (norm->weight)
            rms_norm(q + h * size, norm->weight, q + h * size, size, norm->epsilon);
        if (layer->rope >= 0) rotate(q + h * size, cos, sin, size);
    }
    keep_heads(e, layer, t, k, v, keys);
}

/* Of any layer. spare: room for the row. */
static __attribute__((noinline)) void prepare_other_heads(Engine *e, const Layer *layer, int t,
                                                          float *spare) {
    const Model *m = e->model;
    const Step *step = e->step;
    const int size = m->head_size, queries = m->heads * size, keys = m->kv_heads * size;
    const int stride = queries + 2 * keys, angles = m->rotated / 2;
    float *q = e->qkv + (size_t)t * stride, *k = q + queries, *v = k + keys;
    if (layer->heads_at) {
        memcpy(spare, q, sizeof(float) * (size_t)stride);
        for (int h = 0; h < m->heads + 2 * m->kv_heads; h++)
            memcpy(q + h * size, spare + layer->heads_at[h], sizeof(float) * (size_t)size);
    }
    for (int pass = 0; pass < 2; pass++) {
        if (pass == layer->norm_last) {
            if (layer->q_norm.weight) norm_heads(&layer->q_norm, q, queries);
            if (layer->k_norm.weight) norm_heads(&layer->k_norm, k, keys);
        } else if (layer->rope >= 0) {
            const size_t at = ((size_t)layer->rope * step->num_tokens + t) * angles;
            const float *cos = step->cos + at, *sin = step->sin + at;
            for (int h = 0; h < m->heads + m->kv_heads; h++) {
                if (m->pairs) rotate_pairs(q + h * size, cos, sin, m->rotated);
                else rotate(q + h * size, cos, sin, m->rotated);
            }
        }
    }
    keep_heads(e, layer, t, k, v, keys);
}

#endif
