"""Two trainings on one machine: how fast each is beside the other, against alone, with and without spinning threads.

    python benchmarks/side_by_side.py [--quick] [--out DIR] [--recipe RECIPE]

Trainings are `ppe-lora train` in processes of their own, on the same rows. OpenMP's threads wait for one another in
three ways: "brief" is the package's own, spinning for some microseconds before they sleep; "passive" ones sleep at
once; "spinning" is OpenMP's default, threads that keep a core busy for milliseconds. Rounds are interleaved. A speed is
the rows per second of a run's manifest, the median over its steps. Raw samples go to DIR/side_by_side.json; the last
printed line is one JSON object: each speed beside another training as a share of the speed alone, and the speeds alone
as shares of the spinning one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from models import device_name

from ppe_lora.artifacts import read_json
from ppe_lora.corpus.build import build_dataset
from ppe_lora.recipe import load_recipe
from ppe_lora.student.base import resolve_base

ROOT = Path(__file__).parents[1]
WAITING = {
    "brief": {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "0")},  # as ppe_lora sets it
    "passive": {"GOMP_SPINCOUNT": "0"},
    "spinning": {"GOMP_SPINCOUNT": "300000"},
}


def train_together(count: int, waiting: str, recipe: Path, changes: list[str], folder: Path) -> list[float]:
    """Rows per second of `count` trainings that start together in `folder`, which holds their data."""
    names = [f"{waiting}_{count}_{number}" for number in range(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **WAITING[waiting]}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "ppe_lora", "train", str(recipe), "--fresh", *changes, f"name={name}"],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for name in names
    ]
    ends = [process.wait() for process in running]
    if any(ends):
        raise SystemExit(f"{waiting}: a training failed")
    return [read_json(folder / "checkpoints" / name / "manifest.json")["rows_per_s"] for name in names]


def main() -> None:
    """Measure, print a table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, one round")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "demo.yaml")
    asked = parser.parse_args()
    rows, rounds = (110, 1) if asked.quick else (220, 3)
    changes = [f"data.source.rows={rows}", "train.epochs=1", "evaluate.gate=0.0"]
    recipe = load_recipe(asked.recipe, changes)
    resolve_base(recipe.student)  # prepared once, for all
    samples: dict[str, dict[str, list[float]]] = {waiting: {"alone": [], "beside": []} for waiting in WAITING}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build_dataset(recipe, folder / "data" / recipe.data.name)
        for _ in range(rounds):
            for waiting in WAITING:
                samples[waiting]["alone"] += train_together(1, waiting, asked.recipe.resolve(), changes, folder)
                samples[waiting]["beside"] += train_together(2, waiting, asked.recipe.resolve(), changes, folder)
    for waiting, by_company in samples.items():
        for company, speeds in by_company.items():
            print(f"{waiting} {company}: {statistics.median(speeds):.2f} rows/s, of {[round(s, 2) for s in speeds]}")
    alone = {waiting: statistics.median(by_company["alone"]) for waiting, by_company in samples.items()}
    headline = {
        **{
            f"{waiting}_beside_vs_alone_{word}": round(choose(samples[waiting]["beside"]) / alone[waiting], 3)
            for waiting in WAITING
            for word, choose in (("median", statistics.median), ("least", min))
        },
        **{f"{way}_alone_vs_spinning": round(alone[way] / alone["spinning"], 3) for way in ("brief", "passive")},
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    raw = {"device": device_name(), "cores": os.cpu_count(), "recipe": recipe.name, "rows": rows, "rows_per_s": samples}
    (asked.out / "side_by_side.json").write_text(json.dumps({**raw, **headline}, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
