"""An ONNX file of the merged model as Transformers.js reads it, for Node and the browser."""

import logging
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.errors import EngineError, ModelError
from ppe_lora.export.scripts import write_client
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Student
from ppe_lora.student.decode import answer_token_limit
from ppe_lora.student.machine import model_size
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.tokenizer_files import save_tokenizer_files

TRANSFORMERS_JS = "4.3.1"
"""The version of @huggingface/transformers that the export was tested with."""
_LARGEST_BYTES = 2_000_000_000
"""A file of more cannot be one ONNX message, nor be loaded by a browser."""
_OPSET = 20
_DIMENSIONS = ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length")
"""Transformers.js makes the first, empty cache by these names; under another name a dimension is 0."""


class _Step(torch.nn.Module):
    """A pass of a decoder with its cache as plain tensors: B rows, Q new tokens behind P old ones, V vocabulary.

    The mask is made here: transformers' own is chosen by looking at its values, which a graph cannot do.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Logits (B, Q, V), then keys and values of every layer, old and new."""
        queries, keys = input_ids.shape[1], attention_mask.shape[1]
        place_Q = torch.arange(queries)[:, None] + (keys - queries)
        sees_QK = torch.arange(keys)[None, :] <= place_Q
        sees_B1QK = sees_QK[None, None] & (attention_mask[:, None, None, :] > 0)
        mask = torch.where(sees_B1QK, 0.0, torch.finfo(torch.float32).min)
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        output = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        present = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (output.logits, *present)


def check_onnx(model: str, parameters: float) -> None:
    """Check that a model of so many parameters can become an ONNX file here.

    Raises:
        EngineError: The packages of the extra `onnx` are missing.
        ModelError: The model is too large for one file.
    """
    if find_spec("onnxscript") is None:
        raise EngineError(
            "onnx: expected the package onnxscript; got none; .venv/bin/pip install -c constraints.txt -e '.[onnx]'"
        )
    if parameters * 4 > _LARGEST_BYTES:
        raise ModelError(
            f"{model}: expected at most {_LARGEST_BYTES / 1e9:.0f} GB in float32 for Node or a browser; got "
            f"{parameters * 4 / 1e9:.1f} GB; leave onnx out of export.engines"
        )


def write_onnx(recipe: Recipe, merged: Path, tokenizer: StudentTokenizer, folder: Path) -> None:
    """Write `onnx/model.onnx` with everything that Transformers.js reads, and a client.

    Args:
        recipe: The run's.
        merged: The merged model; it is computed in float32.
        tokenizer: Its tokenizer.
        folder: Where to write; it must exist.

    Raises:
        EngineError: The packages of the extra `onnx` are missing.
        ModelError: The model is too large for one file, or has no `tokenizer.json`.
    """
    if not (merged / "tokenizer.json").is_file():
        raise ModelError(f"{merged}: expected a tokenizer.json, which Transformers.js reads; got none")
    size = model_size(Student(model=str(merged)))
    check_onnx(str(merged), size.parameters if size else 0)
    model = AutoModelForCausalLM.from_pretrained(
        merged, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    (folder / "onnx").mkdir()
    _export(model.eval(), folder / "onnx" / "model.onnx")
    save_tokenizer_files(merged, folder)
    shutil.copy(merged / "generation_config.json", folder)
    shutil.copy(merged / "config.json", folder)
    if (folder / "chat_template.jinja").is_file():  # which Transformers.js reads only from the other file
        config: dict[str, Any] = read_json(folder / "tokenizer_config.json")
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        write_json(folder / "tokenizer_config.json", config | {"chat_template": template})
    write_json(
        folder / "package.json",
        {"private": True, "type": "module", "dependencies": {"@huggingface/transformers": TRANSFORMERS_JS}},
    )
    write_client(folder, "client.mjs", recipe.task, recipe.name, answer_token_limit(recipe.task, tokenizer), {})


def _export(model: Any, path: Path) -> None:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows, queries, old = 2, 3, 5
    past = [torch.zeros(rows, config.num_key_value_heads, old, head_dim) for _ in range(2 * config.num_hidden_layers)]
    names = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    batch, new, held, seen = (torch.export.Dim(name) for name in _DIMENSIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            _Step(model),
            (
                torch.zeros(rows, queries, dtype=torch.long),
                torch.ones(rows, old + queries, dtype=torch.long),
                torch.arange(old, old + queries).expand(rows, -1),
                past,
            ),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=(
                {0: batch, 1: new},
                {0: batch, 1: seen},
                {0: batch, 1: new},
                [{0: batch, 2: held} for _ in past],
            ),
        )
