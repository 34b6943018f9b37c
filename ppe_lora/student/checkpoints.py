"""Resumable training state on disk: written under another name, proven whole, then renamed.

A run folder's `state/` holds `checkpoint-<step>` folders. Each has a `complete.json` with the hash of every other
file, written last; a folder without it, or with a file that differs, is not a checkpoint.
"""

import csv
import io
import re
import shutil
from pathlib import Path

from ppe_lora.artifacts import commit_folder, files_below, hash_file, read_json, sync, write_json, write_text
from ppe_lora.errors import FileError, RunError
from ppe_lora.evaluation.runs import epoch_folders

STAGING = ".writing"
_COMPLETE = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def commit_checkpoint(state_dir: Path, step: int, keep: int) -> Path:
    """Turn the staged checkpoint of `step` into a real one and delete the oldest beyond `keep`."""
    staged = state_dir / STAGING / f"checkpoint-{step}"
    log = state_dir.parent / "train_log.csv"
    if log.is_file():  # a resume cuts it at this step: its lines must be as safe as the checkpoint
        sync(log)
    write_json(staged / _COMPLETE, {name: hash_file(staged / name) for name in files_below(staged)})
    final = state_dir / staged.name
    commit_folder(staged, final)
    for _, path in _folders(state_dir)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(state_dir / STAGING, ignore_errors=True)
    return final


def newest_checkpoint(state_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a word on everything that was skipped on the way to it."""
    skipped = []
    if (state_dir / STAGING).exists():
        skipped.append(f"{state_dir / STAGING}: a checkpoint was half written when the run stopped; skipped")
    for _, path in _folders(state_dir):
        damage = _damage(path)
        if damage is None:
            return path, skipped
        skipped.append(f"{path}: {damage}; skipped")
    return None, skipped


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint was written after."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise RunError(f"{checkpoint}: expected a folder named checkpoint-<step>")
    return int(match.group(1))


def cut_history(run_dir: Path, step: int) -> None:
    """Forget everything logged after `step`, so that a resumed run writes each step once."""
    log = run_dir / "train_log.csv"
    if log.is_file():
        with log.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
        kept = [line for line in lines if len(line) == len(header) and int(line[0]) <= step]
        cut = io.StringIO()
        csv.writer(cut).writerows([header, *kept])
        write_text(log, cut.getvalue())
    for folder in epoch_folders(run_dir):
        metrics = folder / "eval_metrics.json"
        if not metrics.is_file() or read_json(metrics)["step"] > step:
            shutil.rmtree(folder)


def _folders(state_dir: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in state_dir.glob("checkpoint-*")]
    return sorted(((int(match.group(1)), path) for match, path in found if match), reverse=True)


def _damage(checkpoint: Path) -> str | None:
    if not (checkpoint / _COMPLETE).is_file():
        return "it was never finished"
    try:
        files = read_json(checkpoint / _COMPLETE)
    except FileError:
        return f"{_COMPLETE} is damaged"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if hash_file(path) != expected:
            return f"{name} is damaged"
    return None
