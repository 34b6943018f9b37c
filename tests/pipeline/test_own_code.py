"""A model folder's own code is never run, and nobody is asked whether it may be.

transformers asked `run the custom code? [y/N]` on the terminal, and `yes | ppe-lora run` ran it.
"""

import io
import json
from pathlib import Path

import pytest
import torch

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.errors import ModelError
from ppe_lora.export.plan import plan_merge
from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import resolve_base, resolve_tokenizer
from ppe_lora.student.load import load_base
from ppe_lora.student.own_code import refuse_own_code
from ppe_lora.student.tokenizer import load_tokenizer
from tests.command import ppe_lora
from tests.tiny import tiny_mistral

CODE = """
from pathlib import Path
(Path(__file__).parent / "was-run").touch()
raise SystemExit("code of the model was run")
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of an architecture of its own, and somebody who says yes to every question."""
    folder = tiny_mistral(tmp_path / "hostile")
    for file, auto_map in (
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.OwnTokenizer", None]}),
    ):
        known = read_json(folder / file) if (folder / file).is_file() else {}
        write_json(folder / file, known | {"model_type": "own", "auto_map": auto_map})
    (folder / "own.py").write_text(CODE)
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 20))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return folder


def words(folder: Path, found: str) -> str:
    return (
        f"{folder}: expected a model that transformers can load by itself; got one with code of its own ({found}), "
        "which is never run; use a model of a built-in architecture, or delete the entry if its architecture is one"
    )


def test_no_door_runs_a_models_code(hostile: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student = Student(model=str(hostile))
    (tmp_path / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).write_text("{}")
    doors = {
        "base": lambda: resolve_base(student),
        "loading": lambda: load_base(student, hostile, torch.device("cpu")),
        "tokenizer": lambda: load_tokenizer(resolve_tokenizer(student)),
        "merge": lambda: plan_merge(hostile, tmp_path / "adapter", "auto"),
    }
    for door in doors.values():
        with pytest.raises(ModelError) as error:
            door()
        assert str(error.value) == words(hostile, "auto_map in config.json, auto_map in tokenizer_config.json")
    assert not (hostile / "was-run").exists()
    assert "[y/N]" not in "".join(capfd.readouterr())


def test_the_command_line_refuses_in_one_line(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(
        f"data: {{name: d, source: {{kind: generate, rows: 60}}}}\nstudent: {{model: {json.dumps(str(hostile))}}}\n"
    )
    assert ppe_lora("run", "r.yaml") == 2
    said = capfd.readouterr()
    assert words(hostile, "auto_map in config.json, auto_map in tokenizer_config.json") in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert not (hostile / "was-run").exists()


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "x.Y"}}, "auto_map in tokenizer_config.json"),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "x.Y"}}}, "text_config.auto_map in config.json"),
        ("config.json", {"attn_implementation": "owner/kernel"}, "attn_implementation in config.json"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "x.Y"}}, "auto_map in processor_config.json"),
    ],
)
def test_every_place_where_code_is_named(tmp_path: Path, file: str, content: dict[str, object], found: str) -> None:
    write_json(tmp_path / file, content)
    with pytest.raises(ModelError) as error:
        refuse_own_code(tmp_path)
    assert str(error.value) == words(tmp_path, found)


def test_models_without_code_pass(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"auto_map": {}, "attn_implementation": "sdpa", "rope_scaling": None})
    refuse_own_code(tmp_path)
