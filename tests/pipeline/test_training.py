"""What a training computes: the same whatever the batching, the processes, or who checks it."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl, TrainerState
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ppe_lora.artifacts import read_json
from ppe_lora.corpus.rows import Row, row_id, split_path, targets_matrix, write_rows
from ppe_lora.errors import DataError, Interrupted, ModelError, RunError, SelectionError
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.schema import Evaluate, Train
from ppe_lora.student import callbacks, training
from ppe_lora.student.attention import IMPLEMENTATION
from ppe_lora.student.callbacks import Checkpoints, _divergence, is_exhausted
from ppe_lora.student.collate import PackedCollator, PaddedCollator, completion_nll, packs_exactly
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.evaluate import Evaluation, encode_split, evaluate_student
from ppe_lora.student.layout import IGNORED
from ppe_lora.student.load import attach_lora
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.trainer import PpeTrainer, sft_config
from ppe_lora.student.training import train
from ppe_lora.student.trie import build_trie
from tests.runs import TASK, make_data, make_recipe, make_rows
from tests.tiny import tiny_llama

REPOSITORY = Path(__file__).parents[2]
TRAIN = (
    "train: {{epochs: 1, rows_per_step: 8, rows_per_micro_step: {micro}, learning_rate: 5e-3, "
    "objective: {{raft: 1, crps: 1, legal: 1, head: 1}}}}"
)
SLOTS = {"answers": TRAIN, "request": TRAIN.replace("head: 1", "head: 1, slots: request")}
EVALUATE = "evaluate: {gate: 0.5, latency_rows: 2, batch_rows: 4}"
UNGATED = "evaluate: {gate: 0.0, latency_rows: 0, batch_rows: 4}"


def run_in(folder: Path, model: Path, *sections: str) -> Path:
    make_data(folder / "data" / "d", train=60)
    recipe = load_recipe(make_recipe(folder, model, *sections))
    run = folder / "checkpoints" / "run"
    train(recipe, folder / "data" / "d", run)
    return run


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "epochs" / "001" / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def one_process(speaker, tmp_path_factory) -> Path:
    """A run with four rows per micro-step; 60 rows make seven full steps and one of half the size."""
    return run_in(tmp_path_factory.mktemp("one"), speaker, TRAIN.format(micro=4), EVALUATE)


@pytest.fixture(scope="module")
def one_process_of(speaker, one_process, tmp_path_factory) -> dict[str, Path]:
    """The same per value of `train.objective.slots`."""
    request = run_in(tmp_path_factory.mktemp("request"), speaker, SLOTS["request"].format(micro=4), UNGATED)
    return {"answers": one_process, "request": request}


@pytest.fixture(scope="module", params=["sdpa", IMPLEMENTATION])
def student(speaker, request):
    model = AutoModelForCausalLM.from_pretrained(speaker, attn_implementation=request.param)
    return model, load_tokenizer(speaker)


def encoded(student, count: int, seed: int):
    _, tokenizer = student
    return encode_rows(make_rows(count, seed), TASK, tokenizer, 512).encoded


def test_loss_is_that_of_trl_and_of_each_row_alone(student):
    """Packs, padding and a head on fewer columns must not change the loss, nor which tokens it counts."""
    model, tokenizer = student
    rows = encoded(student, 5, seed=3)
    plain = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_id)(
        [
            {
                "input_ids": [*row.prompt_ids, *row.completion_ids],
                "labels": [IGNORED] * len(row.prompt_ids) + list(row.completion_ids),
            }
            for row in rows
        ]
    )
    expected = model(**plain).loss.item()
    for collate in (PackedCollator(), PaddedCollator(tokenizer.pad_id)):
        nll, tokens = completion_nll(model, collate([row._asdict() for row in rows]))
        alone = [completion_nll(model, collate([row._asdict()])) for row in rows]
        assert tokens == sum(count for _, count in alone) == sum(len(row.completion_ids) for row in rows)
        assert nll.item() == pytest.approx(sum(one.item() for one, _ in alone), rel=1e-5)
        assert (nll / tokens).item() == pytest.approx(expected, rel=2e-5)


def test_gradients_of_a_pack_are_those_of_each_row_alone(student):
    """The shared instruction is encoded once, and still every row's gradient flows into it (float64, to 1e-6)."""
    model, _ = student
    rows = [row._asdict() for row in encoded(student, 4, seed=11)]
    assert rows[0]["shared"] > 5
    model = copy.deepcopy(model).double().eval()

    def gradients(batches) -> torch.Tensor:
        model.zero_grad()
        for batch in batches:
            completion_nll(model, batch)[0].backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    alone = gradients([PackedCollator()([{**row, "shared": 0}]) for row in rows])
    packed = gradients([PackedCollator()(rows)])
    assert (packed - alone).norm() <= 1e-6 * alone.norm()


