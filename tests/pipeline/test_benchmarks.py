"""The benchmarks run on models small enough for a test: what they measure here means nothing, that they do does."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import MistralConfig

from ppe_lora.artifacts import write_json
from ppe_lora.recipe.schema import Student
from ppe_lora.student.load import load_base
from ppe_lora.student.tokenizer import load_tokenizer
from tests.runs import make_data, make_recipe
from tests.tiny import tiny_mistral

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SMALL = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_way_to_train_is_timed(quantization, tmp_path, monkeypatch, capsys):
    """A peer that fails, or is left out of the headline, is found before an hour of measuring: the options are those
    of a GPU's run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = benchmark("train_speed")
    monkeypatch.setitem(sys.modules["models"].SHAPES, "mistral-7b", SMALL)
    for holder in (module, sys.modules["models"]):
        monkeypatch.setattr(holder, "VOCABULARY", 300)
    options = ["--quick", "--model", "mistral-7b", "--quantization", quantization, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train_speed.py", *options])
    module.main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"rows_per_s_vs_trl_default", "rows_per_s_vs_trl_best"} <= headline.keys()
    name = "mistral-7b" if quantization == "none" else "mistral-7b_nf4"
    raw = json.loads((tmp_path / f"train_speed_{name}.json").read_text())
    assert set(raw["seconds_per_step"]) == {peer.name for peer in module.peers()}
    assert all(len(samples) >= 4 and min(samples) > 0 for samples in raw["seconds_per_step"].values())
    assert headline["mfu"] > 0


def test_every_way_to_decode_is_timed(tmp_path, monkeypatch, capsys):
    """All of them, with the options of a GPU's run; ours has the texts of the fastest of the others."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = benchmark("decode_speed")
    monkeypatch.setitem(sys.modules["models"].SHAPES, "mistral-7b", SMALL)
    monkeypatch.setattr(module, "ROUNDS", {True: (1, 2, 4)})
    monkeypatch.setattr(module, "TAUGHT_STEPS", {"mistral-7b": (1, 1e-4)})
    monkeypatch.setattr(sys, "argv", ["decode_speed.py", "--quick", "--model", "mistral-7b", "--out", str(tmp_path)])
    module.main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert headline["identical_rate"] == 1
    seconds = json.loads((tmp_path / "decode_speed_mistral-7b.json").read_text())["seconds"]
    assert len(seconds) == 4 + 1 + len(module.GENERATE_BATCHES) + 3


def test_every_attention_kernel_is_checked(tmp_path, monkeypatch, capsys):
    """Those that are timed and those that this device only checks give the attention of the dense mask."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = benchmark("attention")
    monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(sys, "argv", ["attention.py", "--quick", "--out", str(tmp_path)])
    module.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["flex_difference"] < 1e-5
    raw = json.loads((tmp_path / "attention_cpu.json").read_text())
    assert {pack: set(by_name) for pack, by_name in raw["differences"].items()} == {
        pack: {"dense", "blocks", "flex"} for pack in ("rows", "rows with branches")
    }
    assert max(difference for by_name in raw["differences"].values() for difference in by_name.values()) < 1e-5


def test_padded_and_packed_learn_the_same(speaker, tmp_path, monkeypatch, capsys):
    """A way that silently takes the other one's path, or other rows, would compare nothing."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = benchmark("padded_packed")
    objective = "objective: {raft: 1.0, crps: 1.0, head: 1.0}"  # as the demo's, of which only the text is left
    train = f"train: {{rows_per_step: 8, rows_per_micro_step: 4, learning_rate: 1e-3, {objective}}}"
    recipe = make_recipe(tmp_path, speaker, train, "evaluate: {latency_rows: 1}")
    recipe.write_text(recipe.read_text().replace("data: {name: d}", "data: {name: d, source: {kind: generate}}"))
    monkeypatch.setattr(module, "build_dataset", lambda recipe, folder: make_data(folder, train=20))
    monkeypatch.setattr(sys, "argv", ["padded_packed.py", "--recipe", str(recipe), "--out", str(tmp_path / "out")])
    module.main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert headline["packed_vs_padded"] > 0
    samples = json.loads((tmp_path / "out" / "padded_packed.json").read_text())["samples"]
    padded, packed = samples["padded"][0], samples["packed"][0]
    assert padded["train_rows"] == packed["train_rows"] == 20
    assert packed["valid_loss"] == pytest.approx(padded["valid_loss"], rel=1e-2)


def test_the_numbers_cost_is_measured(tmp_path, monkeypatch, capsys):
    """Every way to train and to evaluate runs and has its ratio to text alone."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = benchmark("number_costs")
    tokenizer = load_tokenizer(tiny_mistral(tmp_path / "base", "v3"))
    model = load_base(Student(model="tiny"), tmp_path / "base", torch.device("cpu"))
    monkeypatch.setattr(module, "load", lambda kind, folder: (model, tokenizer))
    monkeypatch.setattr(sys, "argv", ["number_costs.py", "--quick", "--out", str(tmp_path)])
    module.main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert headline["training"].keys() == module.TRAINING.keys()
    assert headline["evaluation"].keys() == module.EVALUATION.keys()
    seconds = json.loads((tmp_path / "number_costs_tiny.json").read_text())["seconds"]
    assert all(len(samples) == 3 for kind in seconds.values() for samples in kind.values())


