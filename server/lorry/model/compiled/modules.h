/* The linears of a phase: the base's product and what the adapters add to it.
 *
 * Every thread has its own blocks of outputs, from the product to the last delta; only the
 * adapters' inner rows are shared out differently, and waited for.
 */
#ifndef LORRY_MODULES_H
#define LORRY_MODULES_H

#include "ahead.h"
#include "engine.h"
#include "vector_deltas.h"
#include "linear.h"
#include "lora.h"
#include "pool.h"
#include "sparse.h"
#include "step.h"

#define SHARE(total, thread, threads) ((int)((int64_t)(total) * (thread) / (threads)))

/* Some modules that read the same input: the linears and the slots of each. */
typedef struct {
    const Linear *linears;
    const Slots *slots;
    int parts;
    const Pairs *pairs;
} Modules;

/* `far_of` all of them, which is the smallest: the same chunks serve those in 4 and in 8 bits. 0:
 * none reads chunks. */
static float far_of_all(const Modules *m) {
    float all = 0;
    for (int part = 0; part < m->parts; part++) {
        const float far = far_of(m->linears + part);
        if (far > 0 && (all == 0 || far < all)) all = far;
    }
    return all;
}

/* Whether one of the linears, or an adapter, reads codes. */
static int reads_codes(const Modules *m) {
    if (m->pairs->num_pairs) return 1;
    for (int part = 0; part < m->parts; part++)
        if (!reads_chunks(m->linears + part)) return 1;
    return 0;
}

/* What `m` reads of tokens `first` to `last` - 1 of x [T, stride]. */
static void encode_tokens(Engine *e, const Modules *m, const float *x, int stride, int first,
                          int last) {
    const int in = m->linears->in, codes = reads_codes(m);
    const float far = far_of_all(m);
    for (int t = first; t < last; t++)
        encode_token(x + (size_t)t * stride, from_token(e->encoded, in, (size_t)t), in, codes,
                     far);
}

static size_t part_size(const Engine *e) { return (size_t)e->max_pairs * e->model->max_rank; }

static int total_out(const Modules *m) {
    int out = 0;
    for (int part = 0; part < m->parts; part++) out += m->slots[part].out;
    return out;
}

/* The same of what goes in where an adapter changes that, and Kronecker products with x; this
 * thread has made x. */
static void encode_inwards(Engine *e, const Modules *m, const float *x, int stride, int first,
                           int last, int thread) {
    const Pairs *pairs = m->pairs;
    const int in = m->slots->in, out = total_out(m);
    const int codes = reads_codes(m);
    const float far = far_of_all(m);
    if (!pairs->num_vectored) return;
    for (int g = 0; g < pairs->num_vectored; g++) {
        const int t = pairs->vectored[g];
        if (t < first || t >= last) continue;
        float *spare = e->spare + (size_t)thread * e->widest;
        for (int part = 0, at = 0; part < m->parts; at += m->slots[part++].out)
            if (has_products(m->slots + part, pairs, g))
                multiply_products(m->slots + part, pairs, g, x + (size_t)t * stride,
                                  e->products + (size_t)g * out + at, spare);
        if (is_instead(m->slots, pairs, g)) {
            encode_inward(m->slots, pairs, g, x + (size_t)t * stride, spare,
                          from_token(e->encoded, in, (size_t)t), codes, far);
            continue;
        }
        for (int part = 0; part < m->parts; part++) {
            if (!is_inward(m->slots + part, pairs, g)) continue;
            const size_t at = (size_t)part * e->max_tokens + g;
            encode_inward(m->slots + part, pairs, g, x + (size_t)t * stride, spare,
                          from_token(e->inward, in, at), codes, far);
        }
    }
}

/* The base's answers to what goes in instead, for blocks `first` to `last` - 1 of `part`.
 * answers [T, stride]: this part's. */
static void multiply_inwards(Engine *e, const Modules *m, int part, float *answers, int stride,
                             int first, int last) {
    const Linear *linear = m->linears + part;
    const Pairs *pairs = m->pairs;
    for (int g = 0, end; g < pairs->num_vectored; g = end) {
        end = g;
        while (end < pairs->num_vectored && is_inward(m->slots + part, pairs, end)) end++;
        if (end == g) {
            end++;
            continue;
        }
        const size_t at = (size_t)part * e->max_tokens + g;
        linear_again(linear, from_token(e->inward, linear->in, at), answers + (size_t)g * stride,
                     stride, end - g, first, last);
    }
}

/* y [T, stride]: the base of this thread's blocks of each module, and h of its share of the
 * adapters' rows. Meanwhile it fetches what comes next: this one's B, then `next`'s A. */
