"""Numbers that are none, wherever they come up in a training: it ends in words, and what was good before stays good."""

import json

import pytest
import torch

from ppe_lora.artifacts import read_json
from ppe_lora.corpus.rows import targets_matrix
from ppe_lora.errors import RunError
from ppe_lora.recipe import load_recipe
from ppe_lora.recipe.schema import Evaluate, Student
from ppe_lora.student.callbacks import Checkpoints
from ppe_lora.student.checkpoints import epoch_folders
from ppe_lora.student.collate import packs_exactly
from ppe_lora.student.divergence import Diverged, check_step
from ppe_lora.student.evaluate import Evaluation, encode_split, evaluate_student, write_evaluation
from ppe_lora.student.head import layers_to_try, request_states
from ppe_lora.student.load import load_base
from ppe_lora.student.tensors import NotFinite
from ppe_lora.student.test_rows import evaluate_test_rows
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.student.training import train
from ppe_lora.student.trie import build_trie
from tests.runs import TASK, make_data, make_recipe, make_rows

TRAIN = "train: {epochs: 3, rows_per_step: 8, rows_per_micro_step: 8, learning_rate: 5e-3, checkpoint_minutes: 1e-6}"
EVALUATE = "evaluate: {gate: 0.0, latency_rows: 0}"
STEPS_AN_EPOCH = 3
REMEDY = "lower train.learning_rate, and begin again with `ppe-lora train RECIPE --fresh`"


