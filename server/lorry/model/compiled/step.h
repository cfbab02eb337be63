/* The compiled step: what Python hands over. Mirrored, field by field, in structs.py.
 *
 * All pointers belong to Python and outlive the call. Letters: T tokens of the step,
 * S slots, R rank, I in, O out, N cache cells, H key heads, D head size.
 */
#ifndef LORRY_STEP_H
#define LORRY_STEP_H

#include <stdint.h>

/* y = x W' + bias. `codes` is packed: 16 outputs a block, and in a block 4 inputs of output 0,
 * 4 of output 1, ...: the operand of one integer dot product instruction.
 *
 * In 8 bits, W = codes * scale. In 4 bits (`levels`), two such operands share their bytes: the
 * first is in the lower halves. W = levels[code] * chunk_scale * scale, with one chunk scale for
 * CHUNK inputs of an output, in half precision, [out / 16, in / CHUNK, 16]. */
typedef struct {
    const uint8_t *codes;
    const float *scale_O;
    const int32_t *sum_O;  /* of each output's codes; undoes the activations' offset where these are
                            * codes, too; NULL: they are bytes in chunks */
    const float *bias_O;   /* or NULL */
    const int8_t *levels;  /* [16]; NULL: 8 bits */
    const uint16_t *chunk_scale;
    int32_t out, in; /* multiples of 16; without `sum_O`, `in` of CHUNK */
} Linear;

/* One adapter's part of one linear, as adapter.py packs it. */
typedef struct {
    /* Codes [R / 8, I / 8, 8, 8]: 8 rows of A, 8 inputs of each; then the sum of each row's,
     * int32 [R], which undoes the activations' offset. */
    const int8_t *a;
    /* For each 16 outputs: codes of B plus 128 [R / 4, 16, 4], then the scales of the outputs'
     * codes, bfloat16 [16]. */
    const uint8_t *b;
    /* Of matrices that several adapters share: what each of A's rows and B's outputs counts for
     * this one. NULL: once. */
    const float *inner_R, *outer_O;
    int32_t rank; /* a multiple of 8; 0: it has no such part */
} Lora;

/* y += (w1 (x) w2) x: x is [c, d], y is [a, b]. */
typedef struct {
    const float *w1_AC, *w2_DB; /* w2 [d, wide], wide a multiple of 16 */
    int32_t a, b, c, d, wide;
} Kronecker;

/* x += M x, M of blocks along its diagonal: half precision [in / size, size, wide], what each input
 * of a block adds to each other. wide: size, up to a multiple of 16. */
typedef struct {
    const uint16_t *blocks;
    int32_t size, wide;
} Turn;

/* y += S x, S zero at most places. Windows of SPARSE_WINDOW outputs, the last may be smaller; in each,
 * groups of BLOCK outputs, those with the most numbers first. A lane of a group is one output, and
 * a step of it two rows of bytes: how many columns further the next number of each lane is, and its
 * code. */
typedef struct {
    const uint8_t *steps;     /* [steps of all groups, 2, 16] */
    const int32_t *start_G;   /* the first step of each group, and the end of the last */
    const uint8_t *place_O;   /* of each lane of each group: its output's place in the window */
    const float *scale_O;     /* of each output's codes */
} Sparse;

/* What an adapter does to one linear beside its pair, at one scale; each a vector or NULL. */
typedef struct {
    const float *more_O;   /* y += more * base(x) */
    const float *shift_O;  /* y += shift */
    const float *inward_I; /* y += base((1 + inward) * x) - base(x) */
    const Turn *turn;      /* the same, with scale * M in place of inward */
    const Kronecker *kronecker; /* scale times; also the next */
    const Linear *dense;
    const Sparse *sparse;
    float scale;
    int32_t dora;    /* its pair counts 1 + more times, the base's bias once */
    int32_t instead; /* inward or turn, and nothing else of it reads x or base(x) */
} VectorDelta;

/* Of every slot, what it holds for one linear. */
typedef struct {
    const Lora *of_S;
    const int32_t *most_S; /* the largest rank that its adapter has on any linear */
    int32_t in, out;
    int32_t module; /* its place among an adapter's vectors */
} Slots;

/* What a layer's attention is beside softmax(scale * q . k) v. */
typedef struct {
    float scale;
    float cap;            /* a score becomes cap * tanh(score / cap); 0: it stays */
    const float *slope_Q; /* per query head: its scores lose slope * distance (ALiBi); or NULL */
    const float *sink_Q;  /* per query head: the score of a token more, without a value; or NULL */
    int32_t window;       /* last tokens that one sees, its own included; 0: all */
} Attention;

