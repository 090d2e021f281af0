"""Qwen's tokenizer, small: a real one, with the template that the pipelines use."""

import pytest
from transformers import AutoTokenizer

from trainer.errors import ConfigError
from trainer.models.dit import qwen


def test_a_prompt_is_a_users_message_and_the_answer_begins_behind_it():
    said = qwen.as_chat(qwen.small(), "a photo of sks dog")
    assert said == ("<|im_start|>user\na photo of sks dog<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert qwen.as_chat(qwen.small(), "x", thinking=True).endswith("<|im_start|>assistant\n")


def test_marks_are_single_tokens_and_any_text_comes_back():
    tokenizer, text = qwen.small(), "ein schöner Hund, 犬 🐕"
    assert all(len(tokenizer(mark)["input_ids"]) == 1 for mark in (*qwen.MARKS, qwen.END))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("a photo of a dog")["input_ids"]) < len("a photo of a dog"), "it has merges"


def test_the_one_in_a_models_folder_is_read(tmp_path):
    qwen.small().save_pretrained(tmp_path / "tokenizer")
    text = qwen.as_chat(qwen.small(), "a dog")
    read = qwen.tokenizer(tmp_path / "tokenizer")
    assert read(text)["input_ids"] == qwen.small()(text)["input_ids"] and qwen.as_chat(read, "a dog") == text
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(text)["input_ids"] == read(text)["input_ids"]


def test_a_missing_one_and_one_without_template_are_named(tmp_path):
    with pytest.raises(ConfigError, match="has no tokenizer"):
        qwen.tokenizer(tmp_path)
    bare = qwen.small()
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no chat template"):
        qwen.tokenizer(tmp_path)
