"""How the statistics, the report and the comparison of an evaluation grow with its test rows: seconds, memory, pages.

    python benchmarks/report_growth.py [--quick] [--out DIR]

Runs of made-up answers to the music task, with tags as real data has them. `differences` is of 36 statistics at once,
as in one comparison; `report` and `compare` read the files of finished runs and write their pages. Every figure is of a
process of its own; seconds are the processor's. Raw figures go to DIR/report_growth.json; the last printed line is one
JSON object: the figures of the largest size, and the exponents of growth over the last two sizes (1 is linear).
"""

import argparse
import json
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ppe_lora.artifacts import hash_file, read_json, write_json, write_manifest, write_text
from ppe_lora.corpus.rows import Row, row_id, split_path, targets_matrix, write_rows
from ppe_lora.evaluation.baselines import baseline_lines, constant_mse_norm, train_mean_mse_norm
from ppe_lora.evaluation.comparison import compare
from ppe_lora.evaluation.correct import corrected
from ppe_lora.evaluation.metrics import METRIC_VERSION, Matrix, error_metrics, renamed, score
from ppe_lora.evaluation.paired import differences
from ppe_lora.evaluation.stored import read_run
from ppe_lora.evaluation.test_set import note_test_rows
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.recipe.load import dump_recipe
from ppe_lora.report.comparison import write_comparison
from ppe_lora.report.comparison_page import write_comparison_page
from ppe_lora.report.run_report import write_report
from ppe_lora.tasks.scores import Answer

SIZES = (2_000, 5_000, 20_000)
QUICK_SIZES = (500, 2_000)
STATISTICS = 36
TAGS = 200
MB = 1e6


