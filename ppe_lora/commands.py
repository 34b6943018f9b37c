"""What people ask around the stages: what will it cost, what is in it, does it fit, does the engine answer the same?

Each command reads what the stages of `pipeline` wrote, or will write, and prints what it found; none changes a run.
torch is imported inside the commands that need it.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from ppe_lora.console import console, duration, progress
from ppe_lora.locks import holding
from ppe_lora.pipeline import alone_in, alone_in_data, data_dir, run_dir, say
from ppe_lora.recipe import Recipe

if TYPE_CHECKING:
    from ppe_lora.corpus.rows import Row
    from ppe_lora.corpus.teachers.llm.fetch import Plan
    from ppe_lora.evaluation.stored import Stored


def plan_data(recipe: Recipe, shard: str | None = None, *, skip_corrupt: bool = False) -> None:
    """Print what asking the teacher would take. Asks nothing.

    Raises:
        DataError: There is no such shard, or a raw file is corrupt.
    """
    from ppe_lora.corpus.planning import parse_shard, plan_asking, plan_reading

    rows = getattr(recipe.data.source, "rows", None)
    folder = data_dir(recipe)
    writing = plan_asking(recipe, folder, parse_shard(shard) if shard else None, skip_corrupt=skip_corrupt)
    reading = None if shard else plan_reading(recipe, folder, skip_corrupt=skip_corrupt)
    if writing:
        console.print(f"{folder}: {rows:,} rows; {_planned(writing)}")
    if reading:
        console.print(f"{folder}: texts to read back; {_planned(reading)}")
    if writing is None and reading is None:
        console.print(f"{folder}: {f'{rows:,} rows' if rows else 'an import'}; no language model is asked")


def _planned(plan: "Plan") -> str:
    model, estimate, seconds, pace = plan
    expected, worst = estimate.expected, estimate.worst
    return (
        f"{expected.requests:,} requests still to ask {model}, {estimate.answered:,} answered already\n"
        f"  tokens  {expected.prompt_tokens:,} of prompts and {expected.completion_tokens:,} of answers expected; "
        f"at most {worst.tokens:,}\n"
        f"  money   {estimate.expected_cost:,.2f} expected; at most {estimate.worst_cost:,.2f} at the recipe's prices\n"
        f"  time    {pace if seconds is None else f'{duration(seconds)} at {pace}'}"
    )


def write_questions(recipe: Recipe, out: Path) -> None:
    """Write what is still to be asked as batch files for another engine (see `planning.write_questions`)."""
    from ppe_lora.corpus.planning import write_questions as write

    with holding(out, "wait for it to end, or name another folder with --out"):
        files = write(recipe, data_dir(recipe), out)
    if not files:
        console.print(f"{data_dir(recipe)}: every question has a raw answer; build the data set")
    for path, model, count in files:
        console.print(f"{path}: {count:,} questions to {model}")


def read_answers(recipe: Recipe, results: list[Path]) -> None:
    """Keep another engine's answers as raw replies (see `planning.read_answers`)."""
    from ppe_lora.corpus.build import raw_dir
    from ppe_lora.corpus.planning import read_answers as read

    answers = read(recipe, data_dir(recipe), results)
    console.print(f"{raw_dir(data_dir(recipe))}: {len(answers.replies):,} new answers")
    if answers.unanswered:
        reason = next(iter(answers.unanswered.values()))
        console.print(f"  {len(answers.unanswered):,} questions have none (the first: {reason})")


