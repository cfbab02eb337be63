"""What is not served packed, of all decoders that transformers has: held to exactly by
`tests/oracle/test_decoders.py`.

By name of the decoder (`support.decoders`): its model type, and the variant after a comma.
"""

from __future__ import annotations

from collections.abc import Mapping

_STATE = "keeps a state from token to token"
_CHOICE = "passes 'indices' to attention"
_BIAS = "passes 'position_bias' to attention"
_NO_CACHE = "it keeps no keys and values in transformers' cache"
_ONE_BY_ONE = "padded, it does not run on a past"
_MIXED = "its tokens depend on more than those before them"
_FAIL = "padded, sequences that run together fail"
_DIFFER = "padded, sequences that run together differ"
_OTHER_CACHE = "it does not run on a cache of keys and values"
_NO_TEXT = "which is not a causal language model"
_APART = "do not receive a step's tokens one by one"
_VISION = "no text reaches these modules of the base"
_PARAMETERS = "target_parameters selects parameters that cannot carry a pair of matrices"
_NO_PARAMETER = "matches no parameter of the base"

PADDED = frozenset(
    {
        "big_bird",
        "bloom",
        "codegen",
        "diffllama",
        "doge",
        "falcon",
        "falcon, alibi",
        "falcon, multi-head",
        "falcon, new",
        "gemma4_text, shared keys",
        "gemma4_unified",
        "gpt_neo",
        "gpt_neox_japanese",
        "gpt_neox_japanese, bidirectional",
        "gptj",
        "hrm_text",
        "megatron-bert",
        "mpt",
        "mpt, soft cap",
        "rembert",
        "xglm",
    }
)
"""Their modeling code lets nobody replace its attention, or asks it for more than ours does."""

REFUSED: Mapping[str, str] = {
    "axk2": _CHOICE,
    "bailing_hybrid": _STATE,
    "bamba": _STATE,
    "bart": _DIFFER,
    "bart, bidirectional": _DIFFER,
    "bert, bidirectional": _DIFFER,
    "bert-generation, bidirectional": _DIFFER,
    "big_bird, bidirectional": _DIFFER,
    "bigbird_pegasus": _DIFFER,
    "bigbird_pegasus, bidirectional": _DIFFER,
    "blenderbot": _DIFFER,
    "blenderbot, bidirectional": _DIFFER,
    "blenderbot-small": _DIFFER,
    "blenderbot-small, bidirectional": _DIFFER,
    "blt": _OTHER_CACHE,
    "camembert": _DIFFER,
    "camembert, bidirectional": _DIFFER,
    "cpmant": _FAIL,
    "data2vec-text": _DIFFER,
    "data2vec-text, bidirectional": _DIFFER,
    "deepseek_v32": _CHOICE,
    "deepseek_v4": _OTHER_CACHE,
    "doge, experts": _MIXED,
    "dots3_note": _CHOICE,
    "dots3_note_text": _CHOICE,
    "electra, bidirectional": _DIFFER,
    "emu3": _NO_TEXT,
    "ernie, bidirectional": _DIFFER,
    "falcon_h1": _STATE,
    "falcon_mamba": _NO_CACHE,
    "git": _DIFFER,
    "glm_moe_dsa": _CHOICE,
    "granitemoehybrid": _STATE,
    "hy_v4": _CHOICE,
    "inkling2_text": _BIAS,
    "inkling_text": _BIAS,
    "jamba": _STATE,
    "kimi_linear": _STATE,
    "lfm2": _STATE,
    "lfm2_moe": _STATE,
    "lfm3": _STATE,
    "mamba": _NO_CACHE,
    "mamba2": _NO_CACHE,
    "marian": _DIFFER,
    "marian, bidirectional": _DIFFER,
    "mbart": _DIFFER,
    "mbart, bidirectional": _DIFFER,
    "megatron-bert, bidirectional": _DIFFER,
    "minimax": _STATE,
    "mllama": _NO_TEXT,
    "mvp": _DIFFER,
    "mvp, bidirectional": _DIFFER,
    "nemotron_h": _STATE,
    "olmo_hybrid": _STATE,
    "openai-gpt": _NO_CACHE,
    "pegasus": _DIFFER,
    "pegasus, bidirectional": _DIFFER,
    "plbart": _DIFFER,
    "plbart, bidirectional": _DIFFER,
    "prophetnet": _ONE_BY_ONE,
    "prophetnet, bidirectional": _ONE_BY_ONE,
    "qwen3_5": _STATE,
    "qwen3_5_moe": _STATE,
    "qwen3_5_moe_text": _STATE,
    "qwen3_5_text": _STATE,
    "qwen3_next": _STATE,
    "qwen4_exp": _OTHER_CACHE,
    "qwen4_exp_text": _OTHER_CACHE,
    "recurrent_gemma": _STATE,
    "reformer": _NO_CACHE,
    "reformer, local": _NO_CACHE,
    "rembert, bidirectional": _DIFFER,
    "roberta": _DIFFER,
    "roberta, bidirectional": _DIFFER,
    "roberta-prelayernorm": _DIFFER,
    "roberta-prelayernorm, bidirectional": _DIFFER,
    "roc_bert, bidirectional": _DIFFER,
    "roformer": _DIFFER,
    "roformer, bidirectional": _DIFFER,
    "rwkv": _NO_CACHE,
    "trocr": _DIFFER,
    "trocr, bidirectional": _DIFFER,
    "xlm": _NO_CACHE,
    "xlm-roberta": _DIFFER,
    "xlm-roberta, bidirectional": _DIFFER,
    "xlm-roberta-xl": _DIFFER,
    "xlm-roberta-xl, bidirectional": _DIFFER,
    "xlnet": _NO_CACHE,
    "xlstm": _OTHER_CACHE,
    "xmod": _DIFFER,
    "xmod, bidirectional": _DIFFER,
    "zamba": _STATE,
    "zamba2": _STATE,
    "zaya": _OTHER_CACHE,
}
"""With words of the refusal at start."""

