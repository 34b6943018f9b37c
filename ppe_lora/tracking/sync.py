"""`ppe-lora track sync`: send what is missing, wait for it, and say what could not be sent."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

from ppe_lora.errors import RunError
from ppe_lora.recipe import Recipe
from ppe_lora.tracking.follower import TITLES, Place, launch, trackers


def sync(recipe: Recipe, data_dir: Path, run_dir: Path) -> Iterator[str]:
    """Send a run to every tracker of its recipe. Sending again sends nothing twice.

    Yields:
        A line about each tracker that has everything now.

    Raises:
        RunError: The recipe tracks nothing, or something could not be sent: the message says what and why.
    """
    names = trackers(recipe.track)
    if not names:
        raise RunError(
            f"{run_dir}: tracks nothing; name a project, for example `ppe-lora track sync {run_dir} "
            "'track.wandb={project: ppe}'`"
        )
    problems = []
    for name in names:
        place = Place(run_dir, name)
        process = launch(place, data_dir, recipe.track.model_copy(update={"mode": "online"}))
        _wait(process)
        if process.returncode == 0:
            yield f"{TITLES[name]}: has everything of {run_dir}"
        else:
            told = place.problem.read_text(encoding="utf-8").strip() if place.problem.is_file() else "it failed"
            problems.append(f"{TITLES[name]}: {told} (its log is {place.log}). Nothing is lost; sync again")
    if problems:
        raise RunError("\n".join(problems))


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a follower of a run that has ended; it limits its own time."""
    process.communicate()
