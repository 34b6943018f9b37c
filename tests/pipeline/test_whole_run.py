"""`ppe-lora run`: every stage in order, skipped when nothing changed, and errors a user can mend."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppe_lora.artifacts import hash_file, read_json, read_jsonl, write_text
from ppe_lora.corpus.rows import SPLITS, split_path
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.load import dump_recipe
from tests.command import ppe_lora
from tests.evaluations import predictions, write_run
from tests.runs import TASK, TASK_YAML, make_data, make_recipe, make_rows
from tests.tiny import tiny_llama

SECTIONS = """\
train: {epochs: 12, rows_per_step: 4, rows_per_micro_step: 4, learning_rate: 3e-3}
evaluate: {gate: 0.5, latency_rows: 1}
export: {verify_rows: 5}
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_source(folder: Path, count: int) -> None:
    rows = [{"id": row.id, "text": row.request, **row.target} for row in make_rows(count, seed=3)]
    (folder / "source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def imported(model: Path) -> str:
    source = "kind: import, source_dir: ., files: {f: {path: source.jsonl}}, request: f.text, target: {a: f.a, b: f.b}"
    data = f"data: {{name: d, source: {{{source}}}, split: {{valid: 0.2, test: 0.2, group: 1.0}}}}"
    return "\n".join([TASK_YAML, data, f"student: {{model: '{model}', lora: {{rank: 4}}}}", SECTIONS])


def test_from_a_file_of_requests_to_weights_anyone_can_load(here, speaker, capsys):
    """The main job: each stage leaves what the contract says, and a second run makes nothing again."""
    write_source(here, 60)
    (here / "mine.yaml").write_text(imported(speaker))
    assert ppe_lora("run", "mine.yaml") == 0
    first = capsys.readouterr().out
    assert "that of always answering the train mean" in first
    assert "release checklist: " in first
    assert "5 of 5 greedy texts identical to those of the adapter" in first

    run, data = here / "checkpoints" / "mine", here / "data" / "d"
    requests = [{json.loads(line)["request"] for line in split_path(data, name).open()} for name in SPLITS]
    assert len(set.union(*requests)) == sum(map(len, requests)) == 60
    for name in ("config.yaml", "train_log.csv", "worst_cases.csv", "report.html", "summary.md", "manifest.json"):
        assert (run / name).is_file(), name
    test_metrics = read_json(run / "test" / "eval_metrics.json")
    assert test_metrics["json_valid_rate"] > 0.9
    latency = read_json(run / "test" / "manifest.json")["latency"]
    assert latency["engine"] == "decoder of ppe_lora: a score a pass"
    assert (latency["read_out"], latency["weights"], latency["requests"]) == ("greedy", "float32", 1)
    assert latency["model"] == "adapter on its base model"
    assert "thread" in latency["device"]
    baselines = read_jsonl(run / "test" / "baseline_predictions.jsonl")
    assert [row["id"] for row in baselines] == [
        row["id"] for row in read_jsonl(run / "test" / "eval_predictions.jsonl")
    ]
    assert set(baselines[0]) == {"id", "constant", "train_mean", "ridge"}
    card = (run / "merged" / "README.md").read_text()
    assert f"from `{speaker.name}`, then merged." in card
    assert read_json(data / "manifest.json")["dataset_version"] in card

    tokenizer = AutoTokenizer.from_pretrained(run / "merged")
    model = AutoModelForCausalLM.from_pretrained(run / "merged")
    messages = TASK.messages("tiny one, huge other, case 4711", "en")
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    text = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert TASK.parse(text).values[0] < 50 < TASK.parse(text).values[1]

    before = {path: path.stat().st_mtime_ns for path in [*run.rglob("*"), *data.rglob("*")] if path.is_file()}
    assert ppe_lora("run", "mine.yaml") == 0
    changed = [path.name for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert sorted(changed) == ["report.html", "summary.md"]
    assert "training is complete and unchanged" in capsys.readouterr().out

    check_that_test_rows_stay_those_of_the_first_use(capsys, run, data)


def check_that_test_rows_stay_those_of_the_first_use(capsys, run, data):
    """Called on a finished run: figures of other rows must not replace its own without a word."""
    path = split_path(data, "test")
    noted, rows = read_json(run / "test_rows.json"), path.read_text().splitlines()
    assert noted == {"file": "data/d/ft_request_param_test.jsonl", "sha256": hash_file(path), "rows": len(rows)}
    before = hash_file(run / "test" / "eval_metrics.json")
    path.write_text("\n".join(rows[1:]) + "\n")
    assert ppe_lora("evaluate", "mine.yaml") == 2
    assert capsys.readouterr().err == (
        "error: data/d/ft_request_param_test.jsonl: expected the test rows that checkpoints/mine was first measured on "
        f"(SHA-256 {noted['sha256']}...); got {hash_file(path)}...; figures of different test rows cannot be compared. "
        "Put that file back, train under another name (name=...), or delete checkpoints/mine/test_rows.json and "
        "checkpoints/mine/test to give up the old figures\n"
    )
    assert hash_file(run / "test" / "eval_metrics.json") == before


def test_an_adapter_of_a_quantized_base_is_merged_into_the_unquantized_one(here, speaker, capsys):
    """The answers of the quantized and the merged model may differ; the report must give both errors, not hide it."""
    make_data(here / "data" / "d")
    student = f"student: {{model: '{speaker}', quantization: nf4, lora: {{rank: 4}}}}"
    make_recipe(here, speaker, student, *SECTIONS.replace("gate: 0.5", "gate: 0.0").splitlines())
    assert ppe_lora("train", "run.yaml") == 0
    assert ppe_lora("export", "run.yaml") == 0
    manifest = read_json(here / "checkpoints" / "run" / "merged" / "manifest.json")
    assert "of the adapter on its nf4 base; served, greedy: mse_norm " in manifest["verdict"]
    assert manifest["adapter"]["mse_norm"] >= 0
    assert manifest["merged"]["mse_norm"] >= 0
    model = AutoModelForCausalLM.from_pretrained(here / "checkpoints" / "run" / "merged")
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")


BAD_ROWS = {
    "empty": ("", "{path}: expected at least one row; got an empty file"),
    "out_of_range": (
        '{"id":"1","request":"x","target":{"a":101,"b":2},"language":"en"}\n',
        "{path}:1: target: a: expected 0 to 100; got 101",
    ),
    "duplicate": (
        '{"id":"1","request":"x","target":{"a":1,"b":2},"language":"en"}\n' * 2,
        "{path}:2: id 1 is already used in line 1",
    ),
    "latin_1": (
        b'{"id":"1","request":"caf\xe9","target":{"a":1,"b":2},"language":"en"}\n',
        "{path}:1: expected UTF-8 text; got byte 0xe9",
    ),
    "torn": ('{"id":"1","requ\n', "{path}:1: Invalid JSON: EOF while parsing a string at line 1 column 15"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_broken_rows_are_named_with_file_and_line(here, speaker, capsys, case):
    text, message = BAD_ROWS[case]
    make_data(here / "data" / "d")
    path = split_path(Path("data/d"), "train")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    make_recipe(here, speaker)
    assert ppe_lora("train", "run.yaml") == 2
    assert capsys.readouterr().err == f"error: {message.format(path=path)}\n"


def test_a_missing_data_set_says_how_to_make_it(here, speaker, capsys):
    make_recipe(here, speaker)
    assert ppe_lora("train", "run.yaml") == 2
    assert capsys.readouterr().err == "error: data/d: no finished data set; make it with `ppe-lora data build RECIPE`\n"


def test_a_missing_data_file_says_how_to_make_it(here, speaker, capsys):
    make_data(here / "data" / "d")
    split_path(Path("data/d"), "valid").unlink()
    make_recipe(here, speaker)
    assert ppe_lora("train", "run.yaml") == 2
    assert capsys.readouterr().err == (
        "error: data/d/ft_request_param_valid.jsonl: no such data file; make it with `ppe-lora data build RECIPE`\n"
    )


def test_unknown_keys_and_wrong_types_exit_with_status_2(here, speaker, capsys):
    make_recipe(here, speaker, "train: {learning_rat: 1, epochs: many}")
    assert ppe_lora("train", "run.yaml") == 2
    assert capsys.readouterr().err == (
        "error: run.yaml:3: train.epochs: expected a valid integer; got 'many'\n"
        "run.yaml:3: train.learning_rat: unknown key; did you mean 'learning_rate'?\n"
    )


def test_a_model_folder_without_weights(here, capsys):
    make_data(here / "data" / "d")
    tiny_llama(here / "model")
    (here / "model" / "model.safetensors").unlink()
    make_recipe(here, Path("model"))
    assert ppe_lora("train", "run.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model: expected weights in *.safetensors; got ")
    assert not (here / "checkpoints" / "run" / "epochs").exists()


def test_a_tokenizer_that_joins_digits(here, capsys):
    """Its numbers have no digits to learn place values from, and no digit trie."""
    make_data(here / "data" / "d")
    tiny_llama(here / "model", numbers="whole")
    make_recipe(here, Path("model"))
    assert ppe_lora("train", "run.yaml") == 2
    assert "error: model: tokenizer splits numbers into multi-digit tokens" in capsys.readouterr().err


def test_a_quantization_this_machine_cannot_do(here, speaker, monkeypatch, capsys):
    """bitsandbytes that cannot run here must be said before an hour of loading."""
    from ppe_lora.student import load

    monkeypatch.setattr(load, "quantization_problem", lambda kind, device: "no kernel for this device")
    make_data(here / "data" / "d")
    make_recipe(here, speaker, f"student: {{model: '{speaker}', quantization: nf4}}")
    assert ppe_lora("train", "run.yaml") == 2
    assert capsys.readouterr().err == (
        "error: student.quantization: expected a machine that can do nf4 on cpu; got: no kernel for this device; set "
        "it to none, or install a bitsandbytes for this device\n"
    )


def test_stages_out_of_order_say_what_is_missing(here, capsys):
    make_data(here / "data" / "d")
    recipe = make_recipe(here, Path("nowhere"))
    not_finished = "the training is not finished; run `ppe-lora train RECIPE --resume`"
    for problem in ("no training here yet; run `ppe-lora run RECIPE`", not_finished):
        for stage in ("evaluate", "export"):
            assert ppe_lora(stage, "run.yaml") == 2
            assert capsys.readouterr().err == f"error: checkpoints/run: {problem}\n"
        write_text(here / "checkpoints" / "run" / "config.yaml", dump_recipe(load_recipe(recipe)))
    assert ppe_lora("report", "run.yaml", "name=other") == 2
    assert capsys.readouterr().err == (
        "error: checkpoints/other: expected a run folder, with config.yaml; got none; run `ppe-lora run RECIPE`\n"
    )


def test_another_recipe_or_data_set_than_the_run_s_is_refused(here, capsys):
    """Asked by another instruction, or scored by new rows, the run would get figures that are not its own."""
    write_run(here / "checkpoints" / "run", predictions([1, 2, 3]))
    recipe = "checkpoints/run.yaml"
    make_data(here / "data" / "d")
    changed = ["train.objective.raft=0.5", "task.instruction={en: 'Rate {keys}.'}"]
    ignored = [
        "evaluate.batch_rows=4",
        "export.verify_rows=3",
        "track.mode=offline",
        "data.source={kind: generate, rows: 9}",
    ]
    for stage in ("evaluate", "export"):
        assert ppe_lora(stage, recipe, *changed, *ignored) == 2
        assert capsys.readouterr().err == (
            "error: checkpoints/run: holds a run that differs from the recipe in task.instruction.en, "
            "train.objective.raft. Leave these keys as they were, or run the recipe under another name (name=...)\n"
        )
        assert ppe_lora(stage, recipe, *ignored) == 2
        assert capsys.readouterr().err == (
            "error: data/d: expected the data set that checkpoints/run was trained on (version v); got test-data; "
            "build that one again, or run the recipe under another name (name=...)\n"
        )


def test_data_show_marks_the_supervised_tokens(here, speaker, capsys):
    make_data(here / "data" / "d")
    make_recipe(here, speaker)
    assert ppe_lora("data", "show", "run.yaml", "--row", "2") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert "<|im_end|>" in [line for line in lines if "yes" in line][-1]
    assert "yes" not in lines[0]
    assert ppe_lora("data", "show", "run.yaml", "--row", "99") == 2
    assert capsys.readouterr().err == "error: --row: expected 1 to 24; got 99\n"