def trained_weight(model) -> tuple[str, torch.nn.Parameter]:
    return next((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def spoil_adapter(model, optimizer) -> None:
    trained_weight(model)[1].data.fill_(float("nan"))


def spoil_optimizer(model, optimizer) -> None:
    for state in optimizer.state.values():
        state["exp_avg"].fill_(float("inf"))


@pytest.fixture
def run_spoiled(speaker, tmp_path, monkeypatch):
    """Trains three epochs of three steps, and spoils something after one step; returns recipe, data and run folder."""

    def run(spoil, step: int):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step == step:
                spoil(model, optimizer)
            return original(self, args, state, control)

        original = Checkpoints.on_step_end
        monkeypatch.setattr(Checkpoints, "on_step_end", on_step_end)
        recipe = load_recipe(make_recipe(tmp_path, speaker, TRAIN, EVALUATE))
        data, folder = make_data(tmp_path / "data" / "d"), tmp_path / "checkpoints" / "run"
        train(recipe, data, folder)
        return recipe, data, folder

    return run


@pytest.mark.parametrize(
    ("spoil", "step", "fact"),
    [
        (spoil_adapter, 2 * STEPS_AN_EPOCH, "{run}: the adapter after step 6: expected finite numbers; got NaN or "
                                            "infinity in {weight}"),
        (spoil_adapter, STEPS_AN_EPOCH + 1, "{run}: the adapter after step 4: expected finite numbers; got NaN or "
                                            "infinity in {weight}"),
        (spoil_optimizer, STEPS_AN_EPOCH + 1, "{run}: the adapter after step 5: expected finite numbers; got NaN or "
                                              "infinity in {weight}"),
    ],
)  # fmt: skip
def test_a_good_epoch_before_the_fault_is_selected_and_evaluated(run_spoiled, capsys, spoil, step, fact):
    """The adapter that turned NaN at an epoch's end was a traceback from rounding, and the good epoch before it could
    be neither evaluated nor exported: the run was unfinished for ever."""
    recipe, data, run = run_spoiled(spoil, step)
    said = capsys.readouterr().out
    told = read_json(run / "manifest.json")["diverged"]
    start = fact.format(run=run, weight="base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight")
    assert told.startswith(start)
    assert (
        f"warning: {told}. Training has diverged and ends here. Epoch 1 is from before that: it is kept, and can be "
        f"evaluated and exported. For a longer training, {REMEDY}"
    ) in said
    assert read_json(run / "manifest.json")["selected_epoch"] == 1
    assert [folder.name for folder in epoch_folders(run)] == ["001"]
    evaluate_test_rows(recipe, data, run)
    assert (run / "test" / "manifest.json").is_file()
    train(recipe, data, run)
    assert "training is complete and unchanged" in capsys.readouterr().out


def test_without_a_good_epoch_the_cause_is_the_error(run_spoiled, tmp_path):
    with pytest.raises(Diverged) as error:
        run_spoiled(spoil_adapter, STEPS_AN_EPOCH)
    assert str(error.value).endswith(f". Training has diverged: {REMEDY}")
    run = tmp_path / "checkpoints" / "run"
    assert not (run / "best").exists()
    assert not (run / "manifest.json").exists()
    kept = sorted(path.name for path in (run / "state").glob("checkpoint-*"))
    assert kept == ["checkpoint-1", "checkpoint-2"]  # from before


def test_a_step_is_judged_by_its_loss_and_its_gradient(tmp_path):
    log = tmp_path / "train_log.csv"
    check_step(log, 1, 0.5, None)
    with pytest.raises(Diverged) as error:
        check_step(log, 7, 0.5, float("inf"))
    assert str(error.value) == (
        f"{log}: expected a finite gradient; got a norm of inf at step 7. Training has diverged: {REMEDY}"
    )
    with pytest.raises(RunError) as base:
        check_step(log, 1, float("nan"), 1.0)
    assert str(base.value) == (
        f"{log}: expected a finite loss of the base model; got nan at step 1; set student.dtype to float32, whose "
        "numbers are larger than those of 16 bits, or take another base model: before the first step there is nothing "
        "of a training in it"
    )


@pytest.mark.parametrize("packed", [True, False])
def test_a_model_that_overflows_is_named_and_not_rounded(speaker, packed):
    """Finite weights whose product is none: the mean of NaN was rounded, a ValueError."""
    model = load_base(Student(model=str(speaker)), speaker, "cpu")
    model.get_decoder().norm.weight.data.fill_(3e38)
    tokenizer = load_tokenizer(speaker)
    split = encode_split(make_rows(3, seed=4), TASK, tokenizer, 512)
    trie = build_trie(TASK, tokenizer) if packed else None
    with pytest.raises(NotFinite) as error:
        evaluate_student(
            model, split, targets_matrix(split.rows, TASK), TASK, tokenizer, Evaluate(latency_rows=0), trie
        )
    assert str(error.value) == (
        f"row {split.rows[0].id} and 2 more: expected numbers from the model; got NaN or infinity; its weights are "
        "finite, so it overflows on the way: set student.dtype to float32, or train with a lower train.learning_rate"
    )


def test_a_model_that_overflows_is_not_told_to_train_otherwise(speaker):
    """Its packs differ from its rows, as NaN differs from NaN: the advice was to set raft, crps, legal and head to 0.
    Its hidden states were a ValueError of scikit-learn."""
    model = load_base(Student(model=str(speaker)), speaker, "cpu")
    tokenizer = load_tokenizer(speaker)
    rows = encode_split(make_rows(3, seed=4), TASK, tokenizer, 512).encoded
    for layer in model.get_decoder().layers:
        layer.input_layernorm.weight.data.fill_(3e38)
    overflows = "it overflows on the way: set student.dtype to float32, or train with a lower train.learning_rate$"
    with pytest.raises(NotFinite, match=rf"^row \w+: expected a finite loss of the model; got nan; .*{overflows}"):
        packs_exactly(model, rows, tokenizer.pad_id)
    with pytest.raises(
        NotFinite, match=rf"^row \w+: expected finite hidden states; got NaN or infinity; .*{overflows}"
    ):
        request_states(model, rows, layers_to_try(model), batch_rows=2)


def test_metrics_are_json(tmp_path):
    """NaN is no JSON: browsers, trackers and strict readers refuse the whole file."""
    write_evaluation(tmp_path, Evaluation({"r2": float("nan"), "mse_norm": 0.5, "nll": float("inf")}, [], []))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads((tmp_path / "eval_metrics.json").read_text(), parse_constant=refuse) == {"mse_norm": 0.5}
