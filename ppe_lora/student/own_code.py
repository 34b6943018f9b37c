"""Models that bring code of their own: it is never run, and nobody is asked whether it may."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppe_lora.artifacts import read_json
from ppe_lora.errors import ModelError

_FILES = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""A repository's name in place of an implementation's makes transformers load a kernel from there."""


def refuse_own_code(folder: Path, name: str | None = None) -> None:
    """See that a model folder needs no code but that of transformers.

    Every loader passes `trust_remote_code=False`, too: left out, transformers asks on the terminal, and takes a `yes`.

    Args:
        folder: A model or tokenizer folder.
        name: What to call the model in an error; the folder by default.

    Raises:
        ModelError: A configuration names code in the folder or in a repository.
    """
    found = []
    for file in _FILES:
        config = read_json(folder / file) if (folder / file).is_file() else None
        found += [f"{key} in {file}" for key in _code_keys(config)]
    if found:
        raise ModelError(
            f"{name or folder}: expected a model that transformers can load by itself; got one with code of its own "
            f"({', '.join(found)}), which is never run; use a model of a built-in architecture, or delete the entry if "
            "its architecture is one"
        )


def _code_keys(config: Any) -> list[str]:
    if not isinstance(config, Mapping):
        return []
    keys = [key for key in ("auto_map", "custom_pipelines") if config.get(key)]
    keys += [key for key in _ATTENTION if "/" in str(config.get(key) or "")]
    return keys + [f"{key}.{below}" for key, part in config.items() for below in _code_keys(part)]