def main() -> None:
    """Measure every size, print a line each, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZES} rows instead of {SIZES}")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"differences": [], "report": [], "compare": []}
    sizes = QUICK_SIZES if arguments.quick else SIZES
    for rows in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            for run in ("one", "other"):
                make_run(Path(scratch), run, rows)
            for name, measure in (("differences", _differences), ("report", _report), ("compare", _compare)):
                figures = _apart(measure, Path(scratch), rows)
                found[name].append({"rows": rows, **figures})
                print(f"{name}, {rows:,} rows: {', '.join(f'{key} {value:.3g}' for key, value in figures.items())}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "report_growth.json", found)
    headline = {name: {**lines[-1], "exponent": _exponent(*lines[-2:])} for name, lines in found.items()}
    print(json.dumps(headline))


def _exponent(small: dict[str, float], large: dict[str, float]) -> float:
    return round(math.log(large["seconds"] / small["seconds"]) / math.log(large["rows"] / small["rows"]), 2)


def _apart(measure: Callable[[Path, int], dict[str, float]], scratch: Path, rows: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (measure, scratch, rows))


def _timed(measure: Callable[[Path, int], dict[str, float]], scratch: Path, rows: int) -> dict[str, float]:
    start = time.process_time()
    figures = measure(scratch, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": time.process_time() - start, "peak_mb": peak / MB, **figures}


def _differences(scratch: Path, rows: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    first_NM = rng.gamma(1.0, 1.0, (rows, STATISTICS))
    differences(first_NM, first_NM + rng.normal(0, 0.3, first_NM.shape))
    return {}


def _report(scratch: Path, rows: int) -> dict[str, float]:
    run = scratch / "one"
    write_report(load_recipe(run / "config.yaml"), scratch / "data", run)
    return {"page_mb": (run / "report.html").stat().st_size / MB}


def _compare(scratch: Path, rows: int) -> dict[str, float]:
    first, second = (read_run(scratch / name) for name in ("one", "other"))
    comparison = compare(first, second)
    write_comparison(scratch, comparison)
    write_comparison_page(scratch, comparison, (first, second))
    return {"page_mb": (scratch / "comparison.html").stat().st_size / MB}


def make_run(scratch: Path, name: str, count: int) -> Recipe:
    """Write a finished run of made-up answers, and its data set where there is none yet.

    Args:
        scratch: Gets `data/` and the run's folder.
        name: The run's; another one has other answers.
        count: Test rows.
    """
    (scratch / "recipe.yaml").write_text(
        f"name: {name}\ndata: {{name: d}}\nstudent: {{model: m}}\nevaluate: {{read_out: calibrated}}\n"
    )
    recipe, data, run = load_recipe(scratch / "recipe.yaml"), scratch / "data", scratch / name
    task, rng = recipe.task, np.random.default_rng(len(name))
    sizes = {"train": 500, "valid": 100, "test": count}
    rows = {split: _rows(recipe, split, size) for split, size in sizes.items()}
    for split in ("train", "valid", "test"):
        write_rows(split_path(data, split), rows[split])
    write_manifest(data, {}, dataset_version="made-up")
    train_NK, target_NK = (targets_matrix(rows[split], task) for split in ("train", "test"))
    predictions, metrics = _answers(recipe, rows["test"], target_NK, rng)
    metrics |= {
        "train_mean_mse_norm": train_mean_mse_norm(train_NK, target_NK, task),
        "constant_mse_norm": constant_mse_norm(target_NK, task),
        "valid_loss": 1.0,
    }
    write_text(run / "config.yaml", dump_recipe(recipe))
    write_text(run / "train_log.csv", "step,epoch,loss,learning_rate,grad_norm,seconds\n1,0.5,1,1,1,1\n2,1,1,1,1,2\n")
    write_json(run / "epochs" / "001" / "eval_metrics.json", metrics | {"train_loss": 1.0})
    write_json(run / "best" / "eval_metrics.json", metrics)
    inputs = {"recipe": {"task": task.model_dump(mode="json")}, "dataset_version": "made-up"}
    write_manifest(
        run, inputs, selected_epoch=1, seconds_of_last_start=2.0, processes=1, device="cpu", threads=1,
        train_rows=sizes["train"], valid_rows=sizes["valid"], trainable_parameters=1,
    )  # fmt: skip
    note_test_rows(run, split_path(data, "test"), count)
    others = {name: np.tile(train_NK.mean(axis=0), (count, 1)) for name in ("constant", "train_mean", "ridge")}
    write_text(
        run / "test" / "baseline_predictions.jsonl", baseline_lines([row.id for row in rows["test"]], others, task)
    )
    write_text(run / "test" / "eval_predictions.jsonl", "".join(json.dumps(line) + "\n" for line in predictions))
    write_json(run / "test" / "eval_metrics.json", metrics)
    known = {
        "training": read_json(run / "manifest.json")["inputs_hash"],
        "metric_version": METRIC_VERSION,
        "adapter": None,
    }
    latency = {"read_out": "calibrated", "engine": "none", "weights": "none", "device": "none", "requests": 0}
    test_rows = {"test_rows": hash_file(split_path(data, "test"))}
    write_manifest(run / "test", known | test_rows, device="cpu", latency=latency)
    return recipe


def _rows(recipe: Recipe, split: str, count: int) -> list[Row]:
    rng, rows = np.random.default_rng(sum(map(ord, split))), []
    for number in range(count):
        request = f"{split} {number} " + "rainy evening " * int(rng.integers(1, 12))
        target = {key: int(rng.integers(0, 101)) for key in recipe.task.keys}
        tags = tuple(f"tag {tag}" for tag in sorted({int(tag) for tag in rng.integers(0, TAGS, 3)}))
        identity = row_id(request, target, "en", None)
        rows.append(Row(id=identity, request=request, target=target, language="en", scenario=tags))
    return rows


def _answers(
    recipe: Recipe, rows: list[Row], target_NK: Matrix, rng: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    task = recipe.task
    mean_NK = np.clip(target_NK + rng.normal(0, 15, target_NK.shape), task.low, task.high).round()
    lines = []
    for row, mean_K in zip(rows, mean_NK.tolist(), strict=True):
        answer = dict(zip(task.keys, map(int, mean_K), strict=True))
        ends = {
            end: {key: value + sign * 20.0 for key, value in answer.items()} for end, sign in (("low", -1), ("high", 1))
        }
        shown = {"id": row.id, "request": row.request, "language": row.language, "scenario": list(row.scenario)}
        lines.append(
            {
                **shown, "style": None, "sampler": "import", "target": row.target, "text": task.render(answer),
                "parsed": answer, "rejected": None, "posterior_mean": answer,
                "posterior_sd": dict.fromkeys(task.keys, 15.0), **ends,
            }
        )  # fmt: skip
    outcomes = [Answer(tuple(values)) for values in mean_NK.tolist()]
    means = error_metrics(mean_NK, target_NK, task)
    metrics = score(outcomes, target_NK, task) | {
        renamed(name, "posterior_mean"): value for name, value in means.items()
    }
    predictions, more = corrected(lines, None, task)
    return predictions, metrics | more


if __name__ == "__main__":
    main()
