"""Model folders that are broken, or made to do harm: refused in words before anything of them is used."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppe_lora.boundary import in_words
from ppe_lora.errors import PpeError
from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import resolve_base
from ppe_lora.student.foreign import reading_model
from ppe_lora.student.load import load_base
from ppe_lora.student.tokenizer import load_tokenizer
from tests.tiny import tiny_llama

Spoil = Callable[[Path], object]
MEND = "copy or download it again, or delete it and repeat the command that wrote it"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("good") / "model")


def put(name: str, content: Any) -> Spoil:
    whole = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda folder: (folder / name).write_bytes(whole)


def changed(name: str, **values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return spoil


def index(content: Any) -> Spoil:
    return put("model.safetensors.index.json", content)


def pipe(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


class Harm:
    """What a pickle does when it is loaded."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Harm()}, folder / "pytorch_model.bin")


def load(model: Path) -> None:
    student = Student(model=str(model))
    base = resolve_base(student)
    load_tokenizer(base)
    load_base(student, base, "cpu")


def problem(model: Path) -> str:
    with pytest.raises(PpeError) as error, in_words():
        load(model)
    return str(error.value).replace(f"{model}/", "").replace(f"{model}: ", "")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (put("config.json", b"{"), "config.json: expected JSON; got a torn or changed file (Expecting property name"),
        (put("config.json", [1]), f"config.json: expected a JSON object; got a list; {MEND}"),
        (put("config.json", None), f"config.json: expected a JSON object; got null; {MEND}"),
        (put("config.json", {}), "expected a model that transformers can load; got ValueError: Unrecognized model in"),
        (changed("config.json", model_type=["x"]), "config.json: model_type: expected a valid string; got [\"x\"]; "),
        (
            changed("config.json", hidden_size="64"),
            "expected a tokenizer, chat template and configuration that work; got StrictDataclassFieldValidationError: "
            "Validation error for field 'hidden_size'",
        ),
        (
            changed("config.json", num_attention_heads=0),
            "expected a tokenizer, chat template and configuration that work; got ZeroDivisionError",
        ),
        (changed("config.json", hidden_act="x"), "expected a model that transformers can load; got KeyError: 'x'; "),
        (
            changed("config.json", num_hidden_layers=10**9),
            "expected the weights of the 1,000,000,000 layers in config.json; got 20 tensors; ",
        ),
        (
            changed("config.json", quantization_config="x"),
            f'config.json: quantization_config: expected a valid dictionary; got "x"; {MEND}',
        ),
        (index([]), f"model.safetensors.index.json: expected a JSON object; got a list; {MEND}"),
        (index({}), f"model.safetensors.index.json: weight_map: expected the key; got none; {MEND}"),
        (index({"weight_map": {"a": 5}}), "model.safetensors.index.json: weight_map.a: expected a valid string; got 5"),
        (
            index({"weight_map": {"a": "../outside.safetensors"}}),
            "model.safetensors.index.json: expected names of safetensors files beside it; got "
            "'../outside.safetensors'; ",
        ),
        (
            index({"weight_map": {"a": "/outside.safetensors"}}),
            "model.safetensors.index.json: expected names of safetensors files beside it; got '/outside.safetensors'; ",
        ),
        (index({"weight_map": {"a": "b.safetensors"}}), "expected every file of model.safetensors.index.json; got no"),
        (pickled, "expected weights in *.safetensors; got chat_template.jinja, config.json, generation_config.json"),
        (put("tokenizer.json", b""), "expected tokenizer files; got Expecting value"),
        (
            put("tokenizer.json", {}),
            "expected a tokenizer, chat template and configuration that work; got KeyError: 'added_tokens'; download",
        ),
        (put("tokenizer_config.json", [1]), f"tokenizer_config.json: expected a JSON object; got a list; {MEND}"),
        (
            put("generation_config.json", {"eos_token_id": {"a": 1}}),
            "generation_config.json: eos_token_id: expected ids; got {'a': 1}; correct it, or delete it",
        ),
        (
            put("chat_template.jinja", b"{{ 1/0 }}"),
            "expected a tokenizer, chat template and configuration that work; got ZeroDivisionError: division by zero",
        ),
        (
            put("chat_template.jinja", b"{{ ''.__class__.__mro__ }}"),
            "expected a chat template for system and user messages; it says: access to attribute '__class__' of 'str'",
        ),
        (pipe("model.safetensors"), "model.safetensors: expected a file; got a pipe; write its content into a file"),
        (pipe("tokenizer.json"), "tokenizer.json: expected a file; got a pipe; write its content into a file"),
    ],
)  # fmt: skip
def test_a_broken_model_folder_is_refused_in_words(good, tmp_path, monkeypatch, spoil, words):
    """A list for config.json was an AttributeError, a pipe was waited for without end, an index led out of the folder,
    a billion layers kept transformers busy for hours."""
    monkeypatch.chdir(tmp_path)
    model = Path(shutil.copytree(good, tmp_path / "model"))
    (tmp_path / "outside.safetensors").write_bytes((good / "model.safetensors").read_bytes())
    spoil(model)
    assert problem(model).startswith(words)
    assert not Path("harm").exists()


def test_a_mistake_of_ours_is_not_the_folder_s_fault(tmp_path):
    """What a library raises is told as the folder's fault; a typing error in this package must not be."""
    told = r"expected a model; got KeyError: 'theirs'; mend it"
    with pytest.raises(PpeError, match=told), reading_model(tmp_path, "a model", "mend it"):
        exec("raise KeyError('theirs')", {"__name__": "library"})
    with pytest.raises(KeyError, match="ours"), reading_model(tmp_path, "a model", "mend it"):
        exec("raise KeyError('ours')", {"__name__": "ppe_lora.student.load"})
    with pytest.raises(OSError, match="full"), reading_model(tmp_path, "a model", "mend it"):
        raise OSError(28, "full")
