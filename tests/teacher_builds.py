"""Data sets with a language model as teacher: their recipe, and the commands that make them."""

from pathlib import Path

import pytest

from tests.command import ppe_lora

PRICED = "limits: {concurrency: 8}, prices: {prompt: 1.0, completion: 2.0}"
_RECIPE = """\
data:
  name: d
  source: {{kind: generate, rows: {rows}, teacher: {{{teacher}}}}}
  split: {{valid: 0.2, test: 0.2}}
student: {{model: none}}
"""


def compatible(url: str) -> str:
    """The teacher `teacher-1` on one OpenAI-compatible server, with prices."""
    return f"kind: openai_compatible, model: teacher-1, endpoints: [{{url: '{url}/v1'}}], {PRICED}"


def write_recipe(folder: Path, teacher: str, rows: int) -> None:
    """Write `r.yaml`: the data set `d` from the teacher with these settings."""
    folder.mkdir(exist_ok=True)
    (folder / "r.yaml").write_text(_RECIPE.format(rows=rows, teacher=teacher))


def data(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, *arguments: str) -> int:
    """Run `ppe-lora data COMMAND r.yaml` in a folder; return its exit status."""
    monkeypatch.chdir(folder)
    return ppe_lora("data", command, "r.yaml", *arguments)


def build(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    """Run `ppe-lora data build r.yaml` in a folder; return its exit status."""
    return data(monkeypatch, folder, "build", *arguments)
