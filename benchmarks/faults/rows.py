"""Rows that no training can use: all of them named at once, before weights are loaded; or left out where asked."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from case import Case, last_line, ppe, words_only

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the rows are made as the tests make them

TRAIN = "train: {epochs: 1, rows_per_step: 8, rows_per_micro_step: 8}"
EVALUATE = "evaluate: {gate: 0.0, latency_rows: 1}"


def cases(quick: bool, scratch: Path) -> list[Case]:
    """Each fault in a data set of its own, by `ppe-lora train`."""
    from tests.tiny import tiny_llama

    model = tiny_llama(scratch / "model")
    special: dict[str, Change] = {"train": _special, "valid": _special, "test": _special}
    long: dict[str, Change] = {"test": lambda at, text: text + "x" * 600}
    found = [
        _refused("a special token in every row", scratch / "a", model, special, "38 rows", 38),
        _refused("every test row too long", scratch / "b", model, long, "every row is longer", 1),
        _refused("one training row", scratch / "c", model, {"train": _first}, "at least 2 rows to train on", 1),
        _refused("one test row", scratch / "d", model, {"test": _first}, "at least 2 rows to judge a run by", 1),
    ]
    folder = _prepared(scratch / "e", model, {"train": lambda at, text: "<|im_end|>" if at < 9 else text})
    done = ppe("train", "run.yaml", "student.on_bad_row=skip", cwd=folder)
    trained = (folder / "checkpoints" / "run" / "epochs" / "001" / "adapter").is_dir()
    passed = trained and "train: 9 of 24 rows cannot be encoded and are left out" in done.stdout
    # The random model answers nothing, so no epoch can be selected: the status is 2 all the same.
    return [*found, Case("bad rows skipped", "counted, and the others trained on", last_line(done), passed)]


Change = Callable[[int, str], str | None]
"""The new text of a row by its place and text; None deletes the row."""


def _special(at: int, text: str) -> str | None:
    return f"{text}<|im_end|>"


def _first(at: int, text: str) -> str | None:
    return text if at == 0 else None


def _prepared(folder: Path, model: Path, changes: dict[str, Change]) -> Path:
    from tests.runs import make_data, make_recipe

    make_data(folder / "data" / "d")
    for split, change in changes.items():
        path = folder / "data" / "d" / f"ft_request_param_{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        changed = [row | {"request": change(at, row["request"])} for at, row in enumerate(rows)]
        kept = [json.dumps(row) + "\n" for row in changed if row["request"] is not None]
        path.write_text("".join(kept), encoding="utf-8")
    make_recipe(folder, model, TRAIN, EVALUATE)
    return folder


def _refused(name: str, folder: Path, model: Path, changes: dict[str, Change], words: str, lines: int) -> Case:
    """A start that must end with status 2, in words, without a run folder."""
    done = ppe("train", "run.yaml", cwd=_prepared(folder, model, changes))
    named = sum("data/d/ft_request_param" in line or words in line for line in done.stderr.splitlines())
    whole = words in done.stderr or named >= lines
    passed = words_only(done) and whole and named >= lines and not (folder / "checkpoints" / "run").exists()
    return Case(name, "refused before the start, every row named", f"{named} lines; {last_line(done)}", passed)
