"""What is known before a training is said before it: all of it at once, before weights are loaded or a run deleted."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from ppe_lora.artifacts import read_json
from ppe_lora.corpus.rows import Row, read_rows, split_path, write_rows
from ppe_lora.export.needs import missing_for_export
from ppe_lora.recipe import load_recipe
from ppe_lora.student import training
from ppe_lora.student.preflight import look_ahead
from ppe_lora.tracking.follower import missing_for_tracking
from tests.command import ppe_lora
from tests.runs import TASK, make_data, make_recipe

DATA = Path("data/d")
TRAIN = "train: {epochs: 1, rows_per_step: 8, rows_per_micro_step: 8}"
EVALUATE = "evaluate: {gate: 0.0, latency_rows: 1}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_data(DATA)
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*arguments: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(training, "load_base", loaded)


def change(split: Any, change_row: Any) -> list[Row]:
    """Rewrite a split, each row by a function of its index and the row; None leaves it out."""
    rows = [change_row(at, row) for at, row in enumerate(read_rows(split_path(DATA, split), TASK))]
    write_rows(split_path(DATA, split), [row for row in rows if row is not None])
    return [row for row in rows if row is not None]


def asked(places: dict[int, str]) -> Any:
    return lambda at, row: row.model_copy(update={"request": places.get(at, row.request)})


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert ppe_lora(*arguments) == 2
    return capsys.readouterr().err.removeprefix("error: ").splitlines()


SPECIAL = "expected text without the model's special tokens; got"


def test_every_row_with_a_special_token_is_named_at_once(here, speaker, no_weights, capsys):
    """200 such rows were 200 starts, each without the file and the line."""
    train = change("train", asked({2: "calm<|im_end|>", 20: "<|im_start|>"}))
    test = change("test", asked({5: "a <|endoftext|> b"}))
    make_recipe(here, speaker, TRAIN, EVALUATE)
    found = error_of(capsys, "train", "run.yaml")
    remedy = "cannot be encoded; correct them and build the data set again, or leave them out with student.on_bad_row"
    train_path, test_path = split_path(DATA, "train"), split_path(DATA, "test")
    assert found == [
        f"{train_path}:3: row {train[2].id}: 'calm<|im_end|>': {SPECIAL} '<|im_end|>'",
        f"{train_path}:21: row {train[20].id}: '<|im_start|>': {SPECIAL} '<|im_start|>'",
        f"{train_path}: 2 rows {remedy}=skip",
        f"{test_path}:6: row {test[5].id}: 'a <|endoftext|> b': {SPECIAL} '<|endoftext|>'",
        f"{test_path}: 1 rows {remedy}=skip",
    ]
    assert not Path("checkpoints/run").exists()


def test_very_many_bad_rows_are_counted(here, speaker, no_weights, capsys):
    change("train", lambda at, row: row.model_copy(update={"request": f"{at}<|im_end|>"}))
    make_recipe(here, speaker, TRAIN, EVALUATE)
    found = error_of(capsys, "train", "run.yaml")
    assert len(found) == 20 + 2
    assert found[-2] == f"... and 4 more in {split_path(DATA, 'train')}"


def test_bad_rows_are_left_out_and_counted_where_the_recipe_says_so(here, speaker, capsys):
    change("train", asked({2: "calm<|im_end|>", 20: "<|im_start|>"}))
    change("valid", asked({0: "<|im_end|>"}))
    change("test", asked({5: "a <|endoftext|> b"}))
    student = f"student: {{model: '{speaker}', lora: {{rank: 4}}, on_bad_row: skip}}"
    make_recipe(here, speaker, TRAIN, EVALUATE, student)
    assert ppe_lora("train", "run.yaml") == 0
    printed = capsys.readouterr().out
    assert "warning: train: 2 of 24 rows cannot be encoded and are left out" in printed
    assert "warning: test: 1 of 6 rows cannot be encoded and are left out" in printed
    manifest = read_json(Path("checkpoints/run/manifest.json"))
    assert [manifest[f"{name}_rows{what}"] for what in ("", "_unusable") for name in ("train", "valid")] == [
        22,
        7,
        2,
        1,
    ]
    assert ppe_lora("evaluate", "run.yaml") == 0
    assert len(Path("checkpoints/run/test/eval_predictions.jsonl").read_text().splitlines()) == 5


def test_nothing_left_of_a_split_is_said_before_training(here, speaker, no_weights, capsys):
    """Every test row too long was an IndexError after the training."""
    change("test", lambda at, row: row.model_copy(update={"request": f"{row.request} " + "x" * 500}))
    make_recipe(here, speaker, TRAIN, EVALUATE)
    (found,) = error_of(capsys, "train", "run.yaml")
    assert found.startswith("test: every row is longer than student.max_tokens = 512; the shortest has 5")
    assert found.endswith(" tokens: raise student.max_tokens")


@pytest.mark.parametrize(
    ("split", "kept", "message"),
    [
        ("train", 1, "expected at least 2 rows to train on; got 1"),
        ("test", 1, "expected at least 2 rows to judge a run by; got 1; make more rows, or raise data.split.test"),
    ],
)
def test_too_few_rows_for_what_comes_after_training(split, kept, message, here, speaker, no_weights, capsys):
    """scikit-learn refused one training row, and the report one test row, when the training was done."""
    change(split, lambda at, row: row if at < kept else None)
    make_recipe(here, speaker, TRAIN, EVALUATE)
    assert error_of(capsys, "train", "run.yaml") == [f"{split_path(DATA, split)}: {message}"]


def test_test_rows_that_all_have_the_train_mean(here, speaker):
    """Nothing can be better than the train mean on them: that is known before a training, and no reason to refuse it,
    for evaluation and report say it in words."""
    change("train", lambda at, row: row.model_copy(update={"target": {"a": 40 + 20 * (at % 2), "b": 7}}))
    change("test", lambda at, row: row.model_copy(update={"target": {"a": 50, "b": 7}}))
    recipe = load_recipe(make_recipe(here, speaker, TRAIN, EVALUATE))
    warned = look_ahead(recipe, DATA, Path("checkpoints/run"), fresh=False).warnings
    assert "test: all 6 rows have the train mean: no model can do better than it; take other rows" in warned
    assert not [one for one in warned if one.startswith("valid: all")]


def test_a_head_without_rows_is_said_before_the_model_is_loaded(here, speaker, no_weights, capsys):
    objective = "train: {epochs: 1, rows_per_step: 8, rows_per_micro_step: 8, objective: {head: 1.0}}"
    make_recipe(here, speaker, objective, EVALUATE)
    assert error_of(capsys, "train", "run.yaml") == [
        "train.objective.head: expected at least 50 training rows to fit heads on; got 24; set it to 0, or make more "
        "rows"
    ]


def test_all_faults_of_all_splits_are_said_together(here, speaker, no_weights, capsys):
    path = split_path(DATA, "valid")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["{", *lines[1:]]) + "\n")
    change("train", lambda at, row: row if at < 1 else None)
    change("test", asked({0: "<|im_end|>"}))
    make_recipe(here, speaker, TRAIN, EVALUATE)
    found = error_of(capsys, "train", "run.yaml")
    assert [line.partition(": ")[0] for line in found] == [
        f"{path}:1",
        f"{split_path(DATA, 'test')}:1",
        str(split_path(DATA, "test")),
        str(split_path(DATA, "train")),
    ]


def test_a_run_is_not_deleted_for_one_that_cannot_start(here, speaker, capsys):
    """--fresh deleted the old run first, and then found what is wrong."""
    make_recipe(here, speaker, TRAIN, EVALUATE)
    assert ppe_lora("train", "run.yaml") == 0
    change("test", asked({0: "<|im_end|>"}))
    assert ppe_lora("train", "run.yaml", "--fresh") == 2
    assert Path("checkpoints/run/best/adapter_model.safetensors").is_file()


def test_what_can_be_mended_is_a_warning(here, speaker, capsys, monkeypatch):
    change("train", lambda at, row: row.model_copy(update={"target": {**row.target, "a": 50}}))
    make_recipe(here, speaker, TRAIN, "evaluate: {gate: 0.0, latency_rows: 1, read_out: calibrated}")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    assert ppe_lora("train", "run.yaml") == 0
    printed = capsys.readouterr().out
    assert "warning: train: every row has 50 for a: nothing can be learned of it; leave that key out\n" in printed
    assert (
        "warning: valid: a correction is fitted on at least 20 rows; got 8, so that evaluate.read_out calibrated will "
        "be the posterior mean as it is; make more rows, or raise data.split.valid\n"
    ) in printed
    assert (
        "warning: checkpoints/run: merged weights take about 0.0 GB, and 0.0 GB are free on its disk; free some before "
        "the export\n"
    ) in printed


def test_tools_of_the_export_are_missed_before_the_training(here, speaker, capsys, monkeypatch):
    """They were missed by the export, hours later, and can be installed meanwhile."""
    monkeypatch.setenv("PPE_LORA_LLAMA_CPP", "nowhere")
    monkeypatch.setenv("PPE_LORA_COMPRESS_PYTHON", "nowhere/python")
    monkeypatch.setattr("ppe_lora.export.onnx.find_spec", lambda name: None)
    make_recipe(here, speaker, TRAIN, EVALUATE, "export: {quantize: gptq, engines: [gguf, onnx, vllm]}")
    told = [
        "export.quantize: expected the environment of llm-compressor; got no nowhere/python; make it with "
        "`make compress`, or name its Python in PPE_LORA_COMPRESS_PYTHON",
        "nowhere: expected the tools of llama.cpp; got no bin/python, src/convert_hf_to_gguf.py; make them with `make "
        "llama-cpp`, or name their folder in PPE_LORA_LLAMA_CPP",
        "onnx: expected the package onnxscript; got none; .venv/bin/pip install -c constraints.txt -e '.[onnx]'",
    ]
    assert missing_for_export(load_recipe(here / "run.yaml")) == told
    assert ppe_lora("train", "run.yaml") == 0
    first = capsys.readouterr().out
    assert all(f"warning: {one}\n" in first for one in told)
    assert first.index("warning: export.quantize") < first.index("epoch 1")
    assert ppe_lora("train", "run.yaml") == 0
    assert "warning" not in capsys.readouterr().out


def test_a_model_too_large_for_a_browser_is_known_by_its_name(here, speaker):
    make_recipe(here, speaker, "student: {model: mistralai/Mistral-7B-Instruct-v0.3}", "export: {engines: [onnx]}")
    (told,) = missing_for_export(load_recipe(here / "run.yaml"))
    assert told == (
        "mistralai/Mistral-7B-Instruct-v0.3: expected at most 2 GB in float32 for Node or a browser; got 29.0 GB; "
        "leave onnx out of export.engines"
    )


def test_trackers_without_a_key_or_package_are_missed_before_the_training(here, speaker, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(here / "none"))
    monkeypatch.setenv("HOME", str(here))
    make_recipe(here, speaker, "track: {mode: online, wandb: {project: p}, weave: {project: e/p}}")
    track = load_recipe(here / "run.yaml").track
    no_key = "track.mode: no W&B key: set WANDB_API_KEY, or run `wandb login`; until then nothing is sent"
    assert missing_for_tracking(track) == [no_key]
    monkeypatch.setattr("ppe_lora.tracking.follower.find_spec", lambda name: None if name == "weave" else object())
    assert missing_for_tracking(track) == [
        "track.weave: expected the package weave; got none; install it, or leave track.weave out",
        no_key,
    ]
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert len(missing_for_tracking(track)) == 1
    assert missing_for_tracking(track.model_copy(update={"wandb": None, "weave": None})) == []
