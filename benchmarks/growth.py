"""How time and memory grow with the rows: data sets, the start of a training, statistics, reports.

    python benchmarks/growth.py [--quick] [--out DIR]

Each step runs in a process of its own, which tells its seconds and its peak memory above that of the imports:

    build varied     import, split and stats.json of requests put together from thousands of clauses
    build templated  the same of requests from 20 templates, of which many are alike and far more nearly so
    describe         what `data stats` counts and compares
    start            from row files to the rows of a trainer, with a SentencePiece tokenizer (v7), then again
    statistics       what an evaluation computes of decoded answers: metrics of texts and distributions, baselines
    report, compare  of finished runs with that many test rows

10,000, 100,000 and 300,000 rows (2,000 and 8,000 with --quick, a start of 5,000 and 20,000); `describe`, `statistics`,
`report` and `compare` end at 20,000. An exponent is the slope of log seconds over log rows between the last two sizes:
1 is linear, n log n some 1.1. `start_again` is the tokens' time of the second start over that of the first. Raw figures
go to DIR/growth.json; the last printed line is one JSON object of headline figures.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from math import log
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run folders are made as the tests make them

from near_duplicates import make_requests, make_templated

TASK = "task: {keys: [a, b, c, d, e, f], instruction: {en: 'Score {keys} from {low} to {high}, with JSON only.'}}"
KEYS = "abcdef"
SOURCE = (
    "data: {name: d, source: {kind: import, source_dir: ., files: {f: {path: rows.jsonl}}, request: f.text, "
    "target: {a: f.a, b: f.b, c: f.c, d: f.d, e: f.e, f: f.f}}, split: {valid: VALID, test: TEST}}"
)


def main() -> None:
    """Measure every step at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 and 8,000 rows")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    sizes = [2_000, 8_000] if asked.quick else [10_000, 100_000, 300_000]
    small = [2_000, 8_000] if asked.quick else [5_000, 20_000]
    steps: list[tuple[str, Step, list[int]]] = [
        ("build varied", build_varied, sizes),
        ("build templated", build_templated, sizes),
        ("describe", describe_data, small),
        ("start", start, [5_000, 20_000] if asked.quick else sizes[:2]),
        ("statistics", statistics, small),
        ("report", report, small),
        ("compare", compare, small),
    ]
    raw: dict[str, dict[int, dict[str, float]]] = {}
    for name, step, counts in steps:
        raw[name] = {}
        for count in counts:
            raw[name][count] = apart(step, count)
            print(f"{name}, {count:,} rows: {raw[name][count]}", flush=True)
    starts = raw["start"].values()
    headline = {
        "cpu": f"{platform.machine()}, {multiprocessing.cpu_count()} cores",
        "rows": sizes[-1],
        "exponents": {name: exponent(of_size) for name, of_size in raw.items()},
        "start_again": [round(one["again_s"] / one["tokens_s"], 3) for one in starts],
        "peak_gb": max(one["peak_gb"] for of_size in raw.values() for one in of_size.values()),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "growth.json").write_text(json.dumps({"headline": headline, "raw": raw}, indent=2) + "\n")
    print(json.dumps(headline))


Step = Callable[[int], dict[str, float]]