/* y = weight * (x - m) / sqrt(mean((x - m)^2) + epsilon) + bias. */
typedef struct {
    const float *weight; /* NULL: there is no such norm */
    const float *bias;   /* or NULL */
    float epsilon;
    int32_t centred; /* m is the mean of x, else 0 */
    int32_t size;    /* of heads: numbers that are normed together, */
    int32_t each;    /* and whether each such group has its own weight */
} Norm;

/* In the order of `formulas.ACTIVATIONS`. */
enum { SILU, GELU, GELU_TANH, GELU_QUICK, RELU, RELU_SQUARED };

/* Numbers of a table of embeddings; in the order of `model_structs.TABLES`. */
enum { SINGLE, HALF, BFLOAT };

/* What an expert's value is; in the order of `model_structs.SCORINGS`. */
enum { SOFTMAX, SIGMOID, SPARSE };

#define GROUPS_MOST 64

/* Experts, of which a token's scores choose some; `RouterDescription` says how. Expert i has outputs
 * 2 * inner * i to 2 * inner * (i + 1) - 1 of `gate_up`, and hidden * i to hidden * (i + 1) - 1 of
 * `down`. */
typedef struct {
    const float *router; /* [experts, hidden]: a token's scores are router . x + bias */
    const float *bias, *correction; /* [experts]; or NULL */
    Linear gate_up, down;
    const float *shared_gate; /* [hidden]: the layer's own MLP counts sigmoid(shared_gate . x); or
                               * NULL: it counts 1, if there is one */
    float factor;             /* on the sum over the chosen ones of their part times their answer */
    int32_t experts;          /* 0: there is no mixture */
    int32_t chosen, inner;
    int32_t normed; /* the chosen ones' parts are 1 in all */
    int32_t scoring, corrects_scores;
    int32_t groups, kept; /* groups 0: any expert can be chosen */
    float tolerance;
    int32_t interleaved; /* of an expert's outputs of `gate_up`, every second is a gate's, from the
                          * first on; else the first half is */
    float alpha, limit;  /* of a gate as GPT-OSS has it; alpha 0: it is the model's */
} Mixture;

/* `description.py` says what a layer does. */
typedef struct {
    Linear qkv[3], o, gate_up[2], down;
    Slots qkv_slots[3], o_slots, gate_up_slots[2], down_slots;
    Mixture mixture;
    int32_t inner; /* of its MLP beside a mixture */
    int32_t qkv_parts, gate_up_parts; /* modules: 3 or 1; 2, 1 or, beside a mixture, 0 */
    Norm attention_norm, after_attention, mlp_norm, after_mlp;
    Norm q_norm, k_norm;
    const int32_t *heads_at; /* where the queries' heads begin in qkv's answer, then the keys', then
                              * the values'; NULL: they lie in this order */
    void *k_NHD, *v_NHD; /* half precision, or where there are scales, signed bytes */
    uint16_t *k_scale_NH, *v_scale_NH; /* what a byte is worth, in half precision; or NULL */
    Attention attention;
    int32_t rope;            /* which of the step's angles; -1: heads are not rotated */
    int32_t parallel;        /* the MLP reads the x that attention read */
    float attention_residual, mlp_residual;
    int32_t norm_last;   /* heads are normed after they were rotated, not before */
    int32_t plain_heads; /* in order, rotated whole in halves by the first angles; norms of each
                          * head, if any, are not centred and have one weight */
    int32_t plain_sums;  /* answers are added as they are, one after the other */
} Layer;

typedef struct {
    int32_t num_layers, hidden, heads, kv_heads, head_size;
    int32_t inner; /* the largest of its layers */
    int32_t vocab;
    int32_t max_rank; /* a multiple of 8 */
    int32_t rotated;  /* of a head, its first ones */
    int32_t pairs;    /* neighbours turn together, else each with the one half of them away */
    int32_t activation, gated;
    const void *embedding; /* [vocab, hidden] */
    int32_t embedding_kind;
    const float *positions;             /* learned, from position 0 on; or NULL */
    float embedding_factor, own_factor; /* of rows of the table, and of a token's own */
    Norm embedding_norm;                /* before positions are added */
    int32_t plain_embedding;            /* none of these is there */
    float logit_factor, logit_cap;      /* cap 0: none */
    int32_t plain_logits;               /* neither is there */
    Norm norm;
    Linear head;
    Slots head_slots;
    const Layer *layers;
} Model;

/* Wanted tokens `first` to `last` - 1 have a head of their adapter's own: as wide as the base's, for
 * the first `words` tokens of the vocabulary. */
typedef struct {
    const Linear *linear;
    int32_t first, last, words;
} OwnHead;

/* Pairs (a token and one of its adapters) sorted by slot; segment s is the pairs
 * start[s] to start[s + 1] - 1, all of slot slot[s]. */
