"""What a model folder holds beside its weights, for old and new readers alike: configuration, generation settings,
tokenizer."""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import AutoTokenizer, LlamaTokenizer
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.student.tokenizer import Message, MistralStudentTokenizer, StudentTokenizer
from ppe_lora.student.tokenizer_files import mistral_file

logger = logging.getLogger(__name__)

# Of the base's generation_config.json, what makes answers random. An answer is decoded greedily.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "max_length")
_HF_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_config(base: Path, folder: Path, dtype: str | None) -> None:
    """Write the base's `config.json`, readable before and after transformers 5.

    transformers 5 keeps the rotary embedding in `rope_parameters`. Older readers look for `rope_theta` and
    `rope_scaling`, and without them go on with their defaults: the model loads and answers nonsense.

    Args:
        base: Holds the `config.json` to start from.
        folder: Where to write; it may be the same.
        dtype: The type of all weights, where it is not the base's.
    """
    config: dict[str, Any] = read_json(base / "config.json")
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", {name: rope[name] for name in rope if name != "rope_theta"})
    if dtype is not None:
        config["dtype"] = dtype
        config.pop("torch_dtype", None)
    write_json(folder / "config.json", config)


def write_generation_config(folder: Path, tokenizer: StudentTokenizer, max_new_tokens: int) -> None:
    """Make greedy answers of the right length the default of `generate` and of engines that read the file."""
    path = folder / "generation_config.json"
    kept = read_json(path) if path.is_file() else {}
    kept = {name: value for name, value in kept.items() if name not in _SAMPLING}
    own = {
        "do_sample": False,
        "eos_token_id": list(tokenizer.end_ids),
        "pad_token_id": tokenizer.pad_id,
        "max_new_tokens": max_new_tokens,
    }
    write_json(path, kept | own)


def write_tokenizer(tokenizer: StudentTokenizer, folder: Path, conversations: Sequence[Sequence[Message]]) -> None:
    """Write the tokenizer for readers of either kind: the student's own files, and Hugging Face's with a chat template.

    Where the base has none, Hugging Face's are made from mistral-common's. They are kept only if they give the ids the
    student was trained on: an engine that reads others would serve another model, in silence.

    Args:
        tokenizer: The student's.
        folder: Where to write.
        conversations: Prompts whose ids must agree, one per instruction at least.
    """
    tokenizer.save(folder)
    if isinstance(tokenizer, MistralStudentTokenizer) and not _agrees(folder, tokenizer, conversations):
        _remove_hf_files(folder)
        _write_hf_files(tokenizer.folder, folder)
        if not _agrees(folder, tokenizer, conversations):
            _remove_hf_files(folder)
            logger.warning(
                "%s: no tokenizer.json: it would not give the ids of %s, which engines then have to read (vLLM: "
                "--tokenizer-mode mistral)", folder, getattr(mistral_file(folder), "name", "mistral-common"),
            )  # fmt: skip
    _name_old_class(folder)


def _agrees(folder: Path, tokenizer: StudentTokenizer, conversations: Sequence[Sequence[Message]]) -> bool:
    if not (folder / "tokenizer.json").is_file():
        return False
    with tempfile.TemporaryDirectory() as apart:  # without mistral-common's files, which would be preferred
        for name in _HF_FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, apart)
        other = AutoTokenizer.from_pretrained(apart, trust_remote_code=False)
        if not other.chat_template:
            return False
        return all(
            list(other.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))
            == tokenizer.prompt_ids(messages)
            for messages in conversations
        )


def _write_hf_files(source: Path, folder: Path) -> None:
    file = mistral_file(source)
    assert file is not None  # a MistralStudentTokenizer was made from it
    template = convert_tokenizer_to_chat_template(file)
    core = MistralTokenizer.from_file(file).instruct_tokenizer.tokenizer
    if isinstance(core, Tekkenizer):
        made: Any = convert_tekken_tokenizer(str(file), chat_template=template)
    else:
        with tempfile.TemporaryDirectory() as apart:
            shutil.copy(file, Path(apart) / "tokenizer.model")
            made = LlamaTokenizer.from_pretrained(apart, trust_remote_code=False)
        made.chat_template = template
    made.save_pretrained(folder)


def _remove_hf_files(folder: Path) -> None:
    for name in _HF_FILES:
        (folder / name).unlink(missing_ok=True)


def _name_old_class(folder: Path) -> None:
    """Name the tokenizer's class as every version of transformers knows it; `TokenizersBackend` came with 5."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config: dict[str, Any] = read_json(path)
        if config.get("tokenizer_class") == "TokenizersBackend":
            write_json(path, config | {"tokenizer_class": "PreTrainedTokenizerFast"})