def apart(step: Step, count: int) -> dict[str, float]:
    """What a step says, run in a new process and an empty folder."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="growth-") as folder, spawn.Pool(1, _enter, (folder,)) as fresh:
        return fresh.apply(step, (count,))


def _enter(folder: str) -> None:
    os.chdir(folder)
    os.environ["PPE_LORA_CACHE"] = str(Path(folder) / "cache")


def exponent(of_size: dict[int, dict[str, float]]) -> float:
    """The slope of log seconds over log rows, between the last two sizes."""
    (few, first), (many, second) = list(of_size.items())[-2:]
    return round(log(second["cpu_s"] / first["cpu_s"]) / log(many / few), 2)


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock and of the processor, and how much higher the peak memory is afterwards."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_s": round(time.process_time() - used, 3),
        "peak_gb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6, 3),
    }


# ---------------------------------------------------------------------------------------------------------------- steps


def build_varied(count: int) -> dict[str, float]:
    return _build(make_requests(count))


def build_templated(count: int) -> dict[str, float]:
    return _build(make_templated(count))


def describe_data(count: int) -> dict[str, float]:
    from ppe_lora.corpus.description import describe, read_dataset

    recipe, folder = _dataset(make_requests(count))
    data = read_dataset(folder, recipe.task)
    return timed(lambda: describe(data, recipe.task, group=recipe.data.split.group))


def start(count: int) -> dict[str, float]:
    """The first and the second start of a training, up to its rows; and of these the tokens alone."""
    from ppe_lora.corpus.rows import read_rows, split_path
    from ppe_lora.student.preflight import look_ahead
    from ppe_lora.student.stored_rows import encode_once
    from ppe_lora.student.tokenizer import load_tokenizer
    from tests.tiny import tiny_mistral

    recipe, folder = _dataset(make_requests(count), "0.01", "0.01", model=str(tiny_mistral(Path("model"), "v7")))
    tokenizer = load_tokenizer(Path("model"))
    rows = read_rows(split_path(folder, "train"), recipe.task)
    tokens = [timed(lambda: encode_once(rows, recipe.task, tokenizer, 512)) for _ in range(2)]

    def begin() -> None:
        ready = look_ahead(recipe, folder, Path("checkpoints/run"), fresh=False)
        ready.splits["train"].batch_rows(ready.trie)

    for file in Path("cache/tokens").iterdir():
        file.unlink()
    first, again = timed(begin), timed(begin)
    spent = {"tokens_s": tokens[0]["cpu_s"], "again_s": tokens[1]["cpu_s"], "start_again_s": again["cpu_s"]}
    return {**first, **spent}


def statistics(count: int) -> dict[str, float]:
    """Of `count` decoded rows of six scores."""
    import torch

    from ppe_lora.corpus.rows import read_rows, split_path, targets_matrix
    from ppe_lora.evaluation.baselines import baseline_answers
    from ppe_lora.evaluation.metrics import score
    from ppe_lora.student.evaluate import posterior_metrics
    from ppe_lora.student.tokenizer import load_tokenizer
    from ppe_lora.student.trie import build_trie
    from tests.tiny import tiny_llama

    recipe, folder = _dataset(make_requests(count * 10 // 9), "0.05", "0.9", model=str(tiny_llama(Path("model"))))
    task = recipe.task
    train, test = (read_rows(split_path(folder, split), task) for split in ("train", "test"))
    trie = build_trie(task, load_tokenizer(Path("model")))
    posteriors = [torch.randn(len(KEYS), len(trie.values)).log_softmax(1) for _ in test]
    texts = [task.render(row.target) for row in test]

    def work() -> None:
        target_NK = targets_matrix(test, task)
        score([task.parse(text) for text in texts], target_NK, task)
        posterior_metrics(posteriors, target_NK, task, trie)
        requests = [[row.request for row in rows] for rows in (train, test)]
        baseline_answers(requests[0], targets_matrix(train, task), requests[1], task)

    return timed(work)


def report(count: int) -> dict[str, float]:
    from ppe_lora.report.run_report import write_report

    recipe, folder, (run,) = _runs(count, 0.6)
    return timed(lambda: write_report(recipe, folder, run))


def compare(count: int) -> dict[str, float]:
    from ppe_lora.compare import compare_sides
    from ppe_lora.report.comparison import write_comparison
    from ppe_lora.report.comparison_page import write_comparison_page

    _, folder, (first, second) = _runs(count, 0.5, 0.6)

    def work() -> None:
        compared = compare_sides((str(first), str(second)), lambda recipe: folder)
        write_comparison(compared.folder, compared.comparison)
        write_comparison_page(compared.folder, compared.comparison, (compared.first, compared.second))

    return timed(work)


# ------------------------------------------------------------------------------------------------------------ materials


def _build(requests: Sequence[str]) -> dict[str, float]:
    from ppe_lora.corpus.build import build_dataset

    recipe = _recipe(requests, "0.1", "0.1", "nowhere")
    return timed(lambda: build_dataset(recipe, Path("data/d")))


def _dataset(
    requests: Sequence[str], valid: str = "0.1", test: str = "0.1", model: str = "nowhere"
) -> tuple[Any, Path]:
    from ppe_lora.corpus.build import build_dataset

    recipe = _recipe(requests, valid, test, model)
    build_dataset(recipe, Path("data/d"))
    return recipe, Path("data/d")


def _recipe(requests: Sequence[str], valid: str, test: str, model: str) -> Any:
    """A recipe that imports these requests, with targets that follow their lengths."""
    from ppe_lora.recipe import load_recipe

    with Path("rows.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(requests):
            scores = {key: (len(text) * (place + 3) + number % 7) % 101 for place, key in enumerate(KEYS)}
            file.write(json.dumps({"id": str(number), "text": text, **scores}, ensure_ascii=False) + "\n")
    source = SOURCE.replace("VALID", valid).replace("TEST", test)
    Path("r.yaml").write_text(f"{TASK}\n{source}\nstudent: {{model: '{model}'}}\n")
    return load_recipe(Path("r.yaml"))


def _runs(count: int, *skills: float) -> tuple[Any, Path, list[Path]]:
    """Finished runs with about `count` test rows, as they are without a training."""
    from tests.run_folders import make_run

    recipe, folder = _dataset(make_requests(count * 10 // 9), "0.05", "0.9")
    runs = [Path("checkpoints") / f"run{place}" for place in range(len(skills))]
    for run, skill in zip(runs, skills, strict=True):
        make_run(recipe.model_copy(update={"name": run.name}), folder, run, skill=skill)
        manifest = json.loads((run / "test" / "manifest.json").read_text())
        manifest["inputs"]["adapter"] = run.name  # which nobody has trained
        (run / "test" / "manifest.json").write_text(json.dumps(manifest))
    return recipe, folder, runs


if __name__ == "__main__":
    main()
