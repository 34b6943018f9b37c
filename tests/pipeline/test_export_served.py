"""An export is proven by what is served: a run that answers with its head and a correction, not with its text."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ppe_lora.artifacts import read_json
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.calibration import read_calibration
from ppe_lora.export import proof, stage
from ppe_lora.export.answers import WITHOUT_HEAD, read_correction
from ppe_lora.export.parity import Reading, add_entry, asked
from ppe_lora.export.quantize import check_loss
from ppe_lora.export.stage import export_run
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.serving.local import load_merged, load_run
from ppe_lora.student.test_rows import evaluate_test_rows
from ppe_lora.student.training import train
from tests.runs import make_data, make_recipe

SECTIONS = (
    "train: {epochs: 1, rows_per_step: 4, rows_per_micro_step: 4, learning_rate: 3e-3}",
    "evaluate: {gate: 0.0, latency_rows: 0, read_out: calibrated}",
    "export: {verify_rows: 24}",
)


pytestmark = pytest.mark.slow


class Run(NamedTuple):
    recipe: Recipe
    data: Path
    folder: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, speaker: Path) -> Run:
    here = tmp_path_factory.mktemp("served_export")
    recipe = load_recipe(make_recipe(here, speaker, *SECTIONS))
    made = Run(recipe, make_data(here / "data", train=80, valid=24, test=12), here / "run")
    train(recipe, made.data, made.folder)
    evaluate_test_rows(recipe, made.data, made.folder)
    assert read_calibration(made.folder / "calibration.json", recipe.task).uses_head
    export_run(recipe, made.data, made.folder)
    return made


def test_the_certificate_holds_the_served_read_out_and_that_of_engines(run: Run) -> None:
    """Twenty equal texts said nothing of the head, from which all answers came."""
    certificate = read_json(run.folder / "merged" / "parity.json")
    assert set(certificate["requests"][0]["served"]) == {"calibrated", WITHOUT_HEAD}
    ours, plain = (one["largest_difference"] for one in certificate["entries"])
    assert set(ours) == {"greedy", "posterior_mean", "calibrated", WITHOUT_HEAD}
    assert set(plain) == {"greedy"}
    assert set(ours["calibrated"]) == {"a", "b"}
    assert 0 <= max(ours["calibrated"].values()) < 0.2
    (served, engines) = (certificate["requests"][0]["served"][name]["a"] for name in ("calibrated", WITHOUT_HEAD))
    assert served != engines


def test_the_verdict_is_about_the_served_read_out(run: Run) -> None:
    """The error of the greedy text stood there, whatever was served."""
    manifest = read_json(run.folder / "merged" / "manifest.json")
    before, after = (manifest[name]["mse_norm_calibrated"] for name in ("adapter", "merged"))
    off = manifest["largest_difference"]["calibrated"]
    each = ", ".join(f"{key} {off[key]:.2g}" for key in ("a", "b"))
    assert manifest["verdict"] == (
        f"merged in float32, reloaded by plain transformers: {manifest['identical']} of 24 greedy texts identical to "
        f"those of the adapter; served, calibrated: mse_norm {before:.5f} -> {after:.5f} ({after - before:+.5f}), "
        f"at most {max(off.values()):.2g} off ({each})"
    )
    assert before != manifest["adapter"]["mse_norm"]


def test_what_is_proven_is_what_is_served(run: Run) -> None:
    """The reference must be the served answer itself: `serve` of run and export reads the same head and correction."""
    contract = stage.contract_of(run.recipe)
    loaded = load_run(run.folder, run.recipe, contract), load_merged(run.folder / "merged", contract)
    for one in loaded:
        assert one.calibration is not None
        assert one.head is not None
    correction = read_correction(run.recipe, run.folder / "merged")
    assert correction.own is not None
    assert correction.own.weight_KJ.tolist() == loaded[1].calibration.weight_KJ.tolist()


def test_equal_texts_over_other_served_answers_are_no_proof(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that moved the hidden states would be called equal by its texts."""
    real = stage.answer_rows

    def moved(student: Any, folder: Path, *others: Any) -> stage.Answers:
        answers = real(student, folder, *others)
        if others[-1] is not None:  # the adapter on its base: the reference
            return answers
        far = []
        for one in answers.readings:
            corrected = {key: value + 3 for key, value in one.served["calibrated"].items()}
            far.append(one._replace(served={**one.served, "calibrated": corrected}))
        return answers._replace(readings=far)

    monkeypatch.setattr(stage, "answer_rows", moved)
    shutil.rmtree(run.folder / "merged")
    try:
        with pytest.raises(ModelError, match=r"does not answer as the adapter did: .* at most 3 off \(a 3, b 3\)"):
            export_run(run.recipe, run.data, run.folder)
        assert not (run.folder / "merged").exists()
    finally:
        monkeypatch.undo()
        export_run(run.recipe, run.data, run.folder)


def test_the_loss_of_quantizing_is_that_of_the_corrected_answers(run: Run) -> None:
    """By hand: the served error doubles, while that of the uncorrected mean, which was looked at, stays."""
    before = {"mse_norm": 0.1, "mse_norm_posterior_mean": 0.05, "mse_norm_calibrated": 0.01}
    with pytest.raises(ModelError, match=r"got mse_norm_calibrated 0\.01000 -> 0\.02000 \(\+100\.0%\)"):
        check_loss(run.recipe, before, before | {"mse_norm_calibrated": 0.02})


def test_prove_says_what_the_engine_serves(run: Run, tmp_path: Path) -> None:
    """Behind an engine nothing reads the head: equal texts and means are no proof of the recipe's read-out."""
    folder = tmp_path / "merged"
    shutil.copytree(run.folder / "merged", folder)
    correction = read_correction(run.recipe, folder)
    assert correction.engine_read_out == WITHOUT_HEAD
    by_engine = [near(one.reference) for one in asked(folder)]
    entry = add_entry(folder, run.recipe.task, "vLLM, run", by_engine)
    assert proof._verdict(entry, correction.engine_read_out, "calibrated") == (
        f"vLLM, run: 20 of 20 texts identical; served, {WITHOUT_HEAD}: at most 0.5 off (a 0.5, b 0.5); greedy: at most "
        "0 off (a 0, b 0); posterior_mean: at most 0 off (a 0, b 0); what the recipe serves, calibrated, this engine "
        "does not give"
    )
    text_only = add_entry(folder, run.recipe.task, "Node", [Reading(one.reference.text) for one in asked(folder)])
    assert proof._verdict(text_only, "greedy", "calibrated") == (
        "Node: 20 of 20 texts identical; served, greedy: at most 0 off (a 0, b 0); what the recipe serves, calibrated, "
        "this engine does not give"
    )


def near(reference: Reading) -> Reading:
    """The same, half a point off without the head, as an engine that does not read it answers."""
    served: Mapping[str, float] = {key: value + 0.5 for key, value in reference.served[WITHOUT_HEAD].items()}
    return reference._replace(served={WITHOUT_HEAD: served})