def test_the_ladder_is_made_from_its_raw_predictions():
    """A figure in the README that the committed predictions do not give would be an invention."""
    module = benchmark("accuracy")
    readme = " ".join((BENCHMARKS.parent / "README.md").read_text(encoding="utf-8").split())
    raw = json.loads((BENCHMARKS / "results" / "accuracy_emobank_smollm2.json").read_text())
    lines = {line.name: line for line in module.table(raw)}
    figures = module.headline(list(lines.values()), raw)
    assert figures["minus_ridge_ngram_95"][1] < 0
    assert figures["worst_score_vs_train_mean"] <= 1
    assert f"hold {figures['coverage_80']:.1%}".replace("%", " %") in readme
    read_outs = ("greedy", "posterior_mean", "calibrated")
    for name in (
        "train mean",
        "base model untuned, posterior_mean",
        *(f"{rung}, {read_out}" for rung in raw["models"] for read_out in read_outs),
    ):
        assert f"{lines[name].mse_norm:.5f}" in readme
    demo = module.table(json.loads((BENCHMARKS / "results" / "accuracy_demo.json").read_text()))
    shown = [line for line in demo if line.seconds is not None and not line.name.endswith(", head")]
    assert len(shown) == 15
    for line in shown:
        assert f"{line.mse_norm:.4f}" in readme
    both = json.loads((BENCHMARKS / "results" / "accuracy_demo_ja_en.json").read_text())
    two_languages = {line.name: f"{line.mse_norm:.4f}" for line in module.table(both)}
    for name in ("cross_entropy, greedy", "cross_entropy, calibrated", "numbers_head, calibrated", module.NGRAMS):
        assert two_languages[name] in readme


def test_the_readmes_first_table_is_a_run_that_is_kept():
    """`make docs-demo` writes both."""
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((BENCHMARKS.parent / "docs" / "demo" / "eval_metrics.json").read_text())
    for name, line in {
        "train_mean_mse_norm": "train mean, always",
        "mse_norm": "this model, greedy text",
        "ridge_mse_norm": "ridge regression on character n-grams",
        "mse_norm_posterior_mean": "this model, posterior mean",
        "mse_norm_calibrated": "this model, calibrated",
    }.items():
        (row,) = [
            row for row in readme.splitlines() if row.strip("| *").startswith(line) and f"{metrics[name]:.4f}" in row
        ]
        assert f"{metrics[name] / metrics['train_mean_mse_norm']:.2f}" in row


def ladder_of_one_rung() -> dict[str, Any]:
    """Raw predictions of two scores from 0 to 10 on three rows, that can be checked by hand."""
    target = [[2, 5], [4, 5], [6, 8]]
    rung = {
        "greedy": [[2, 5], None, [6, 8]],
        "posterior_mean": [[3, 5], [4, 5], [6, 8]],
        "head": [[2, 6], [4, 5], [6, 8]],
        "calibrated": [[2, 5], [4, 5], [6, 9]],
        "low": [[1, 4], [3, 6], [5, 9]],
        "high": [[3, 6], [5, 7], [7, 10]],
        "seconds": 60.0,
        "rate": "1e-3",
        "valid": {"1e-3": {"greedy": 0.1, "posterior_mean": 0.3}, "2e-4": {"greedy": 0.2, "posterior_mean": 0.1}},
    }
    always = {"train mean": [[4, 6]] * 3, "ridge on character n-grams": [[3, 6]] * 3}
    return {
        "setting": {"task": {"keys": ["calm", "bright"], "low": 0, "high": 10}},
        "target": target,
        "baselines": {**always, "ridge on sentence embeddings (multilingual-e5-small)": [[2, 6]] * 3},
        "models": {"cross_entropy": rung, "head": rung | {"rate": "2e-4"}},
    }


def test_the_ladders_figures_by_hand(capsys):
    """Errors by the task's own range, rejected text as the train mean, coverage from the intervals themselves, and the
    best rung by the rate that it was decoded with."""
    module = benchmark("accuracy")
    raw = ladder_of_one_rung()
    lines = module.table(raw)
    error = {line.name: line.mse_norm for line in lines}
    assert error["train mean"] == pytest.approx((4 + 1 + 0 + 1 + 4 + 4) / 600)
    assert error["cross_entropy, greedy"] == pytest.approx(1 / 600)
    assert error["cross_entropy, head"] == pytest.approx(1 / 600)
    figures = module.headline(lines, raw)
    assert figures["best"] == "head, calibrated"
    assert figures["coverage_80"] == pytest.approx(4 / 6, abs=1e-4)
    assert (figures["worst_score"], figures["worst_score_vs_train_mean"]) == ("bright", round(1 / 6, 4))
    module.print_table(lines, figures, raw["setting"]["task"]["keys"])
    assert "head, calibrated, worst score: bright, 0.17 times the train mean's error" in capsys.readouterr().out


