"""What serving engines want, beside the merged model: folders that start a server or load in Node.

    vllm/    start scripts for `merged/` and `adapter/`, the grammar, a client
    gguf/    llama.cpp and Ollama: a GGUF and a Modelfile per type, the grammar, a start script, a client
    onnx/    Transformers.js: Node and the browser

Made from `merged/`; what is complete and unchanged is not made again. Each folder has the certificate of the merged
model with the hashes of its own files; `served.prove` adds what an engine answers.
"""

from pathlib import Path
from typing import Any

from ppe_lora.artifacts import is_current, new_folder, read_json, write_manifest
from ppe_lora.console import console
from ppe_lora.export.card import run_metrics, weights_note
from ppe_lora.export.gguf import write_gguf
from ppe_lora.export.onnx import write_onnx
from ppe_lora.export.parity import certified_files, copy_certificate
from ppe_lora.export.vllm import write_vllm
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Engine
from ppe_lora.student.processes import processes
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer

_FORMAT = 3  # of the folders; raise it when what is written into them changes


def export_for_engines(recipe: Recipe, run_dir: Path) -> None:
    """Write the folder of every engine that the recipe names. Only the first process works.

    Raises:
        EngineError: The tools that an engine's format needs are missing or fail.
        ModelError: The model cannot be exported to a format.
    """
    state = processes()
    if state.is_main_process and recipe.export.engines:
        merged = run_dir / "merged"
        tokenizer = load_tokenizer(merged)
        if note := weights_note(recipe, run_metrics(run_dir)):
            console.print(f"{recipe.name}: {note.replace('**', '')}")
        for engine in dict.fromkeys(recipe.export.engines):
            out = run_dir / engine
            inputs = _inputs(recipe, merged, engine)
            if is_current(out, inputs):
                console.print(f"{out}: complete and unchanged")
                continue
            console.print(f"{out}: writing")
            with new_folder(out) as folder:
                _write(engine, recipe, run_dir, tokenizer, folder)
                copy_certificate(merged, folder)
                write_manifest(folder, inputs, files=certified_files(folder))
            console.print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    state.wait_for_everyone()


def _inputs(recipe: Recipe, merged: Path, engine: Engine) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "engine": engine,
        "name": recipe.name,
        "merged": read_json(merged / "manifest.json")["inputs_hash"],
        "task": recipe.task.model_dump(mode="json"),
        "max_tokens": recipe.student.max_tokens,
        "types": recipe.export.gguf_types if engine == "gguf" else None,
    }


def _write(engine: Engine, recipe: Recipe, run_dir: Path, tokenizer: StudentTokenizer, folder: Path) -> None:
    if engine == "vllm":
        write_vllm(recipe, tokenizer, folder)
    elif engine == "gguf":
        write_gguf(recipe, run_dir / "merged", tokenizer, folder)
    else:
        write_onnx(recipe, run_dir / "merged", tokenizer, folder)