typedef struct {
    int32_t num_pairs, num_segments;
    const int32_t *token, *slot, *start;
    const float *scale;
    /* Tokens with pairs that have vectors, ascending: vectored[g] has the pairs uses[first[g]] to
     * uses[first[g + 1] - 1], and alone[g]: no other one. vectors[p]: pair p's, of every linear,
     * or NULL. */
    int32_t num_vectored;
    const int32_t *vectored, *alone, *first, *uses;
    const VectorDelta *const *vectors;
} Pairs;

typedef struct {
    int32_t num_tokens, num_wanted;
    const int32_t *ids, *position, *cell; /* per token; cell: where it is cached */
    const int32_t *row;                   /* per token: its row */
    const float *const *own;              /* per token: its embedding, or NULL: the table's; or NULL */
    const int64_t *context;               /* per row: first of its cells in `cells` */
    const int32_t *cells;
    const float *cos, *sin; /* of each rope, per token, rotated / 2 */
    Pairs body, head;       /* head's tokens count the wanted ones */
    const int32_t *wanted;  /* tokens, ascending */
    float *seen;            /* [num_wanted, hidden]: what the head is given; or NULL */
    float *logits;          /* [num_wanted, vocab up to a multiple of 16] */
    float *norm;            /* [num_wanted]: log of the sum of e^logit */
    const OwnHead *own_heads;
    int32_t num_own_heads, all_own; /* all_own: no wanted token has the base's head */
    const int32_t *raw;     /* per wanted token: its logits are to stay as the head answers; or NULL */
    int32_t *best;          /* [num_wanted]: the largest logit's token, the first of equals */
} Step;

typedef struct Engine Engine;

/* NULL where memory or threads cannot be had. */
Engine *lorry_engine(const Model *model, int32_t max_tokens, int32_t max_pairs,
                     int32_t max_context, int32_t num_threads);
void lorry_engine_free(Engine *engine);
void lorry_run(Engine *engine, const Step *step);
/* The sum of the numbers in some regions of memory, each read once. */
int64_t lorry_read(Engine *engine, const uint64_t *const *starts, const int64_t *counts,
                   int32_t regions);
/* Packs one adapter's part of one linear into the memory that `Lora` describes; any thread.
 * -1 where memory cannot be had. */
int lorry_pack(const float *a_RI, const float *b_OR, float scaling, int32_t rank, int32_t in,
               int32_t out, int8_t *a, uint8_t *b);
/* bitsandbytes' 4-bit codes of w [blocks, size], two in a byte, and absmax [blocks]; `bounds` [15]
 * ascending, order [16]: the code of each place between them. Any thread. */
void lorry_quantize4(const float *w, int64_t blocks, int32_t size, const float *bounds,
                     const uint8_t *order, uint8_t *packed, float *absmax);
/* Weights as pack_weights.h has them; any thread. */
void lorry_pack8(const int8_t *codes, int32_t rows, int32_t in, int8_t *packed, int32_t *sums);
void lorry_pack4(const uint8_t *codes, const uint16_t *chunk_scale, int32_t rows, int32_t in,
                 uint8_t *packed, uint16_t *packed_scale);
void lorry_quantize8(const float *w, int32_t rows, int32_t in, int8_t *codes, float *scale);
/* y [T, out] = linear(x [T, in]). */
void lorry_linear(Engine *engine, const Linear *linear, const float *x, float *y, int32_t tokens);
/* y [T, out] = linear(x [T, in]) and what the adapters add to it; for tests. */
void lorry_module(Engine *engine, const Linear *linear, const Slots *slots, const Pairs *pairs,
                  const float *x, float *y, int32_t tokens);
/* y [T, hidden] = the experts' answers to x [T, hidden]; `mixture` is a layer's of the engine's model.
 * For tests. */
void lorry_mixture(Engine *engine, const Mixture *mixture, const float *x, float *y,
                   int32_t tokens);
/* attended [T, heads * D] of qkv [T, (heads + 2 * kv_heads) * D] by the last of some layers, which
 * take turns as in a step; keys and values are in the cache. For tests. */
void lorry_attend(Engine *engine, const Layer *layers, int32_t num_layers, const Step *step,
                  const float *qkv, float *attended);
/* kept [count] = the weights, 1 in all, of the most preferred tokens that first reach `mass`, at
 * least one; 0 elsewhere. None with a preference up to `floor` is among them. Any thread, as the
 * next; `room`: 20 bytes for each of count. */
void lorry_keep_mass(const float *weight, const float *preference, float floor, float mass,
                     int32_t count, float *kept, void *room);
/* The token on which `number`, in [0, 1), falls, where each has weight / total of the unit. */
int32_t lorry_draw(const float *weight, float total, int32_t count, double number, void *room);

#endif