def describe_data(recipe: Recipe) -> None:
    """Write `stats.json` and the page `data_report.html` into the data set's folder, and print the page's verdict.

    Raises:
        DataError: There is no finished data set, or a file breaks the row contract.
    """
    from ppe_lora.artifacts import write_json
    from ppe_lora.corpus.description import describe, read_dataset
    from ppe_lora.corpus.stats import dataset_stats
    from ppe_lora.report.data_page import FILE_NAME, write_data_page

    folder = data_dir(recipe)
    with alone_in_data(folder), progress("describing data", 5) as advance:
        data = read_dataset(folder, recipe.task)
        stats = dataset_stats(data.by_split, recipe.task)
        write_json(folder / "stats.json", stats)
        advance(note="counting tokens")
        tokens, missing = _token_lengths(recipe, data.kept)
        described = describe(
            data,
            recipe.task,
            group=recipe.data.split.group,
            tokens=tokens,
            max_tokens=recipe.student.max_tokens,
            step=lambda doing: advance(note=doing),
        )
        verdict = write_data_page(folder, recipe, data, stats, described, missing)
    console.print(verdict)
    if missing:
        console.print(f"  no lengths in tokens: {missing}")
    console.print(str(folder / FILE_NAME))


def _token_lengths(recipe: Recipe, rows: list["Row"]) -> tuple[dict[str, int], str | None]:
    """Whole rows in the student's tokens by row id, or why they cannot be counted: data may precede its student."""
    from ppe_lora.errors import ModelError
    from ppe_lora.student.base import resolve_tokenizer
    from ppe_lora.student.encode import token_lengths
    from ppe_lora.student.tokenizer import load_tokenizer

    try:
        return token_lengths(rows, recipe.task, load_tokenizer(resolve_tokenizer(recipe.student))), None
    except ModelError as error:
        return {}, str(error)


def show_row(recipe: Recipe, split: str, number: int) -> None:
    """Print one row's tokens as the student sees them; the supervised ones are marked.

    Raises:
        DataError: There is no such split or row.
    """
    from typing import get_args

    from rich.table import Table

    from ppe_lora.corpus.rows import read_rows, split_path
    from ppe_lora.errors import DataError
    from ppe_lora.recipe.schema import SplitName
    from ppe_lora.student.base import resolve_tokenizer
    from ppe_lora.student.encode import show_row as tokens_of
    from ppe_lora.student.tokenizer import load_tokenizer

    found: SplitName | None = next((name for name in get_args(SplitName) if name == split), None)
    if found is None:
        raise DataError(f"--split: expected one of {', '.join(get_args(SplitName))}; got {split}")
    rows = read_rows(split_path(data_dir(recipe), found), recipe.task)
    if not 1 <= number <= len(rows):
        raise DataError(f"--row: expected 1 to {len(rows)}; got {number}")
    row = rows[number - 1]
    table = Table("id", "token", "supervised", title=f"{split} row {number} ({row.id})")
    for piece, token, supervised in tokens_of(row, recipe.task, load_tokenizer(resolve_tokenizer(recipe.student))):
        table.add_row(str(token), repr(piece)[1:-1], Text("yes", "green") if supervised else "")
    console.print(table)


def convert_data(source: Path, target: Path, to: str, recipe: Recipe | None, skip_invalid: bool) -> None:
    """Convert a data set to another format (see `ppe_lora.corpus.convert.convert`) and print what was written.

    Raises:
        DataError: There is no such format, or the data cannot be converted.
    """
    from ppe_lora.corpus.convert import convert
    from ppe_lora.corpus.formats import FORMATS
    from ppe_lora.errors import DataError
    from ppe_lora.tasks.scores import ScoresTask

    found = next((name for name in FORMATS if name == to), None)
    if found is None:
        raise DataError(f"--to: expected one of {', '.join(FORMATS)}; got {to}")
    with holding(target, "wait for it to end, or name another folder"):
        converted = convert(source, target, found, recipe.task if recipe else ScoresTask(), skip_invalid)
    written = ", ".join(f"{count} {split}" for split, count in converted.rows.items())
    console.print(f"{target}: {written} rows as {found}; every line is in {target}/report.jsonl")
    if converted.skipped:
        console.print(f"  left out {converted.skipped} that are not valid")


