"""What vLLM needs beside the merged model and the adapter: start scripts and a client."""

from pathlib import Path

from ppe_lora.artifacts import write_text
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
    # Read there, and not written here: as a rule it is a folder of this machine, and the script may be published.
    + """base="$("${PYTHON:-python3}" -c 'import json, sys; print(json.load(sys.stdin)["base_model_name_or_path"])' """
    + '< ../adapter/adapter_config.json)"\n'
    + _COMMON
    + '  --model "$base" --served-model-name base --enable-lora --max-lora-rank {{ rank }} \\\n'
    + '  --lora-modules "{{ name }}=../adapter" "$@"\n'
)


def write_vllm(recipe: Recipe, tokenizer: StudentTokenizer, folder: Path) -> None:
    """Write the start scripts, for the merged model and for the adapter on its base, the grammar and a client.

    vLLM does not load DoRA adapters; for one there is no second script.

    Args:
        recipe: The run's.
        tokenizer: The student's; a Mistral one is read by vLLM through mistral-common, as in training.
        folder: Where to write, beside `merged/` and `adapter/`; it must exist.
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
        rank = vllm_rank(recipe.student.lora.rank)
        write_script(folder / "serve_adapter.sh", _ADAPTER, rank=rank, **fields)
    write_text(folder / "answer.gbnf", answer_gbnf(task) + "\n")
    guide = {"structured_outputs": {"grammar": answer_gbnf(task)}}
    write_client(folder, "client.py", task, recipe.name, limit, guide)