def test_quick_measures_nothing(monkeypatch, capsys):
    """`--quick --train-rows 5` gave the committed figures of all rows, as if they were of five."""
    module = benchmark("accuracy")
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--quick", "--train-rows", "5"])
    with pytest.raises(SystemExit):
        module.main()
    assert "--quick: expected no --train-rows" in capsys.readouterr().err


def test_a_rung_stays_in_the_table_while_its_setting_does(tmp_path, monkeypatch):
    """A table of which one line was trained in other steps, or on other rows, would compare nothing."""
    module = benchmark("accuracy")
    recipe = BENCHMARKS.parent / "recipes" / "demo.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "ppe_lora", lambda *_: None)
    monkeypatch.setattr(module, "baselines", lambda _: {"baselines": {"train mean": []}})
    monkeypatch.setattr(module, "predictions", lambda run: {"run": run.name})
    write_json(Path("data/demo/manifest.json"), {"dataset_version": "1"})
    for rate, greedy, mean in (("1e-3", 0.3, 0.2), ("2e-4", 0.4, 0.1)):
        for rung in ("cross_entropy", "head"):
            metrics = {"mse_norm": greedy, "mse_norm_posterior_mean": mean}
            write_json(Path(f"checkpoints/ladder_{rung}_{rate}/best/eval_metrics.json"), metrics)

    def measure(rungs, before, *overrides):
        return module.Ladder(recipe, list(overrides), "ladder").measure(
            ["1e-3", "2e-4"], rungs, before, with_base=False
        )

    first = measure(["cross_entropy"], {})
    first["baselines"]["base model untuned, greedy"] = [None]
    both = measure(["head"], first)
    assert {name: model["run"] for name, model in both["models"].items()} == {
        "cross_entropy": "ladder_cross_entropy_1e-3",  # the best for greedy text, which other trainers give
        "head": "ladder_head_2e-4",
    }
    assert both["baselines"].keys() == {"train mean", "base model untuned, greedy"}
    assert both["models"]["head"]["valid"]["2e-4"] == {"greedy": 0.4, "posterior_mean": 0.1}
    for other in ("train.epochs=1", "seed=1", "train.objective.head=2"):
        assert list(measure(["head"], first, other)["models"]) == ["head"]
    write_json(Path("data/demo/manifest.json"), {"dataset_version": "2"})
    assert list(measure(["head"], first)["models"]) == ["head"]


def test_pictures_show_the_committed_figures(tmp_path, monkeypatch):
    """A picture that was not drawn again shows old figures."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = benchmark("pictures")
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--out", str(tmp_path)])
    module.main()
    drawn = {path.name: re.findall(r">([^<>]+)</text>", path.read_text()) for path in tmp_path.glob("*.svg")}
    assert {name: len(words) > 10 for name, words in drawn.items()} == {
        "accuracy.svg": True,
        "data_sizes.svg": True,
        "training_speed.svg": True,
    }
    for name, words in drawn.items():
        assert words == re.findall(r">([^<>]+)</text>", (BENCHMARKS.parent / "docs" / name).read_text())


def test_the_merge_is_timed_against_a_copy(tmp_path, monkeypatch, capsys):
    """In a small shape: whether both rounds run, in processes of their own, and what is left behind."""
    module = benchmark("merge")

    def small(**given):
        return MistralConfig(**{**given, "vocab_size": 300}, hidden_size=64, intermediate_size=128, head_dim=16,
                             num_attention_heads=4, num_key_value_heads=2)  # fmt: skip

    small.from_pretrained = MistralConfig.from_pretrained
    monkeypatch.setattr(module, "MistralConfig", small)
    (tmp_path / "work").mkdir()
    out = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["merge.py", "--layers", "2", *out])
    module.main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert headline["merge_vs_copy"] > 0
    assert headline["peak_anonymous_gb"] >= headline["anonymous_before_gb"] > 0
    raw = json.loads((tmp_path / "out" / "merge_2_layers.json").read_text())
    assert {kind: len(found) for kind, found in raw["samples"].items()} == {"copy": 2, "merge": 2}
    assert list((tmp_path / "work").iterdir()) == []


def test_both_servers_are_timed_and_ours_is_loaded(served_run, tmp_path, monkeypatch, capsys):
    """A server that the benchmark starts must be one that `ppe-lora serve` would start, proof of its files included."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = benchmark("serving")
    options = ["--quick", "--seconds", "3", "--out", str(tmp_path), "--folder", str(served_run / "merged")]
    monkeypatch.setattr(sys, "argv", ["serving.py", *options])
    module.main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert headline["load_errors"] == 0
    assert headline["load_wrong"] == 0
    assert headline["load_requests"] >= 32
    raw = json.loads((tmp_path / "serving_run.json").read_text())
    assert len(raw["alone_ms"]["ours"]) == 32
    assert headline["memory_mb_last_quarter"] > 0
