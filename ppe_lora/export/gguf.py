"""GGUF files for llama.cpp and Ollama, made by llama.cpp's own converter in the environment that has what it needs."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ppe_lora.artifacts import write_text
from ppe_lora.engines.grammar import answer_gbnf
from ppe_lora.engines.modelfile import prompt_template, write_modelfile
from ppe_lora.errors import EngineError
from ppe_lora.export.apart import last_lines
from ppe_lora.export.scripts import write_client, write_script
from ppe_lora.recipe import Recipe
from ppe_lora.student.decode import answer_token_limit
from ppe_lora.student.tokenizer import StudentTokenizer

_CONVERTER_TYPES = ("f32", "f16", "bf16", "q8_0")
"""What the converter writes by itself; the other types are quantized from float32."""
_SLOTS = 4
"""Requests that the server computes together, each with a context of its own."""
# By default llama.cpp keeps keys and values in half precision, and its flash attention adds up in less than single:
# beside float32 weights each changed two answers of a hundred.
_SERVE = """\
# llama.cpp serves the model. Another type: TYPE=f16 ./serve.sh; further options go behind: ./serve.sh --port 8001
type="${TYPE:-{{ first_type }}}"
model="{{ name }}-$type"
cache=f16 attention=auto
if [ "$type" = f32 ]; then cache=f32 attention=off; fi
# By default it keeps the keys and values of every prompt, up to 8 GiB; the next request shares the instruction only.
export LLAMA_ARG_CACHE_RAM="${LLAMA_ARG_CACHE_RAM:-0}"
exec "${LLAMA_SERVER:-llama-server}" --model "$model.gguf" --alias "$model" \\
  --parallel {{ slots }} --ctx-size {{ context }} \\
  --cache-type-k "$cache" --cache-type-v "$cache" --flash-attn "$attention" "$@"
"""

# The converter takes the answer from a tokenizer.json, where a chat template that writes the token itself says no.
_ADD_BEGIN = """\
import sys
sys.path.insert(1, sys.argv[1])
from gguf import GGUFReader
field = GGUFReader(sys.argv[2], "r+").get_field("tokenizer.ggml.add_bos_token")
if field is not None:
    field.parts[field.data[0]][0] = int(sys.argv[3])
"""


class Tools(NamedTuple):
    """llama.cpp's converter with the Python that has its packages, and its quantizer."""

    python: Path
    converter: Path
    quantizer: Path


def find_tools(types: Sequence[str]) -> Tools:
    """The tools in the folder `$PPE_LORA_LLAMA_CPP`, by default `.venv-llama`, as `make llama-cpp` makes it.

    Args:
        types: The types to be made; the quantizer is needed for some of them only.

    Raises:
        EngineError: A tool is missing.
    """
    folder = Path(os.environ.get("PPE_LORA_LLAMA_CPP") or ".venv-llama")
    tools = Tools(
        folder / "bin" / "python", folder / "src" / "convert_hf_to_gguf.py", folder / "build" / "bin" / "llama-quantize"
    )
    needed = tools if set(types) - set(_CONVERTER_TYPES) else tools[:2]
    missing = [str(path.relative_to(folder)) for path in needed if not path.is_file()]
    if missing:
        raise EngineError(
            f"{folder}: expected the tools of llama.cpp; got no {', '.join(missing)}; make them with `make llama-cpp`, "
            "or name their folder in PPE_LORA_LLAMA_CPP"
        )
    return Tools(*(path.absolute() for path in tools))


def write_gguf(recipe: Recipe, merged: Path, tokenizer: StudentTokenizer, folder: Path) -> None:
    """Write a GGUF and a Modelfile per type, the answer's grammar, a start script and a client.

    Args:
        recipe: Names the types.
        merged: The merged model.
        tokenizer: Its tokenizer.
        folder: Where to write; it must exist.

    Raises:
        EngineError: llama.cpp's tools are missing or fail.
        ModelError: The model's prompts do not fit into a Modelfile.
    """
    types, task = recipe.export.gguf_types, recipe.task
    tools = find_tools(types)
    template = prompt_template(tokenizer)
    limit = answer_token_limit(task, tokenizer)
    stop = [tokenizer.piece(token) for token in tokenizer.end_ids]
    instructions: dict[str, str] = {language: task.instruction_text(language) for language in task.instruction}
    for kind in types:
        weights = f"{recipe.name}-{kind}.gguf"
        convert(tools, merged, tokenizer, folder / weights, kind)
        write_text(folder / f"Modelfile-{kind}", write_modelfile(weights, template, instructions, stop, limit))
    write_text(folder / "answer.gbnf", answer_gbnf(task) + "\n")
    context = _SLOTS * (recipe.student.max_tokens + limit)
    write_script(folder / "serve.sh", _SERVE, name=recipe.name, first_type=types[0], slots=_SLOTS, context=context)
    write_client(folder, "client.py", task, f"{recipe.name}-{types[0]}", limit, {"grammar": answer_gbnf(task)})


def convert(tools: Tools, merged: Path, tokenizer: StudentTokenizer, out: Path, kind: str) -> None:
    """Write one GGUF of a model folder, which puts the token that begins every text in front as its tokenizer does:
    the Modelfile's TEMPLATE counts on it.

    Raises:
        EngineError: The converter or the quantizer fails; the message holds the last lines it printed.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert.") as name:
        direct = kind in _CONVERTER_TYPES
        whole = out if direct else Path(name) / "f32.gguf"
        wanted = kind if direct else "f32"
        _run("llama.cpp's converter", [tools.python, tools.converter, merged, "--outfile", whole, "--outtype", wanted])
        if not direct:
            _run("llama-quantize", [tools.quantizer, whole, out, kind])
    begins = str(int(tokenizer.begin_id is not None))
    library = tools.converter.parent / "gguf-py"
    _run("llama.cpp's GGUF library", [tools.python, "-c", _ADD_BEGIN, library, out, begins])


def _run(what: str, command: Sequence[str | Path]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, env={**environment, "HF_HUB_OFFLINE": "1"}, stdin=subprocess.DEVNULL, capture_output=True
    )
    if done.returncode:
        last = last_lines(done.returncode, done.stderr + done.stdout)
        raise EngineError(f"{what} failed (exit {done.returncode}); the last lines it printed:\n{last}")