def baselines(recipe: Recipe, *, models: bool = False) -> None:
    """Print what other predictors get on the test rows.

    Args:
        recipe: The experiment.
        models: Whether to also decode the base model as it is, and to train plain SFT, both by the recipe that the
            finished run of this name has. Its report shows all of them from then on; the ridge on embeddings, where its
            package is there, also without.

    Raises:
        DataError: The data set has not been built.
        RunError: With `models`, the run is not finished.
    """
    from ppe_lora.artifacts import hash_file, is_current, write_manifest, write_text
    from ppe_lora.corpus.rows import read_rows, split_path, targets_matrix
    from ppe_lora.evaluation.baselines import baseline_answers, baseline_lines, embedding_answers
    from ppe_lora.evaluation.row_errors import squared_errors
    from ppe_lora.evaluation.stored import common_ids, read_run

    if models:
        recipe = read_run(run_dir(recipe)).recipe  # an unfinished run is named before anything is decoded
    task, test_path = recipe.task, split_path(data_dir(recipe), "test")
    train_rows, test_rows = (read_rows(split_path(data_dir(recipe), split), task) for split in ("train", "test"))
    others: dict[str, Stored] = {}
    if models:
        with alone_in(run_dir(recipe)):
            others = _other_models(recipe)
    if others:
        decoded = set(common_ids(list(others.values())))
        test_rows = [row for row in test_rows if row.id in decoded]
    ids, texts = [row.id for row in test_rows], [[row.request for row in rows] for rows in (train_rows, test_rows)]
    answers = baseline_answers(texts[0], targets_matrix(train_rows, task), texts[1], task)
    embedded_NK = embedding_answers(texts[0], targets_matrix(train_rows, task), texts[1], task)
    if embedded_NK is not None:
        answers["embeddings"] = embedded_NK
    answers |= {name: stored.answers(ids, "greedy") for name, stored in others.items()}
    error = {
        name: float(squared_errors(answer_NK, targets_matrix(test_rows, task), task).mean())
        for name, answer_NK in answers.items()
    }
    _print_baselines(f"{recipe.data.name}: {len(test_rows)} test rows", error)
    folder, inputs = run_dir(recipe) / "baselines", {"test_rows": hash_file(test_path)}
    kept = {name: answer_NK for name, answer_NK in answers.items() if name in _MADE_ON_WISH}
    if kept and (models or ((run_dir(recipe) / "test").is_dir() and not is_current(folder, inputs))):
        with holding(run_dir(recipe), wait=say):
            write_text(folder / "predictions.jsonl", baseline_lines(ids, kept, task))
            write_manifest(folder, inputs, files=["predictions.jsonl"], rows=len(ids))
        console.print(f"{folder}: kept; `ppe-lora report` shows them")


_MADE_ON_WISH = {
    "embeddings": ".venv/bin/pip install -c constraints.txt -e '.[embeddings]'",
    "untuned": "--models",
    "plain_sft": "--models",
}
"""Baselines that not every call has, and how to get them."""


def _print_baselines(title: str, error: Mapping[str, float]) -> None:
    from rich.table import Table

    from ppe_lora.evaluation.metrics import ratio
    from ppe_lora.report.run_words import NAMES

    table = Table("baseline", "mse_norm", "against the train mean", title=title)
    for name, value in error.items():
        times = ratio(value, error["train_mean"])
        table.add_row(NAMES[name].en, f"{value:.5f}", "-" if times is None else f"{times:.3f}")
    for name, remedy in _MADE_ON_WISH.items():
        if name not in error:
            table.add_row(NAMES[name].en, "-", remedy)
    console.print(table)


def _other_models(recipe: Recipe) -> "dict[str, Stored]":
    """The base model as it is, and plain SFT, on the test rows of the recipe's run."""
    from ppe_lora.evaluation.stored import read_evaluation, read_run
    from ppe_lora.student.others import evaluate_base, train_plain_sft

    data, run = data_dir(recipe), run_dir(recipe)
    return {
        "untuned": read_evaluation(evaluate_base(recipe, data, run), "untuned", recipe),
        "plain_sft": read_run(train_plain_sft(recipe, data, run)),
    }


_FIT_COLOURS = {"yes": "green", "tight": "yellow", "no": "red"}


