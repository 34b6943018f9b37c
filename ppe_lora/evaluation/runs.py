"""Where runs are, and how the command line names them: by folder, or by name."""

from pathlib import Path

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
