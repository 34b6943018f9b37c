"""The demo's train and evaluate stages, padded against packed, in one run on one machine.

    python benchmarks/padded_packed.py [--rows N] [--rounds N] [--out DIR] [--recipe RECIPE]

Padded is what a model gets that does not compute packs exactly (`collate.packs_exactly`): a row a line in training, and
`generate` to decode. It has text only, so both train on text alone (raft and crps are 0, no head) and answer with
greedy text; packed also gives the distribution of every score. The rows are the same, in the same order. Rounds are
interleaved, medians are reported, raw samples go to DIR/padded_packed.json, and the last printed line is one JSON
object of headline figures. Where a machine has other work to do, processor seconds say more than those of the clock.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from models import device_name

from ppe_lora.artifacts import read_json
from ppe_lora.corpus.build import build_dataset
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.student import ready, training
from ppe_lora.student.base import resolve_base
from ppe_lora.student.test_rows import evaluate_test_rows

TEXT_ONLY = [
    *(f"train.objective.{term}=0.0" for term in ("raft", "crps", "head")),
    "train.objective.slots=answers",
    "evaluate.read_out=greedy",
    "evaluate.head=false",
]
WAYS = ("padded", "packed")


def run(recipe: Recipe, data: Path, folder: Path, way: str) -> dict[str, Any]:
    """Seconds of both stages, and the errors on the test rows."""
    processor_started = time.process_time()
    with mock.patch.object(training, "packs_exactly", return_value=way == "packed"):
        started = time.perf_counter()
        training.train(recipe, data, folder)
        trained = time.perf_counter()
    with mock.patch.object(ready, "packs_exactly", return_value=way == "packed"):
        evaluate_test_rows(recipe, data, folder)
        evaluated = time.perf_counter()
    metrics = read_json(folder / "test" / "eval_metrics.json")
    kept = ("mse_norm", "mse_norm_strict", "valid_loss", "schema_valid_rate", "rows")
    return {
        "train_s": trained - started,
        "evaluate_s": evaluated - trained,
        "processor_s": time.process_time() - processor_started,
        "train_rows": read_json(folder / "manifest.json")["train_rows"],
        **{name: metrics.get(name) for name in kept},
    }


def main() -> None:
    """Measure, print a table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=100, help="asked from the teacher; filters and split as in the demo"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"))
    asked = parser.parse_args()
    changes = [*TEXT_ONLY, f"data.source.rows={asked.rows}", "train.epochs=1", "evaluate.gate=0.0"]
    recipe = load_recipe(asked.recipe, changes)
    resolve_base(recipe.student)  # prepared once, for both
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        build_dataset(recipe, data)
        for number in range(asked.rounds):
            for way in WAYS:
                one = run(recipe, data, Path(folder) / f"{way}_{number}", way)
                samples[way].append(one)
                print(f"round {number + 1}: {way}: {json.dumps(one)}", flush=True)
    stages = ("train_s", "evaluate_s", "processor_s")
    seconds = {way: {s: statistics.median(one[s] for one in samples[way]) for s in stages} for way in WAYS}
    print("\n| | train, s | evaluate, s | processor, s | mse_norm | loss |\n| --- | --- | --- | --- | --- | --- |")
    for way in WAYS:
        first = samples[way][0]
        shown = " | ".join(f"{value:.1f}" for value in seconds[way].values())
        print(f"| {way} | {shown} | {first['mse_norm']:.5f} | {first['valid_loss']:.5f} |")
    padded, packed = (seconds[way] for way in WAYS)
    headline = {
        "recipe": asked.recipe.stem,
        "device": device_name(),
        "packed_vs_padded": round(
            (padded["train_s"] + padded["evaluate_s"]) / (packed["train_s"] + packed["evaluate_s"]), 3
        ),
        "packed_vs_padded_processor": round(padded["processor_s"] / packed["processor_s"], 3),
        "packed_vs_padded_train": round(padded["train_s"] / packed["train_s"], 3),
        "packed_vs_padded_evaluate": round(padded["evaluate_s"] / packed["evaluate_s"], 3),
        "mse_norm_padded": samples["padded"][0]["mse_norm"],
        "mse_norm_packed": samples["packed"][0]["mse_norm"],
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    raw = {"headline": headline, "samples": samples, "rows_asked": asked.rows, "torch": torch.__version__}
    (asked.out / "padded_packed.json").write_text(json.dumps(raw, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