def estimate(recipe: Recipe, rows: int | None) -> None:
    """Print memory, speed and time of a recipe's training, on this machine and on usual cards, before it runs.

    Raises:
        DataError: The data set, or a file to be imported, cannot be read.
        ModelError: The model's size is not known.
    """
    from rich.table import Table

    from ppe_lora.errors import ModelError
    from ppe_lora.student.estimate import CARDS, estimate, expected_data, this_machine
    from ppe_lora.student.machine import GB, model_size, why_unknown

    size = model_size(recipe.student)
    if size is None:
        raise ModelError(f"{recipe.student.model}: {why_unknown(recipe.student.model)}")
    data = expected_data(recipe, data_dir(recipe))
    if rows is not None:
        data = data._replace(train_rows=rows, valid_rows=round(rows * data.valid_rows / max(1, data.train_rows)))
    table = Table(
        "card", "memory", "fits", "rows/s", "training", "evaluation", title=f"{recipe.name}: {data.train_rows:,} rows"
    )
    for card in (this_machine(recipe.train.matmul), *CARDS):
        told = estimate(recipe, size, card, train_rows=data.train_rows, valid_rows=data.valid_rows, tokens=data.tokens)
        table.add_row(
            card.name,
            f"{told.need.total / GB:.1f} of {card.memory / GB:.0f} GB",
            _coloured(told.fits),
            f"{told.rows_per_s:,.{2 if told.rows_per_s < 10 else 0}f}",
            duration(told.training_s),
            duration(told.evaluation_s),
        )
    console.print(table)
    tokens = data.tokens
    console.print(
        f"{data.known_from}: {tokens.instruction:.0f} of the instruction, {tokens.request:.0f} of a request, "
        f"{tokens.answer:.0f} of an answer, {tokens.slots:.0f} to read its scores",
    )
    console.print(
        "estimates from counts, not measurements; the formulas are in ppe_lora/student/estimate.py. A small model "
        "cannot fill a GPU: there its speed is an upper bound. The CPU's is what it reaches with nothing beside"
    )


def _coloured(fit: str) -> Text:
    return Text(fit, _FIT_COLOURS[fit])


def doctor(recipes: Path) -> None:
    """Print what this machine can do, and which recipes of a folder fit it; a broken one does not hide the others."""
    from rich.table import Table

    from ppe_lora.errors import RecipeError
    from ppe_lora.recipe import load_recipe
    from ppe_lora.student.estimate import fit_here
    from ppe_lora.student.machine import describe_machine

    machine = Table("what", "found", "remark")
    for fact in describe_machine():
        machine.add_row(*map(str, fact))
    console.print(machine)
    paths = sorted(recipes.rglob("*.yaml"))
    if not paths:
        console.print(f"no {recipes}/ here")
        return
    shipped = Table("recipe", "fits", "why")
    for path in paths:
        try:
            fit, why = fit_here(load_recipe(path))
        except RecipeError as error:
            shipped.add_row(str(path), "-", str(error))
        else:
            shipped.add_row(str(path), "-" if fit is None else _coloured(fit), why)
    console.print(shipped)


def prove(recipe: Recipe, export: str, url: str | None, model: str | None) -> None:
    """Hold a served export against its certificate, and print the verdict (see `ppe_lora.export.served`).

    Raises:
        RunError: There is no such export, or `url` is missing, has no place or is no address.
        EngineError: The engine cannot be reached, or does not answer as asked.
    """
    from ppe_lora.export.proof import prove_export

    with alone_in(run_dir(recipe)):
        console.print(prove_export(recipe, run_dir(recipe), export, url, model))


def push(folder: Path, repository: str, *, private: bool) -> None:
    """Upload an export folder to the Hugging Face Hub (see `ppe_lora.export.hub.push_folder`)."""
    from ppe_lora.export.hub import push_folder

    is_runs = (folder.parent / "config.yaml").is_file()
    with alone_in(folder.parent) if is_runs else nullcontext():  # no export meanwhile
        console.print(f"{folder} is at {push_folder(folder, repository, private=private)}")
