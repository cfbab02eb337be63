"""A byte-level BPE tokenizer, trained here on a few sentences: no file, no download.

Every byte has a token, so any text round-trips, and a character of several bytes
may span several tokens, as it does with the real ones.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
"""The first is padding. transformers' Qwen2 tokenizer adds it where it is missing."""

PAD, BOS, EOS = 0, 1, 2

VOCAB_SIZE = 384
"""5 special tokens, 256 bytes, 123 merges."""

_CORPUS = (
    "How do I cook rice? Rinse the rice, add the water, bring it to the boil and wait.",
    "The harbour was quiet in the morning; the lorry waited at the gate with its lights on.",
    "Ahoy there! What is the capital of the country, and who wrote the letter to the king?",
    "A model answers the question. An adapter changes how the model answers the question.",
    '{"name": "value", "number": 12, "list": [1, 2, 3], "nested": {"true": false}}',
    "She said that they would come back when the weather was better, and they never did.",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*, add_bos: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
