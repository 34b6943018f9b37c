"""Where runs are, how the command line names them, and whether they are still what was trained and measured."""

from pathlib import Path

from ppe_lora.artifacts import check_files, read_json
from ppe_lora.errors import RunError

RUNS = Path("checkpoints")
A_RUN = f"a run (its folder, or its name in {RUNS}/)"


def find_run(name: str) -> Path | None:
    """The run that a name on the command line means: its folder, or its name in `RUNS`; None for neither."""
    return next((path for path in (Path(name), RUNS / name) if (path / "config.yaml").is_file()), None)


def no_run(name: str, expected: str, got: str) -> RunError:
    """What to raise for a name that means nothing: it tells the runs that are there."""
    finished = sorted(path.parent.name for path in RUNS.glob("*/manifest.json"))
    return RunError(f"{name}: expected {expected}; got {got}; finished runs: {', '.join(finished) or 'none'}")


def epoch_folders(run_dir: Path) -> list[Path]:
    """The folders of the epochs evaluated so far, in order."""
    return sorted(path for path in (run_dir / "epochs").glob("[0-9][0-9][0-9]") if path.is_dir())


def check_training(run_dir: Path) -> None:
    """Raise unless the files of a training are as it wrote them: recipe, log, epochs, selected adapter. Of one that has
    not ended, only the epochs are looked at.

    Raises:
        FileError: Some are missing, or somebody has changed them.
    """
    remedy = "put them back, or train again with --fresh"
    for folder in (run_dir, *epoch_folders(run_dir)):
        check_files(folder, remedy)


def check_measured(run_dir: Path) -> None:
    """Raise unless a run's corrections, its head and its test rows' predictions are those of one whole evaluation. A
    run that was never evaluated has none of them, and passes.

    Raises:
        RunError: The training or the evaluation has not ended, or the test rows were decoded by an earlier training.
        FileError: Somebody has changed them.
    """
    training, test = run_dir / "manifest.json", run_dir / "test" / "manifest.json"
    if not training.is_file():
        raise RunError(f"{run_dir}: unfinished run: the training has not ended; `ppe-lora train RECIPE --resume`")
    if not test.is_file():
        loose = [name for name in ("calibration.json", "head.npz") if (run_dir / name).is_file()]
        if loose:
            raise RunError(
                f"{run_dir}: expected {' and '.join(loose)} of a finished evaluation; got one that has not ended; "
                "`ppe-lora evaluate RECIPE`"
            )
        return
    if read_json(test)["inputs"]["training"] != read_json(training)["inputs_hash"]:
        raise RunError(f"{run_dir}: the test rows were decoded by an earlier training; `ppe-lora evaluate RECIPE`")
    check_files(test.parent, "`ppe-lora evaluate RECIPE`")