_CHOSEN = "its experts are chosen in an unknown way"
_OUT = "attention's answer does not go to one linear"
_KEYS = "its keys are made in an unknown way"
_ANGLES = "its keys are rotated in an unknown way"
_ORDER = "its norms and residuals are in an unknown order"
_VALUES = "its values are not those of a projection"
_EMBEDDINGS = "something is done to its embeddings"

UNDESCRIBED: Mapping[str, str] = {
    # Its router's weight is in a linear, which is quantized.
    "hunyuan_v1_moe": _CHOSEN,
    **dict.fromkeys(("afmoe", "beam", "laguna", "laguna, no gates", "laguna, soft cap"), _OUT),
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite"), _KEYS),
    **dict.fromkeys(("minicpm3", "youtu"), _KEYS),
    "cohere2_moe": _ORDER,
    **dict.fromkeys(("gemma4, experts", "gemma4_text, experts"), _VALUES),
    **dict.fromkeys(
        ("llama4", "llama4_text", "llama4_text, tuned by position"),
        "a layer sees the current chunk alone",
    ),
    **dict.fromkeys(("llama4_text, no chunks", "moshi", "nanochat"), _ANGLES),
    **dict.fromkeys(
        ("bert", "bert-generation", "electra", "ernie", "roc_bert", "opt, norms after"), _ORDER
    ),
    **dict.fromkeys(("gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified_text"), _VALUES),
    **dict.fromkeys(("gemma4_text, keys as values", "olmo, clipping"), _VALUES),
    # Its values are shorter than its keys.
    "mimo_v2_flash": _VALUES,
    "ctrl": _EMBEDDINGS,
    "modernbert-decoder": "its head reads what no known norm makes",
    **dict.fromkeys(
        ("doge", "gemma4_unified", "gpt_neo", "gemma4_text, shared keys"),
        "rows are padded, and a layer may not see the whole past",
    ),
    **dict.fromkeys(("falcon, alibi", "mpt, soft cap"), "it attends in an unknown way"),
    # A linear of its vision part has 2700 inputs.
    "fuyu": "some of its linears are in a form that it does not read",
    "falcon, new": "its projections make more than queries, keys and values",
    **dict.fromkeys(
        ("big_bird", "rembert", "gpt_neox_japanese", "gpt_neox_japanese, bidirectional"), _ORDER
    ),
    **dict.fromkeys(("diffllama", "hrm_text"), "its layers do not run one after the other"),
    **dict.fromkeys(("megatron-bert", "xglm"), _EMBEDDINGS),
    **dict.fromkeys(
        ("apertus", "minimax_m3_vl_text"), "its MLP has an activation that is not known"
    ),
    "bitnet": _OUT,
    "dbrx": "its MLP is not of two or three linears",
    "jetmoe": "its queries are made in an unknown way",
    "longcat_flash": "its layers do not run one after the other",
    "whisper": "it is made in an unknown way",
}
"""What does not run on the compiled step, of what is served: words of the reason."""

