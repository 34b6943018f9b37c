"""What a run folder holds from a training's start: its recipe, what it was made from, and what a resume believes."""

import shutil
from pathlib import Path
from typing import Any

from ppe_lora.artifacts import check_files, files_below, read_json, write_json, write_manifest, write_text
from ppe_lora.errors import RunError
from ppe_lora.evaluation.runs import epoch_folders
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.recipe.load import changed_values, differing_keys, dump_recipe, is_decisive
from ppe_lora.student.base import check_base, note_base
from ppe_lora.student.processes import processes

_BEGUN = ("train_log.csv", "state/checkpoint-*", "epochs/*", "manifest.json")
"""What a run folder holds from its first step on."""


def prepare_folder(recipe: Recipe, inputs: dict[str, Any], run_dir: Path, *, resume: bool, fresh: bool) -> None:
    """Make the folder of a training that begins, or find that it may go on there. Arguments as of `training.train`;
    `inputs` from `train_inputs`.

    Raises:
        RunError: The folder holds another run, or one that is not to be resumed.
        FileError: Somebody has changed what a resume reads.
    """
    config, started_from = run_dir / "config.yaml", run_dir / "state" / "inputs.json"
    if fresh and run_dir.exists():
        shutil.rmtree(run_dir)  # a folder that cannot be deleted is named: it would be found again below
    if config.is_file():
        differing = differing_keys(recipe, load_recipe(config))
        changed = [key for key in differing if is_decisive(key)]
        begun = read_json(started_from) if started_from.is_file() else inputs
        # Not config.yaml alone: it can have been changed together with the recipe.
        changed += [key for key in changed_values(begun["recipe"], inputs["recipe"]) if key not in changed]
        if begun["dataset_version"] != inputs["dataset_version"]:
            changed.append("its data set")
        if changed and not _has_begun(run_dir):
            shutil.rmtree(started_from.parent, ignore_errors=True)  # what was found out for the other recipe
        elif changed:
            raise RunError(
                f"{run_dir}: holds a run that differs in {', '.join(changed)}. Give this one another name "
                "(name=...), or start over with --fresh, which deletes that run."
            )
        elif (run_dir / "manifest.json").is_file():
            raise RunError(f"{run_dir}: its data set has changed since. Start over with --fresh, or use another name.")
        elif not resume:
            raise RunError(f"{run_dir}: holds an unfinished run. Continue with --resume, or start over with --fresh.")
        else:
            check_files(run_dir / "state", "put them back, or start over with --fresh")
    write_text(config, dump_recipe(recipe))
    write_json(started_from, inputs)


def _has_begun(run_dir: Path) -> bool:
    """Whether there is anything to lose."""
    return any(next(run_dir.glob(kept), None) for kept in _BEGUN)


def made_files(run_dir: Path) -> list[str]:
    """What the manifest of a training stands for. An epoch's manifest stands for its other files."""
    epochs = [f"epochs/{folder.name}/manifest.json" for folder in epoch_folders(run_dir)]
    return ["config.yaml", "train_log.csv", *(f"best/{name}" for name in files_below(run_dir / "best")), *epochs]


def base_of(base: Path, run_dir: Path) -> dict[str, Any]:
    """The files of the base model as they were when the run began, which they still are."""
    state, file = processes(), run_dir / "state" / "base.json"
    if state.is_main_process:
        if file.is_file():
            check_base(base, read_json(file), run_dir)
        else:
            write_json(file, note_base(base))
    state.wait_for_everyone()
    return dict(read_json(file))


def note_state(folder: Path) -> None:
    """Note what a resume believes beside the checkpoints."""
    names = [name for name in ("teaching_heads.npz", "rows_per_micro_step.json") if (folder / name).is_file()]
    write_manifest(folder, {}, files=names)
