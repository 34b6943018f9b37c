"""Random models of a few hundred thousand body parameters, with real tokenizers, for tests of the whole path.

Each function writes a folder that loads like a downloaded model. Weights depend on `seed` only. The vocabularies are
the real ones (32,768 or 131,072 entries), so the hidden size stays small.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import mistral_common
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PixtralVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import resolve_base

MISTRAL_DATA = Path(mistral_common.__file__).parent / "data"
MISTRAL_TOKENIZERS = {
    "v3": (MISTRAL_DATA / "mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3"),
    "v7": (MISTRAL_DATA / "mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model.v7"),
    "tekken": (MISTRAL_DATA / "tekken_240911.json", "tekken.json"),
}
_VOCABULARY = {"v3": 32_768, "v7": 32_768, "tekken": 131_072}
_SHAPE: dict[str, Any] = {
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_mistral(folder: Path, tokenizer: Literal["v3", "v7", "tekken"] = "v3", seed: int = 0) -> Path:
    """Write a MistralForCausalLM with a real Mistral tokenizer (SentencePiece v3 or v7, or Tekken); return `folder`."""
    hidden = 32 if tokenizer == "tekken" else 64
    config = MistralConfig(
        vocab_size=_VOCABULARY[tokenizer], hidden_size=hidden, head_dim=hidden // 4, sliding_window=None, **_SHAPE
    )
    _write_model(folder, lambda: MistralForCausalLM(config), seed)
    write_mistral_tokenizer(folder, tokenizer)
    return folder


def tiny_mistral3(folder: Path, text: Literal["ministral3", "mistral"] = "ministral3", seed: int = 0) -> Path:
    """Write a Mistral3ForConditionalGeneration (text model, projector and vision tower) with Tekken."""
    text_class = Ministral3Config if text == "ministral3" else MistralConfig
    shape = _SHAPE | {"max_position_embeddings": 262_144}  # as its RoPE scaling assumes
    text_config = text_class(vocab_size=_VOCABULARY["tekken"], hidden_size=32, head_dim=8, sliding_window=None, **shape)
    vision_config = PixtralVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, head_dim=16, image_size=56
    )
    config = Mistral3Config(text_config=text_config, vision_config=vision_config, tie_word_embeddings=False)
    _write_model(folder, lambda: Mistral3ForConditionalGeneration(config), seed)
    write_mistral_tokenizer(folder, "tekken")
    return folder


def tiny_llama(folder: Path, numbers: Literal["digits", "whole"] = "digits", seed: int = 0) -> Path:
    """Write a LlamaForCausalLM with tied embeddings, a byte-level tokenizer and a chat template.

    With `numbers="whole"` the tokenizer has a token for every number from 10 to 100.
    """
    tokenizer = _byte_tokenizer(numbers)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    shape = _SHAPE | {"bos_token_id": None, "eos_token_id": end, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, head_dim=16, **shape)
    _write_model(folder, lambda: LlamaForCausalLM(config), seed)
    tokenizer.save_pretrained(folder)
    return folder


STUDENTS: dict[str, Callable[[Path], Path]] = {
    "mistral v3": tiny_mistral,
    "mistral tekken": lambda folder: tiny_mistral(folder, "tekken"),
    "ministral3": lambda folder: resolve_base(Student(model=str(tiny_mistral3(folder)))),
    "llama": tiny_llama,
}
"""Per kind of text model and tokenizer, what makes a folder of it. A test sets PPE_LORA_CACHE first: the third one is
converted there."""


def write_mistral_tokenizer(folder: Path, tokenizer: Literal["v3", "v7", "tekken"]) -> None:
    """Put the tokenizer files of a Mistral repository into `folder`: those of mistral-common, under their own names."""
    source, name = MISTRAL_TOKENIZERS[tokenizer]
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / name)
    if tokenizer != "tekken":
        shutil.copy(source, folder / "tokenizer.model")


def _write_model(folder: Path, build: Any, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = build()
    eos = model.config.get_text_config().eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos)
    model.save_pretrained(folder)


def _byte_tokenizer(numbers: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    if numbers == "whole":
        for number in range(10, 101):
            digits = str(number)
            merges.append((digits[:-1], digits[-1]))
            vocabulary[digits] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
