"""`step.h` in ctypes, field by field. Nothing else knows the layout."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int32, c_void_p


class Linear(Structure):
    _fields_ = [
        ("codes", c_void_p),
        ("scale_O", c_void_p),
        ("sum_O", c_void_p),
        ("bias_O", c_void_p),
        ("levels", c_void_p),
        ("chunk_scale", c_void_p),
        ("out", c_int32),
        ("in_", c_int32),
    ]


class Lora(Structure):
    _fields_ = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("inner_R", c_void_p),
        ("outer_O", c_void_p),
        ("rank", c_int32),
    ]


class KroneckerFactors(Structure):
    _fields_ = [
        ("w1_AC", c_void_p),
        ("w2_DB", c_void_p),
        ("a", c_int32),
        ("b", c_int32),
        ("c", c_int32),
        ("d", c_int32),
        ("wide", c_int32),
    ]


class TurnBlocks(Structure):
    _fields_ = [
        ("blocks", c_void_p),
        ("size", c_int32),
        ("wide", c_int32),
    ]


class SparseChange(Structure):
    _fields_ = [
        ("steps", c_void_p),
        ("start_G", c_void_p),
        ("place_O", c_void_p),
        ("scale_O", c_void_p),
    ]


class VectorDelta(Structure):
    _fields_ = [
        ("more_O", c_void_p),
        ("shift_O", c_void_p),
        ("inward_I", c_void_p),
        ("turn", c_void_p),
        ("kronecker", c_void_p),
        ("dense", c_void_p),
        ("sparse", c_void_p),
        ("scale", c_float),
        ("dora", c_int32),
        ("instead", c_int32),
    ]


class LinearSlots(Structure):
    _fields_ = [
        ("of_S", c_void_p),
        ("most_S", c_void_p),
        ("in_", c_int32),
        ("out", c_int32),
        ("module", c_int32),
    ]


class Attention(Structure):
    _fields_ = [
        ("scale", c_float),
        ("cap", c_float),
        ("slope_Q", c_void_p),
        ("sink_Q", c_void_p),
        ("window", c_int32),
    ]


class Norm(Structure):
    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("epsilon", c_float),
        ("centred", c_int32),
        ("size", c_int32),
        ("each", c_int32),
    ]


NORMS = ("attention_norm", "after_attention", "mlp_norm", "after_mlp", "q_norm", "k_norm")


class Mixture(Structure):
    _fields_ = [
        ("router", c_void_p),
        ("bias", c_void_p),
        ("correction", c_void_p),
        ("gate_up", Linear),
        ("down", Linear),
        ("shared_gate", c_void_p),
        ("factor", c_float),
        ("experts", c_int32),
        ("chosen", c_int32),
        ("inner", c_int32),
        ("normed", c_int32),
        ("scoring", c_int32),
        ("corrects_scores", c_int32),
        ("groups", c_int32),
        ("kept", c_int32),
        ("tolerance", c_float),
        ("interleaved", c_int32),
        ("alpha", c_float),
        ("limit", c_float),
    ]


class Layer(Structure):
    _fields_ = [
        ("qkv", Linear * 3),
        ("o", Linear),
        ("gate_up", Linear * 2),
        ("down", Linear),
        ("qkv_slots", LinearSlots * 3),
        ("o_slots", LinearSlots),
        ("gate_up_slots", LinearSlots * 2),
        ("down_slots", LinearSlots),
        ("mixture", Mixture),
        ("inner", c_int32),
        ("qkv_parts", c_int32),
        ("gate_up_parts", c_int32),
        *((name, Norm) for name in NORMS),
        ("heads_at", c_void_p),
        ("k_NHD", c_void_p),
        ("v_NHD", c_void_p),
        ("k_scale_NH", c_void_p),
        ("v_scale_NH", c_void_p),
        ("attention", Attention),
        ("rope", c_int32),
        ("parallel", c_int32),
        ("attention_residual", c_float),
        ("mlp_residual", c_float),
        ("norm_last", c_int32),
        ("plain_heads", c_int32),
        ("plain_sums", c_int32),
    ]


class Model(Structure):
    _fields_ = [
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_size", c_int32),
        ("inner", c_int32),
        ("vocab", c_int32),
        ("max_rank", c_int32),
        ("rotated", c_int32),
        ("pairs", c_int32),
        ("activation", c_int32),
        ("gated", c_int32),
        ("embedding", c_void_p),
        ("embedding_kind", c_int32),
        ("positions", c_void_p),
        ("embedding_factor", c_float),
        ("own_factor", c_float),
        ("embedding_norm", Norm),
        ("plain_embedding", c_int32),
        ("logit_factor", c_float),
        ("logit_cap", c_float),
        ("plain_logits", c_int32),
        ("norm", Norm),
        ("head", Linear),
        ("head_slots", LinearSlots),
        ("layers", POINTER(Layer)),
    ]


class Pairs(Structure):
    _fields_ = [
        ("num_pairs", c_int32),
        ("num_segments", c_int32),
        ("token", c_void_p),
        ("slot", c_void_p),
        ("start", c_void_p),
        ("scale", c_void_p),
        ("num_vectored", c_int32),
        ("vectored", c_void_p),
        ("alone", c_void_p),
        ("first", c_void_p),
        ("uses", c_void_p),
        ("vectors", c_void_p),
    ]


class OwnHead(Structure):
    _fields_ = [
        ("linear", c_void_p),
        ("first", c_int32),
        ("last", c_int32),
        ("words", c_int32),
    ]


class StepArguments(Structure):
    _fields_ = [
        ("num_tokens", c_int32),
        ("num_wanted", c_int32),
        ("ids", c_void_p),
        ("position", c_void_p),
        ("cell", c_void_p),
        ("row", c_void_p),
        ("own", c_void_p),
        ("context", c_void_p),
        ("cells", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("body", Pairs),
        ("head", Pairs),
        ("wanted", c_void_p),
        ("seen", c_void_p),
        ("logits", c_void_p),
        ("norm", c_void_p),
        ("own_heads", c_void_p),
        ("num_own_heads", c_int32),
        ("all_own", c_int32),
        ("raw", c_void_p),
        ("best", c_void_p),
    ]
