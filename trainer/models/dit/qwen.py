"""Qwen's tokenizer: byte-level BPE, and a chat template that wraps a prompt as a user's message.

    <|im_start|>user
    a photo of sks dog<|im_end|>
    <|im_start|>assistant

An image model asks for the answer that will never be written; klein closes Qwen's thinking first, Z-Image leaves it open.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from trainer.errors import ConfigError
from trainer.models.dit import language

END = "<|endoftext|>"  # pads, too
MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE = (  # Qwen3's own, for the messages that come here
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
WORDS = ("a photo of a dog", "a photo of a cat", "the person in the picture", "user assistant think") * 4


def as_chat(tokenizer: PreTrainedTokenizerBase, prompt: str, thinking: bool = False) -> str:
    """`prompt` as a message, up to where the answer would begin; `thinking` False closes the thought before it."""
    messages = [{"role": "user", "content": prompt}]
    said = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    assert isinstance(said, str)
    return said


def tokenizer(place: Path) -> PreTrainedTokenizerBase:
    """The one in the folder `place` of a model."""
    found = language.tokenizer(place)
    if not found.chat_template:
        raise ConfigError(
            f"the tokenizer in {place} has no chat template",
            "copy or download the tokenizer's folder again, with chat_template.jinja or tokenizer_config.json",
        )
    return found


def small() -> PreTrainedTokenizerBase:
    """A real one with a few hundred tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # which transformers brings

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    learnt.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters, show_progress=False)
    )
    model = json.loads(learnt.to_str())["model"]
    vocabulary = model["vocab"] | {END: len(model["vocab"])}
    made = Qwen2Tokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], extra_special_tokens=list(MARKS)
    )
    made.chat_template = TEMPLATE
    return made
