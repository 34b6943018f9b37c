"""What vLLM needs beside the merged model and the adapter: start scripts and a client."""

from pathlib import Path

from ppe_lora.artifacts import read_json, write_text
from ppe_lora.engines.grammar import answer_gbnf
from ppe_lora.export.adapter import vllm_rank
from ppe_lora.export.scripts import write_client, write_script
from ppe_lora.recipe import Recipe
from ppe_lora.student.decode import answer_token_limit
from ppe_lora.student.tokenizer import MistralStudentTokenizer, StudentTokenizer

# The module instead of the command `vllm`: builds for other processors come under other names, without the command.
_COMMON = """\
exec "${PYTHON:-python3}" -m vllm.entrypoints.openai.api_server \\
  --max-model-len {{ context }} --tokenizer-mode {{ mode }} \\
  --structured-outputs-config '{"backend": "xgrammar"}' \\
"""
_MERGED = (
    '# vLLM serves the merged model as "{{ name }}". Further options go behind: ./serve.sh --port 8001\n'
    + _COMMON
    + '  --model ../merged --served-model-name "{{ name }}" "$@"\n'
)
_ADAPTER = (
    '# vLLM serves the base model as "base" and the adapter as "{{ name }}": one base for many adapters.\n'
    + _COMMON
    + '  --model "{{ base }}" --served-model-name base --enable-lora --max-lora-rank {{ rank }} \\\n'
    + '  --lora-modules "{{ name }}=../adapter" "$@"\n'
)


def write_vllm(recipe: Recipe, run_dir: Path, tokenizer: StudentTokenizer, folder: Path) -> None:
    """Write the start scripts, for the merged model and for the adapter on its base, the grammar and a client.

    vLLM does not load DoRA adapters; for one there is no second script.

    Args:
        recipe: The run's.
        run_dir: Has `merged/` and `adapter/`, beside which the folder will lie.
        tokenizer: The student's; a Mistral one is read by vLLM through mistral-common, as in training.
        folder: Where to write; it must exist.
    """
    task = recipe.task
    limit = answer_token_limit(task, tokenizer)
    fields = {
        "name": recipe.name,
        "context": recipe.student.max_tokens + limit,
        "mode": "mistral" if isinstance(tokenizer, MistralStudentTokenizer) else "auto",
    }
    write_script(folder / "serve.sh", _MERGED, **fields)
    if not recipe.student.lora.dora:
        base = read_json(run_dir / "adapter" / "adapter_config.json")["base_model_name_or_path"]
        rank = vllm_rank(recipe.student.lora.rank)
        write_script(folder / "serve_adapter.sh", _ADAPTER, base=base, rank=rank, **fields)
    write_text(folder / "answer.gbnf", answer_gbnf(task) + "\n")
    guide = {"structured_outputs": {"grammar": answer_gbnf(task)}}
    write_client(folder, "client.py", task, recipe.name, limit, guide)