static void multiply(Engine *e, const Modules *m, const Modules *next, float *y, int stride,
                     int tokens, int thread) {
    const int threads = e->pool.size;
    Ahead *ahead = e->ahead + thread;
    shrink(m->slots, m->parts, m->pairs, e->encoded.codes, e->encoded.scale_T, e->hidden,
           part_size(e), rank_of(m->slots, m->pairs), thread, threads);
    ahead_clear(ahead);
    for (int part = 0; part < m->parts; part++) {
        const int blocks = m->slots[part].out / BLOCK;
        const int first = SHARE(blocks, thread, threads) * BLOCK;
        const int last = SHARE(blocks, thread + 1, threads) * BLOCK;
        if (m->pairs->num_vectored)
            fetch_vector_deltas(ahead, m->slots + part, m->pairs, first, last);
        fetch_b(ahead, m->slots + part, m->pairs, first, last);
    }
    if (next) fetch_a(ahead, next->slots, next->parts, next->pairs, thread, threads);
    for (int part = 0, at = 0; part < m->parts; part++) {
        const int blocks = m->slots[part].out / BLOCK;
        const int first = SHARE(blocks, thread, threads), last = SHARE(blocks, thread + 1, threads);
        linear_blocks(m->linears + part, e->encoded, y + at, stride, tokens, first, last, ahead);
        if (m->pairs->num_vectored)
            multiply_inwards(e, m, part, e->answers + at, stride, first, last);
        at += m->slots[part].out;
    }
}

/* Tokens of one adapter that share a reading of its dense change. */
#define DENSE_TOKENS 16

/* y += scale * D x for outputs `first` to `last` - 1, of the adapters that change all of a weight. */
static void add_dense(Engine *e, const Slots *slots, const Pairs *pairs, float *y, int stride,
                      int first, int last, int thread) {
    float *room = e->dense + (size_t)thread * DENSE_TOKENS * e->widest_out;
    if (first == last) return;
    for (int p = 0, end; p < pairs->num_pairs; p = end) {
        end = p + 1;
        if (!pairs->vectors[p]) continue;
        const VectorDelta *mine = pairs->vectors[p] + slots->module;
        if (!mine->dense) continue;
        while (end < pairs->num_pairs && end - p < DENSE_TOKENS &&
               pairs->vectors[end] == pairs->vectors[p] &&
               pairs->token[end] == pairs->token[end - 1] + 1)
            end++;
        const size_t at = (size_t)pairs->token[p];
        ahead_clear(e->ahead + thread);
        linear_blocks(mine->dense, from_token(e->encoded, slots->in, at), room,
                      e->widest_out, end - p, first / BLOCK, last / BLOCK, e->ahead + thread);
        for (int t = 0; t < end - p; t++)
            for (int o = first; o < last; o += WIDTH) {
                float *to = y + (at + t) * stride + o;
                store(to, fused(splat(mine->scale), load(room + (size_t)t * e->widest_out + o),
                                load(to)));
            }
    }
}

/* y += the adapters' deltas of the same blocks. */
static void add_deltas(Engine *e, const Modules *m, float *y, int stride, int thread) {
    if (!m->pairs->num_pairs) return;
    const int rank = rank_of(m->slots, m->pairs);
    for (int part = 0, at = 0; m->pairs->num_vectored && part < m->parts; part++) {
        const int blocks = m->slots[part].out / BLOCK;
        const int first = SHARE(blocks, thread, e->pool.size) * BLOCK;
        const int last = SHARE(blocks, thread + 1, e->pool.size) * BLOCK;
        add_vector_deltas(m->slots + part, m->pairs, m->linears[part].bias_O,
                          e->answers + at, y + at, stride, e->spare + (size_t)thread * e->widest,
                          first, last);
        add_products(m->slots + part, m->pairs, e->products + at, total_out(m), y + at, stride,
                     first, last);
        add_dense(e, m->slots + part, m->pairs, y + at, stride, first, last, thread);
        add_sparse(m->slots + part, m->pairs, e->encoded.codes, e->encoded.scale_T, y + at, stride,
                   e->dense + (size_t)thread * DENSE_TOKENS * e->widest_out, first, last);
        at += m->slots[part].out;
    }
    barrier(&e->pool); /* until every h is there */
    for (int part = 0; part < m->parts; part++) {
        const int blocks = m->slots[part].out / BLOCK;
        expand(m->slots + part, m->pairs, e->hidden + part * part_size(e), y, stride, rank,
               e->hidden_codes + (size_t)thread * 2 * MANY * e->model->max_rank,
               SHARE(blocks, thread, e->pool.size) * BLOCK,
               SHARE(blocks, thread + 1, e->pool.size) * BLOCK);
        y += m->slots[part].out;
    }
}

#endif
