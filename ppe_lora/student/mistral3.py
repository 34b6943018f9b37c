"""The text model inside a multimodal Mistral 3 checkpoint, written as a checkpoint of its own.

`Ministral3ForCausalLM.from_pretrained` of the multimodal checkpoint would initialise every weight at random, with no
more than a log line, and LoRA on the multimodal class would adapt the vision tower too.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import Mistral3Config

from ppe_lora.artifacts import write_json
from ppe_lora.errors import ModelError
from ppe_lora.student.tensors import open_tensors, weights_remedy

# As stored on the Hub, and as newer versions of transformers name the modules.
_TEXT = re.compile(r"^(?:language_model\.model|model\.language_model(?:\.model)?)\.")
_HEAD = re.compile(r"^(?:(?:model\.)?language_model\.)?lm_head\.")
_VISION = re.compile(r"^(?:model\.)?(?:vision_tower|multi_modal_projector)\.")
_ARCHITECTURES = {"ministral3": "Ministral3ForCausalLM", "mistral": "MistralForCausalLM"}


def text_tensor_name(name: str) -> str | None:
    """The name in the text-only checkpoint of a tensor of the multimodal one; None for the vision part.

    Raises:
        ModelError: The tensor belongs to neither part.

    Example:
        >>> text_tensor_name("language_model.model.norm.weight")
        'model.norm.weight'
    """
    if _VISION.match(name):
        return None
    if _HEAD.match(name):
        return _HEAD.sub("lm_head.", name)
    if _TEXT.match(name):
        return _TEXT.sub("model.", name)
    raise ModelError(f"expected a tensor of a Mistral 3 text model, projector or vision tower; got {name}")


def write_text_model(files: Sequence[Path], config: Mapping[str, Any], folder: Path) -> None:
    """Write config and weights of the text model, shard by shard: no more than one shard is in memory.

    Tensors are copied bit for bit under their new names; the vision tower and the projector are left out.

    Args:
        files: The safetensors files of a Mistral3ForConditionalGeneration checkpoint.
        config: Its `config.json`.
        folder: Where to write; it must exist.

    Raises:
        ModelError: The text model is of a kind not known here, a tensor belongs to no known part, or there is neither
            an output head nor word that it is tied to the embeddings.
    """
    shard_of: dict[str, str] = {}
    n_bytes = 0
    for file in files:
        with open_tensors(file, weights_remedy(file.parent)) as shard:
            names = {name: text_tensor_name(name) for name in shard.keys()}  # noqa: SIM118 (not a mapping)
            tensors = {new: shard.get_tensor(old) for old, new in names.items() if new is not None}
        if tensors:
            save_file(tensors, folder / file.name, metadata={"format": "pt"})
            shard_of |= dict.fromkeys(tensors, file.name)
            n_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1 or list(shard_of.values())[:1] != ["model.safetensors"]:
        index = {"metadata": {"total_size": n_bytes}, "weight_map": dict(sorted(shard_of.items()))}
        write_json(folder / "model.safetensors.index.json", index)
    _write_config(config, has_head="lm_head.weight" in shard_of, folder=folder)


def _write_config(config: Mapping[str, Any], has_head: bool, folder: Path) -> None:
    raw_text = config.get("text_config", {})
    said_tied = [part["tie_word_embeddings"] for part in (config, raw_text) if "tie_word_embeddings" in part]
    if not has_head and said_tied and not any(said_tied):
        raise ModelError("expected lm_head.weight, as tie_word_embeddings is false; got no such tensor")
    # Parsed as part of the whole, so that fields the file leaves out get Mistral 3's defaults.
    text: Any = Mistral3Config.from_dict(dict(config)).text_config
    if text.model_type not in _ARCHITECTURES:
        raise ModelError(f"text_config.model_type: expected {' or '.join(_ARCHITECTURES)}; got {text.model_type}")
    text.architectures = [_ARCHITECTURES[text.model_type]]
    text.tie_word_embeddings = not has_head
    text.dtype = (
        raw_text.get("dtype") or raw_text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    )
    text.save_pretrained(folder)
