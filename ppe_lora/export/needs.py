"""What the exports of a recipe need of this machine: asked before a training, so that it can be installed meanwhile."""

from collections.abc import Callable, Iterator

from ppe_lora.engines.modelfile import prompt_template
from ppe_lora.errors import PpeError
from ppe_lora.export.gguf import find_tools
from ppe_lora.export.onnx import check_onnx
from ppe_lora.export.quantize import compress_python
from ppe_lora.recipe import Recipe
from ppe_lora.student.base import resolve_tokenizer
from ppe_lora.student.machine import model_size
from ppe_lora.student.tokenizer import load_tokenizer


def missing_for_export(recipe: Recipe) -> list[str]:
    """Why an export of the recipe would fail, one sentence for each; empty where nothing is known to be missing."""
    return list(filter(None, map(_problem, _checks(recipe))))


def _checks(recipe: Recipe) -> Iterator[Callable[[], object]]:
    if recipe.export.quantize == "gptq":
        yield compress_python
    if "gguf" in recipe.export.engines:
        yield lambda: find_tools(recipe.export.gguf_types)
        yield lambda: prompt_template(load_tokenizer(resolve_tokenizer(recipe.student)))
    if "onnx" in recipe.export.engines:
        size = model_size(recipe.student)
        yield lambda: check_onnx(recipe.student.model, size.parameters if size else 0)


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except PpeError as error:
        return str(error)
    return None
