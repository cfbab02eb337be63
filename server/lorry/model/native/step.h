/* The native step: what Python hands over. Mirrored, field by field, in structs.py.
 *
 * All pointers belong to Python and outlive the call. Letters: T tokens of the step,
 * S slots, R largest rank, I in, O out, N cache cells, H key heads, D head size.
 */
#ifndef LORRY_STEP_H
#define LORRY_STEP_H

#include <stdint.h>

/* y = x W' + bias in int8; W = codes * scale. `codes` is packed: 16 outputs a block,
 * and in a block 4 inputs of output 0, 4 of output 1, ...: what one integer dot
 * product instruction eats. */
typedef struct {
    const int8_t *codes;
    const float *scale_O;
    const int32_t *sum_O; /* of each output's codes: undoes the activations' offset */
    const float *bias_O;  /* or NULL */
    int32_t out, in;      /* multiples of 16 */
} Linear;

/* The slots of one linear; `a_SRI` is NULL where no adapter has ever targeted it. A and B
 * are half precision floats; gain is what their product is worth in each slot. */
typedef struct {
    const uint16_t *a_SRI;
    const uint16_t *b_SRO;
    const int32_t *rank_S;
    const float *gain_S;
    int32_t in, out;
} Slots;

typedef struct {
    Linear qkv, o, gate_up, down;
    Slots q_slots, k_slots, v_slots, o_slots, gate_slots, up_slots, down_slots;
    const float *attention_norm, *mlp_norm;
    const float *q_norm, *k_norm; /* or NULL */
    float *k_NHD, *v_NHD;
    int32_t window; /* 0: none */
    int32_t rotary; /* 0: no positions in this layer */
} Layer;

typedef struct {
    int32_t num_layers, hidden, heads, kv_heads, head_size, inner, vocab, max_rank;
    float epsilon, attention_scale;
    const float *embedding;
    const float *norm;
    Linear head;
    Slots head_slots;
    const Layer *layers;
} Model;

/* Pairs (a token and one of its adapters) sorted by slot; segment s is the pairs
 * start[s] to start[s + 1] - 1, all of slot slot[s]. */
typedef struct {
    int32_t num_pairs, num_segments;
    const int32_t *token, *slot, *start;
    const float *scale;
} Pairs;

typedef struct {
    int32_t num_tokens, num_wanted;
    const int32_t *ids, *position, *cell; /* per token; cell: where it is cached */
    const int32_t *row;                   /* per token: its row */
    const int64_t *context;               /* per row: first of its cells in `cells` */
    const int32_t *cells;
    const float *cos, *sin; /* per token, head_size / 2 */
    Pairs body, head;       /* head's tokens count the wanted ones */
    const int32_t *wanted;  /* tokens, ascending */
    float *logits;          /* [num_wanted, vocab] */
    float *norm;            /* [num_wanted]: log of the sum of e^logit */
    int32_t *best;          /* [num_wanted]: the largest logit's token, the first of equals */
} Step;

typedef struct Engine Engine;

/* NULL where memory or threads cannot be had. */
Engine *lorry_engine(const Model *model, int32_t max_tokens, int32_t max_pairs,
                     int32_t max_context, int32_t num_threads);
void lorry_engine_free(Engine *engine);
void lorry_run(Engine *engine, const Step *step);
/* y [T, out] = linear(x [T, in]); for tests. */
void lorry_linear(Engine *engine, const Linear *linear, const float *x, float *y, int32_t tokens);

#endif