def test_a_model_that_ignores_the_mask_is_found_out(student, monkeypatch, capsys):
    """A pack whose rows see each other trains on leaked answers: the check must notice, and padding must take over."""
    model, tokenizer = student
    rows = encoded(student, 6, seed=8)
    assert packs_exactly(model, rows, tokenizer.pad_id)
    forward = model.forward

    def careless(*args, attention_mask=None, **kwargs):
        return forward(*args, attention_mask=None if attention_mask.dim() == 4 else attention_mask, **kwargs)

    monkeypatch.setattr(model, "forward", careless)
    assert not packs_exactly(model, rows, tokenizer.pad_id)
    assert "using padded batches instead" in capsys.readouterr().out


@pytest.mark.parametrize("slots", SLOTS)
def test_micro_steps_do_not_change_the_result(speaker, one_process_of, tmp_path, slots):
    """Mean over the tokens of the whole step: a mean of micro-step means would weigh short rows more."""
    other = run_in(tmp_path, speaker, SLOTS[slots].format(micro=2), UNGATED)
    for name, tensor in adapter_of(one_process_of[slots]).items():
        torch.testing.assert_close(adapter_of(other)[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_keeps_its_automatic_rows(speaker, one_process, tmp_path, monkeypatch, capsys):
    """Less memory is free after a restart than before it: other rows a micro-step would make another adapter."""
    make_data(tmp_path / "data" / "d", train=60)
    recipe = load_recipe(make_recipe(tmp_path, speaker, TRAIN.format(micro="auto"), EVALUATE))
    run = tmp_path / "checkpoints" / "run"

    def stopped(*_):
        raise Interrupted("stopped")

    monkeypatch.setattr(training, "fitting_rows", lambda *_, **__: 4)
    with monkeypatch.context() as patch:
        patch.setattr(training, "attach_lora", stopped)
        with pytest.raises(Interrupted):
            train(recipe, tmp_path / "data" / "d", run)
    monkeypatch.setattr(training, "fitting_rows", lambda *_, **__: 1)
    train(recipe, tmp_path / "data" / "d", run, resume=True)
    assert read_json(run / "manifest.json")["rows_per_micro_step"] == 4
    assert capsys.readouterr().out.count("train.rows_per_micro_step: auto is 4 here") == 1
    for name, tensor in adapter_of(one_process).items():
        assert torch.equal(adapter_of(run)[name], tensor)


def test_two_processes_train_the_same_and_score_each_row_once(speaker, one_process_of, tmp_path):
    """Two gloo processes: same adapter within rounding, every validation row decoded once, one log."""
    make_data(tmp_path / "data" / "d", train=60, valid=7)
    recipes = [make_recipe(tmp_path, speaker, SLOTS[slots].format(micro=2), UNGATED, name=slots) for slots in SLOTS]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--main_process_port", "0"]
    launch += [str(Path(__file__).with_name("train_each.py")), *(recipe.name for recipe in recipes)]
    done = subprocess.run(
        [sys.executable, *launch],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1: train/loss") == len(SLOTS)
    for slots, one_process in one_process_of.items():
        run = tmp_path / "checkpoints" / slots
        for name, tensor in adapter_of(one_process).items():
            torch.testing.assert_close(adapter_of(run)[name], tensor, rtol=1e-2, atol=1e-4)
        lines = (run / "epochs" / "001" / "eval_predictions.jsonl").read_text().splitlines()
        assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 7
        assert [line.split(",")[0] for line in (run / "train_log.csv").read_text().split()] == ["step", *"12345678"]
        assert read_json(run / "manifest.json")["processes"] == 2


def test_evaluating_does_not_change_what_is_trained(speaker, tmp_path, monkeypatch):
    """Two epochs with dropout, the first one followed by an evaluation or by none: the same adapter, to the bit."""
    sections = (TRAIN.format(micro=8).replace("epochs: 1", "epochs: 2"), EVALUATE)
    student = f"student: {{model: '{speaker}', lora: {{rank: 4, dropout: 0.1}}}}"
    evaluated = run_in(tmp_path / "with", speaker, student, *sections)
    metrics = read_json(evaluated / "epochs" / "001" / "eval_metrics.json")
    monkeypatch.setattr(callbacks, "evaluate_student", lambda *_: Evaluation(metrics, [], []))
    blind = run_in(tmp_path / "without", speaker, student, *sections)
    last, other = (
        load_file(run / "epochs" / "002" / "adapter" / "adapter_model.safetensors") for run in (evaluated, blind)
    )
    assert all(torch.equal(last[name], other[name]) for name in last)


def test_an_epoch_is_fully_described(one_process):
    """The contract of the run folder, and every metric of the contract under its name."""
    metrics = read_json(one_process / "epochs" / "001" / "eval_metrics.json")
    names = {
        "epoch", "step", "train_loss", "valid_loss", "rows", "mse_raw", "mse_norm", "mae_raw", "r2", "mse_norm_strict",
        "json_valid_rate", "schema_valid_rate", "within_tolerance@5", "latency_ms_p50", "latency_ms_p95",
        "latency_ms_p99", "train_mean_mse_norm", "constant_mse_norm", "mse_norm/a", "mse_norm/b", "r2/a",
        "rows_too_long", "mse_norm_posterior_mean", "mse_norm_posterior_mean/b", "mae_raw_posterior_median",
        "crps", "nll", "coverage@80",
    }  # fmt: skip
    assert names <= metrics.keys()
    assert metrics["rows"] == 8
    assert all(isinstance(value, float) for value in metrics.values())
    present = {path.name for path in one_process.iterdir()}
    assert present == {"config.yaml", "train_log.csv", "epochs", "best", "manifest.json"}
    assert (one_process / "best" / "adapter_model.safetensors").is_file()
    log = (one_process / "train_log.csv").read_text().splitlines()
    losses = [float(line.split(",")[2]) for line in log[1:]]
    assert metrics["train_loss"] == pytest.approx(sum(losses) / 8)


def test_valid_loss_does_not_depend_on_the_batching(student):
    """Summed over summed tokens: a mean of batch means shifts with the batch size."""
    model, tokenizer = student
    split = encode_split(make_rows(9, seed=4), TASK, tokenizer, 512)
    train_NK = targets_matrix(split.rows, TASK)
    trie = build_trie(TASK, tokenizer)
    one, other = (
        evaluate_student(model, split, train_NK, TASK, tokenizer, Evaluate(batch_rows=n, latency_rows=0), given)
        for n, given in ((1, trie), (4, None))
    )
    assert one.metrics["valid_loss"] == pytest.approx(other.metrics["valid_loss"], rel=1e-5)
    assert [row["text"] for row in one.predictions] == [row["text"] for row in other.predictions]


def test_a_training_that_diverges_says_so(speaker, tmp_path):
    """Not a traceback from the rounding of NaN an epoch later, and no checkpoint of NaN to resume from."""
    with pytest.raises(RunError, match=r"expected a finite loss; got (nan|inf) at step \d+\. Training has diverged"):
        run_in(tmp_path, speaker, TRAIN.format(micro=4).replace("5e-3", "1e30"), EVALUATE)
    assert not list((tmp_path / "checkpoints" / "run" / "state").glob("checkpoint-*"))


def test_autocast_takes_inputs_as_they_are(speaker, tmp_path, monkeypatch):
    """A bfloat16 base under autocast, as on a GPU: adapters get its states as they are, and train as with casts."""
    recipe = load_recipe(make_recipe(tmp_path, speaker, TRAIN.format(micro=4)))
    split = encode_split(make_rows(8, seed=2), TASK, load_tokenizer(speaker), 512)
    trained, seen = [], []
    for cast in (False, True):
        if cast:
            monkeypatch.setattr(PpeTrainer, "_cast_inputs", lambda self, wanted: None)
        base = AutoModelForCausalLM.from_pretrained(speaker, dtype=torch.bfloat16, attn_implementation=IMPLEMENTATION)
        model = attach_lora(base, recipe.student.lora, seed=0)
        layer = next(module for name, module in model.named_modules() if name.endswith("lora_A.default"))
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
        config = dataclasses.replace(sft_config(recipe, tmp_path, 1, 4), bf16=True, max_steps=2)
        rows = [row._asdict() for row in split.encoded]
        trainer = training._trainer(model, config, Dataset.from_list(rows), PackedCollator(), [], recipe, tmp_path)
        trainer.settings = Train()
        trainer.train()
        trained.append({name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name})
        assert all(layer.cast_input_dtype_enabled for layer in trainer._adapted)
    assert set(seen[: len(seen) // 2]) == {torch.bfloat16}
    assert set(seen[len(seen) // 2 :]) == {torch.float32}
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items())
    assert any(weight.abs().max() > 0 for name, weight in trained[0].items() if "lora_B" in name)


def test_no_epoch_through_the_gate_is_an_error_that_names_the_nearest(tmp_path, speaker):
    """A model that answers nothing valid must not be selected; its run is kept for a look."""
    mute = tiny_llama(tmp_path / "mute")
    with pytest.raises(SelectionError, match=r"no epoch passes the format gate of 0\.5; the nearest is epoch 1 with"):
        run_in(tmp_path, mute, TRAIN.format(micro=4).replace("5e-3", "1e-6"), EVALUATE)
    assert (tmp_path / "checkpoints" / "run" / "epochs" / "001" / "eval_predictions.jsonl").is_file()
    assert not (tmp_path / "checkpoints" / "run" / "best").exists()


def test_rows_that_do_not_fit_are_counted_and_never_cut(speaker, tmp_path, capsys):
    """A truncated row would train an answer without its end token."""
    lengths = "student: {{model: '{}', max_tokens: {}}}"
    make_data(tmp_path / "data" / "d")
    rows = encode_rows(make_rows(38, seed=1), TASK, load_tokenizer(speaker), 512).encoded
    longest = max(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    run = run_in(tmp_path / "a", speaker, lengths.format(speaker, longest - 1), TRAIN.format(micro=4), EVALUATE)
    manifest = read_json(run / "manifest.json")
    left_out = manifest["train_rows_too_long"] + manifest["valid_rows_too_long"]
    assert left_out >= 1
    assert manifest["train_rows"] + manifest["train_rows_too_long"] == 60
    assert f"rows are longer than student.max_tokens = {longest - 1} and are left out" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"train: every row is longer than student\.max_tokens = 9"):
        run_in(tmp_path / "b", speaker, lengths.format(speaker, 9), TRAIN.format(micro=4), EVALUATE)


def test_an_answer_in_other_tokens_is_named_before_training(tmp_path):
    """A token that joins two values stands in no probe of one value at a time: its row's scores would be learned at
    tokens that the model never meets, without a word."""
    model = tiny_llama(tmp_path / "joins")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(['7,"b":7'])
    tokenizer.save_pretrained(model)
    data = make_data(tmp_path / "data" / "d")
    target = {"a": 47, "b": 72}
    joined = Row(id=row_id("both", target, "en", None), request="both", target=target, language="en")
    others = [row for row in make_rows(9, seed=2) if not (row.target["a"] % 10 == 7 and row.target["b"] // 10 == 7)]
    write_rows(split_path(data, "train"), [*others, joined])
    with pytest.raises(ModelError) as error:
        train(load_recipe(make_recipe(tmp_path, model)), data, tmp_path / "checkpoints" / "run")
    assert str(error.value) == (
        f"row {joined.id}: expected the answer in the tokens of its keys and values; got others, so the tokenizer "
        "joins parts of {'a': 47, 'b': 72}; choose a student whose tokenizer has a token a digit"
    )


def test_steps_that_cannot_be_divided_are_refused():
    from ppe_lora.student.trainer import sft_config

    recipe = load_recipe(REPOSITORY / "recipes" / "demo.yaml")
    with pytest.raises(RunError, match=r"expected a multiple of rows_per_micro_step x processes \(2 x 3\); got 2"):
        sft_config(recipe, Path("checkpoints/demo"), 3, 2)


def test_a_token_loss_that_misleads_is_pointed_out():
    """valid/loss can fall while the decoded answers get worse; whoever watches only the loss must be told."""
    before, after = {"valid_loss": 0.5, "mse_norm": 0.02}, {"valid_loss": 0.4, "mse_norm": 0.03}
    assert _divergence({1: before, 2: after}, 2) == [
        "valid/loss fell (0.500 to 0.400) while mse_norm rose (0.0200 to 0.0300): token loss is not the goal"
    ]
    assert _divergence({1: after, 2: before}, 2) == []
    assert _divergence({1: before}, 1) == []


def test_patience_counts_epochs_since_the_best():
    recipe = load_recipe(REPOSITORY / "recipes" / "demo.yaml", ["train.patience=2", "evaluate.read_out=greedy"])
    rates = {"json_valid_rate": 1.0, "schema_valid_rate": 1.0}
    history = {epoch: {"mse_norm": error, **rates} for epoch, error in ((1, 0.03), (2, 0.02), (3, 0.025))}
    assert not is_exhausted(history, recipe)
    assert is_exhausted(history | {4: {"mse_norm": 0.021, **rates}}, recipe)
    assert not is_exhausted({1: {"json_valid_rate": 0.0, "schema_valid_rate": 0.0}}, recipe)


def test_a_signal_during_an_evaluation_saves_the_epoch_that_it_ends():
    """Without a checkpoint there, the next run would train the evaluated epoch again. At the epoch's last step there is
    none yet, however due: it would be one without the epoch's evaluation."""
    checkpoints = Checkpoints(minutes=0)
    state, control = TrainerState(global_step=7, max_steps=14, num_train_epochs=2), TrainerControl()
    checkpoints.stopped_by = "SIGTERM"
    checkpoints.on_step_end(None, state, control)
    assert (control.should_save, control.should_training_stop, checkpoints.stopping) == (False, False, False)
    checkpoints.on_epoch_end(None, state, control)
    assert (control.should_save, control.should_training_stop) == (True, True)
    checkpoints.on_save(None, state, control)
    assert not checkpoints.on_epoch_end(None, state, control).should_save
