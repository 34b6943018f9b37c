"""The command that holds a served export against its certificate: which engine serves which folder, and the verdict."""

from pathlib import Path
from typing import Any

from ppe_lora.console import progress
from ppe_lora.engines.client import Engine
from ppe_lora.engines.llama_cpp import LlamaCpp
from ppe_lora.engines.vllm import Vllm
from ppe_lora.errors import RunError
from ppe_lora.export.answers import read_correction
from ppe_lora.export.parity import asked, check_files, told_difference
from ppe_lora.export.served import prove_node, prove_served
from ppe_lora.recipe import Recipe
from ppe_lora.redaction import address_problem
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.trie import build_trie

_ENGINES: dict[str, tuple[str, type[Engine]]] = {
    "merged": ("vLLM", Vllm),
    "adapter": ("vLLM", Vllm),
    "gguf": ("llama.cpp", LlamaCpp),
}
_TIMEOUT_S = 600.0


def prove_export(recipe: Recipe, run_dir: Path, export: str, url: str | None, model: str | None) -> str:
    """Ask an export's engine the requests of its certificate, enter the answers there, and say how they compare.

    Args:
        recipe: The run's.
        run_dir: Has the exports.
        export: The folder that is served: merged or adapter by vLLM, gguf by llama.cpp; or onnx.
        url: Where it is served; None for onnx, which Node loads from its folder.
        model: The name it is served by; by default the one in the folder's start script.

    Raises:
        RunError: There is no such export, or `url` is missing, has no place or is no address.
        EngineError: The engine cannot be reached, or does not answer as asked.
        ModelError: The folder has no certificate, or files that are not those of its certificate.
    """
    folder, task = run_dir / export, recipe.task
    if export not in (*_ENGINES, "onnx"):
        raise RunError(f"prove: expected one of {', '.join(_ENGINES)}, onnx; got {export}")
    if (url is None) != (export == "onnx"):
        expected = "none for onnx" if url else "the address of the running server"
        raise RunError(f"--url: expected {expected}; got {url or 'none'}")
    requests = asked(folder)
    if url is not None and (problem := address_problem(url)):
        raise RunError(f"--url: {problem}")
    check_files(folder)  # an answer of other files would stand in their certificate
    if url is None:
        return _verdict(prove_node(folder, task), "greedy", recipe.evaluate.read_out)
    name, engine = _ENGINES[export]
    served = model or (recipe.name if export != "gguf" else f"{recipe.name}-{recipe.export.gguf_types[0]}")
    tokenizer = load_tokenizer(run_dir / "merged")
    trie = build_trie(task, tokenizer, recipe.train.objective.slots)
    correction = read_correction(recipe, run_dir / "merged")
    with progress(f"asking {name}", len(requests)) as advance:
        entry = prove_served(
            folder, engine(url, served, _TIMEOUT_S), f"{name}, {served}", task, tokenizer, trie, correction, advance
        )
    return _verdict(entry, correction.engine_read_out, recipe.evaluate.read_out)


def _verdict(entry: dict[str, Any], served: str, wanted: str) -> str:
    """How the served answers compare, and the others; and whether they are those that the recipe names."""
    others = [name for name in entry["largest_difference"] if name != served]
    told = [f"served, {served}: {told_difference(entry, served)}"]
    told += [f"{name}: {told_difference(entry, name)}" for name in others]
    lacking = f"; what the recipe serves, {wanted}, this engine does not give" if served != wanted else ""
    return f"{entry['engine']}: {entry['identical']} of {entry['answers']} texts identical; {'; '.join(told)}{lacking}"
