/* A mixture of experts: of each token, the few experts that its scores choose.
 *
 * The chosen experts of all tokens are sorted by expert, so that an expert's weights are read once
 * for all of its rows. What a token gets does not depend on the others: an expert's product of a row
 * has the same bits beside any row, and a token's answers are added in the order of its scores.
 *
 * Letters: E experts, K chosen ones of a token, S = T K rows.
 */
#ifndef LORRY_MIXTURE_H
#define LORRY_MIXTURE_H

#include "engine.h"
#include "linear.h"
#include "mlp.h"
#include "modules.h"
#include "step.h"
#include "vectors.h"

/* a . b, added up in the same order on every instruction set. */
INLINE float dot_product(const float *a, const float *b, int size) {
    enum { SUMS = 4 };
    Floats sums[SUMS][VECTORS];
    for (int s = 0; s < SUMS; s++)
        for (int v = 0; v < VECTORS; v++) sums[s][v] = splat(0);
    int i = 0;
    for (; i + SUMS * BLOCK <= size; i += SUMS * BLOCK)
        for (int s = 0; s < SUMS; s++)
            for (int v = 0; v < VECTORS; v++) {
                const int at = i + s * BLOCK + v * WIDTH;
                sums[s][v] = fused(load(a + at), load(b + at), sums[s][v]);
            }
    for (; i < size; i += BLOCK)
        for (int v = 0; v < VECTORS; v++)
            sums[0][v] = fused(load(a + i + v * WIDTH), load(b + i + v * WIDTH), sums[0][v]);
    float lanes[BLOCK];
    for (int v = 0; v < VECTORS; v++)
        store(lanes + v * WIDTH, (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]));
    for (int half = BLOCK / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

/* e^v of one number, with the bits that it has in a vector. */
static float exponential_of(float v) {
    float lanes[WIDTH];
    store(lanes, exponential(splat(v)));
    return lanes[0];
}

/* The scores of every token by this thread's experts: scores [T, E]. x [T, hidden]. The gate of the
 * expert that all tokens share counts as one more expert's. */
static void score(Engine *e, const Mixture *m, const float *x, int thread) {
    const int hidden = e->model->hidden, tokens = e->step->num_tokens, threads = e->pool.size;
    const int rows = m->experts + (m->shared_gate != NULL);
    const int first = SHARE(rows, thread, threads), last = SHARE(rows, thread + 1, threads);
    for (int r = first; r < last; r++) {
        const float *row = r < m->experts ? m->router + (size_t)r * hidden : m->shared_gate;
        for (int t = 0; t < tokens; t++) {
            const float found = dot_product(row, x + (size_t)t * hidden, hidden);
            if (r < m->experts)
                e->mixture.score[(size_t)t * m->experts + r] = found + (m->bias ? m->bias[r] : 0);
            else e->mixture.shared_T[t] = 1.0f / (1.0f + exponential_of(-found));
        }
    }
}

/* e^(score - the largest), in place; their sum. */
static float exponentials(float *score, int experts) {
    float largest = score[0], total = 0;
    for (int i = 1; i < experts; i++)
        if (score[i] > largest) largest = score[i];
    for (int i = 0; i < experts; i++) {
        score[i] = exponential_of(score[i] - largest);
        total += score[i];
    }
    return total;
}

/* The largest of `compared` beside the k chosen ones, the first of equals. Where they are no numbers, it
 * is some expert all the same. */
static int next_of(const float *compared, int experts, const int32_t *chosen, int k) {
    int best = -1;
    for (int i = 0; i < experts; i++) {
        int taken = 0;
        for (int j = 0; j < k; j++) taken |= chosen[j] == i;
        if (!taken && (best < 0 || compared[i] > compared[best])) best = i;
    }
    return best;
}

/* Experts of no group that is kept are compared as the least. */
static void leave_groups(const Mixture *m, float *compared) {
    const int each = m->experts / m->groups;
    float sums[GROUPS_MOST];
    int32_t kept[GROUPS_MOST];
    for (int g = 0; g < m->groups; g++) {
        const float *mine = compared + g * each;
        float first = -INFINITY, second = -INFINITY;
        for (int i = 0; i < each; i++) {
            if (mine[i] > first) second = first, first = mine[i];
            else if (mine[i] > second) second = mine[i];
        }
        sums[g] = each > 1 ? first + second : first;
    }
    for (int k = 0; k < m->kept; k++) kept[k] = next_of(sums, m->groups, kept, k);
    for (int g = 0; g < m->groups; g++) {
        int stays = 0;
        for (int k = 0; k < m->kept; k++) stays |= kept[k] == g;
        for (int i = 0; i < each && !stays; i++) compared[g * each + i] = -INFINITY;
    }
}

/* `Scoring` sparse. */
static void choose_sparsely(const Mixture *m, const float *score, int32_t *chosen, float *part) {
    for (int k = 0; k < m->chosen; k++) {
        const int best = next_of(score, m->experts, chosen, k);
        const float most = score[best];
        float total = 0;
        for (int i = 0; i < m->experts; i++) {
            int taken = 0;
            for (int j = 0; j < k; j++) taken |= chosen[j] == i;
            const float size = fabsf(score[i]) > most ? fabsf(score[i]) : most;
            if (!taken && !((most - score[i]) / size > m->tolerance))
                total += exponential_of(score[i] - most);
        }
        chosen[k] = best;
        part[k] = m->factor / total;
    }
}

/* The experts of token t, the first of equals first, and what they count. */
static void choose(Engine *e, const Mixture *m, int t) {
    float *score = e->mixture.score + (size_t)t * m->experts, *compared = score;
    int32_t *chosen = e->mixture.chosen + (size_t)t * m->chosen;
    float *part = e->mixture.part + (size_t)t * m->chosen, total = 1;
    if (m->scoring == SPARSE) {
        choose_sparsely(m, score, chosen, part);
        return;
    }
    if (m->correction || m->groups) compared = e->mixture.compared + (size_t)t * m->experts;
    if (m->corrects_scores)
        for (int i = 0; i < m->experts; i++) compared[i] = score[i];
    if (m->scoring == SOFTMAX) total = exponentials(score, m->experts);
    else
        for (int i = 0; i < m->experts; i++) score[i] = 1.0f / (1.0f + exponential_of(-score[i]));
    if (compared != score && !m->corrects_scores)
        for (int i = 0; i < m->experts; i++) compared[i] = score[i] / total;
    if (m->correction)
        for (int i = 0; i < m->experts; i++) compared[i] += m->correction[i];
    if (m->groups) leave_groups(m, compared);
    float all = 0;
    for (int k = 0; k < m->chosen; k++) {
        chosen[k] = next_of(compared, m->experts, chosen, k);
        part[k] = score[chosen[k]];
        all += part[k];
    }
    /* As transformers has it where all values are 0. */
    const float factor = m->factor / (m->normed ? all + 1e-20f : total);
    for (int k = 0; k < m->chosen; k++) part[k] *= factor;
}

/* Sorts the rows: those of expert i are start[i] to start[i + 1] - 1; row s is pair pair[s], and
 * pair p, of token p / K, is row row[p]. Those of one expert are in the tokens' order. */
static void sort_rows(Engine *e, const Mixture *m) {
    MixtureRows *r = &e->mixture;
    const int rows = e->step->num_tokens * m->chosen;
    memset(r->start, 0, sizeof *r->start * ((size_t)m->experts + 1));
    for (int p = 0; p < rows; p++) r->start[r->chosen[p] + 1]++;
    for (int i = 0; i < m->experts; i++) r->start[i + 1] += r->start[i];
    /* Each start moves to its end, which is the next one's. */
    for (int p = 0; p < rows; p++) {
        const int s = r->start[r->chosen[p]]++;
        r->row[p] = s;
        r->pair[s] = p;
    }
    for (int i = m->experts; i > 0; i--) r->start[i] = r->start[i - 1];
    r->start[0] = 0;
}

/* `out` outputs from `first` on, which are a linear of their own. */
static Linear part_of(const Linear *all, int first, int out) {
    Linear part = *all;
    const size_t weights = (size_t)first * (size_t)all->in;
    part.out = out;
    part.codes += all->levels ? weights / 2 : weights;
    part.scale_O += first;
    if (all->sum_O) part.sum_O += first;
    if (all->bias_O) part.bias_O += first;
    if (all->chunk_scale) part.chunk_scale += weights / CHUNK;
    return part;
}

/* y [S, stride]: this thread's blocks of `out` outputs from expert * each + `first` on, of each
 * expert's rows. */
static void multiply_rows(Engine *e, const Mixture *m, const Linear *all, int each, int first,
                          int out, float *y, int stride, int thread) {
    const MixtureRows *r = &e->mixture;
    const int threads = e->pool.size, blocks = out / BLOCK;
    for (int i = 0; i < m->experts; i++) {
        const int rows = r->start[i + 1] - r->start[i], begin = r->start[i];
        if (!rows) continue;
        const Linear mine = part_of(all, i * each + first, out);
        linear_blocks(&mine, from_token(r->encoded, all->in, (size_t)begin),
                      y + (size_t)begin * stride, stride, rows, SHARE(blocks, thread, threads),
                      SHARE(blocks, thread + 1, threads), e->ahead + thread);
    }
}

/* gate = f(gate) * up, or as GPT-OSS has it, from `first` to `last` - 1. */
static void activate_gate(Engine *e, const Mixture *m, float *gate, const float *up, int first,
                          int last) {
    if (!m->alpha) {
        activate_row(e->model->activation, gate, up, first, last);
        return;
    }
    const Floats limit = splat(m->limit), alpha = splat(-m->alpha);
    for (int i = first; i < last; i += WIDTH) {
        const Floats g = -greater(-load(gate + i), -limit);
        const Floats u = -greater(-greater(load(up + i), -limit), -limit);
        store(gate + i, (u + splat(1.0f)) * (g / (splat(1.0f) + exponential(g * alpha))));
    }
}

/* The same of a row whose gates lie between the others. */
static void activate_pairs(Engine *e, const Mixture *m, float *row) {
    float gate[BLOCK], up[BLOCK];
    for (int first = 0; first < m->inner; first += BLOCK) {
        for (int i = 0; i < BLOCK; i++) {
            gate[i] = row[2 * (first + i)];
            up[i] = row[2 * (first + i) + 1];
        }
        activate_gate(e, m, gate, up, 0, BLOCK);
        memcpy(row + first, gate, sizeof gate);
    }
}

/* Row s, as the linear reads it. */
static void encode_row(MixtureRows *r, const Linear *linear, const float *x, int s) {
    encode_token(x, from_token(r->encoded, linear->in, (size_t)s), linear->in,
                 !reads_chunks(linear), far_of(linear));
}

/* answer [T, hidden] of the mixture: this thread's blocks of outputs. x [T, hidden] is what the
 * router reads, everybody's. */
static __attribute__((noinline)) void run_mixture(Engine *e, const Mixture *m, const float *x, int thread) {
    MixtureRows *r = &e->mixture;
    const int hidden = e->model->hidden, tokens = e->step->num_tokens, threads = e->pool.size;
    const int inner = m->inner, rows = tokens * m->chosen;
    const int first = SHARE(rows, thread, threads), last = SHARE(rows, thread + 1, threads);
    ahead_clear(e->ahead + thread);
    score(e, m, x, thread);
    barrier(&e->pool);
    for (int t = SHARE(tokens, thread, threads); t < SHARE(tokens, thread + 1, threads); t++)
        choose(e, m, t);
    barrier(&e->pool);
    if (!thread) sort_rows(e, m);
    barrier(&e->pool);
    for (int s = first; s < last; s++)
        encode_row(r, &m->gate_up, x + (size_t)(r->pair[s] / m->chosen) * hidden, s);
    barrier(&e->pool);
    if (m->interleaved) {
        multiply_rows(e, m, &m->gate_up, 2 * inner, 0, 2 * inner, r->gate, 2 * inner, thread);
        barrier(&e->pool);
        for (int s = first; s < last; s++) activate_pairs(e, m, r->gate + (size_t)s * 2 * inner);
    } else {
        multiply_rows(e, m, &m->gate_up, 2 * inner, 0, inner, r->gate, 2 * inner, thread);
        multiply_rows(e, m, &m->gate_up, 2 * inner, inner, inner, r->gate + inner, 2 * inner, thread);
        for (int s = 0; s < rows; s++) {
            float *gate = r->gate + (size_t)s * 2 * inner;
            activate_gate(e, m, gate, gate + inner, SHARE(inner / BLOCK, thread, threads) * BLOCK,
                          SHARE(inner / BLOCK, thread + 1, threads) * BLOCK);
        }
        barrier(&e->pool);
    }
    for (int s = first; s < last; s++) encode_row(r, &m->down, r->gate + (size_t)s * 2 * inner, s);
    barrier(&e->pool);
    multiply_rows(e, m, &m->down, hidden, 0, hidden, r->down, hidden, thread);
    for (int t = 0; t < tokens; t++) {
        float *answer = r->answer + (size_t)t * hidden;
        for (int i = SHARE(hidden / BLOCK, thread, threads) * BLOCK;
             i < SHARE(hidden / BLOCK, thread + 1, threads) * BLOCK; i += WIDTH) {
            Floats total = splat(0);
            for (int p = t * m->chosen; p < (t + 1) * m->chosen; p++)
                total = fused(load(r->down + (size_t)r->row[p] * hidden + i), splat(r->part[p]), total);
            store(answer + i, total);
        }
    }
}

/* answer += gate * shared, of this thread's blocks. */
static __attribute__((noinline)) void add_shared(Engine *e, const Mixture *m, const float *shared,
                                                 int thread) {
    const int hidden = e->model->hidden, threads = e->pool.size;
    for (int t = 0; t < e->step->num_tokens; t++) {
        const size_t row = (size_t)t * hidden;
        const Floats gate = splat(m->shared_gate ? e->mixture.shared_T[t] : 1.0f);
        for (int i = SHARE(hidden / BLOCK, thread, threads) * BLOCK;
             i < SHARE(hidden / BLOCK, thread + 1, threads) * BLOCK; i += WIDTH) {
            float *answer = e->mixture.answer + row + i;
            store(answer, fused(load(shared + row + i), gate, load(answer)));
        }
    }
}

#endif