ADAPTER_REFUSED: Mapping[str, str] = {
    "afmoe": _PARAMETERS,
    "big_bird": _APART,
    "doge": _APART,
    "ernie4_5_moe": _PARAMETERS,
    "fuyu": _VISION,
    "gemma3": _VISION,
    "got_ocr2": _VISION,
    "llama4": _APART,
    "llama4_text": _APART,
    "longcat_flash": _NO_PARAMETER,
    "minimax_m2": _PARAMETERS,
    "moss_transcribe_diarize": _VISION,
    "phimoe": _APART,
}
"""A LoRA of PEFT's `all-linear`, with words of the refusal at upload."""

NO_EXPERTS = frozenset(
    {
        "apertus",
        "arcee",
        "bert",
        "bert-generation",
        "big_bird",
        "biogpt",
        "bitnet",
        "bloom",
        "codegen",
        "cohere",
        "cohere2",
        "cohere_compass_text",
        "ctrl",
        "cwm",
        "dbrx",
        "diffllama",
        "doge",
        "electra",
        "ernie",
        "ernie4_5",
        "exaone4",
        "falcon",
        "flint",
        "fuyu",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "gemma3n_text",
        "gemma4",
        "gemma4_text",
        "gemma4_unified",
        "gemma4_unified_text",
        "glm",
        "glm4",
        "got_ocr2",
        "gpt-sw3",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gpt_neox_japanese",
        "gptj",
        "granite",
        "granite_swa",
        "helium",
        "hrm_text",
        "hunyuan_v1_dense",
        "hyperclovax",
        "internlm3",
        "iquestcoder",
        "jais2",
        "jetmoe",
        "llama",
        "llama4",
        "llama4_text",
        "longcat_flash",
        "megatron-bert",
        "minicpm3",
        "ministral",
        "ministral3",
        "mistral",
        "modernbert-decoder",
        "moshi",
        "moss_transcribe_diarize",
        "mpt",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "opt",
        "persimmon",
        "phi",
        "phi3",
        "phi4_multimodal",
        "qwen2",
        "qwen3",
        "rembert",
        "roc_bert",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "vaultgemma",
        "whisper",
        "xglm",
        "youtu",
    }
)
"""Model types without stacked experts, or with some that no adapter can name."""

NOT_TINY: Mapping[str, str] = {
    # Its vision part comes from another library.
    "gemma3n": "TimmWrapperModel requires",
    # They draft for another model, whose keys and values they read.
    "gemma4_assistant": "hidden_size_per_layer_input must be 0",
    "gemma4_unified_assistant": "layer types producing a cache is different",
    # The class wants the config of its decoder, and is listed with the whole model's.
    "musicgen": "has no attribute 'dropout'",
    "musicgen_melody": "has no attribute 'dropout'",
    "reformer, bidirectional": "make sure that `is_decoder=True`",
}
"""With words of what transformers says."""
