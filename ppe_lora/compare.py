"""`ppe-lora compare A B`: find what the two sides are, decode what has not been decoded yet, read both."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ppe_lora.artifacts import hash_adapter
from ppe_lora.errors import RunError
from ppe_lora.evaluation.comparison import Comparison, compare
from ppe_lora.evaluation.runs import A_RUN, RUNS, find_run, no_run
from ppe_lora.evaluation.stored import Stored, read_evaluation, read_run
from ppe_lora.recipe import Recipe, load_recipe

BASE = "base"


class _Side(NamedTuple):
    """What a name on the command line means."""

    name: str
    run_dir: Path | None
    """The run itself, or the run that an adapter belongs to; None for `base` and for adapters from elsewhere."""
    adapter: Path | None
    """An adapter's folder; None for a run, whose own adapter has been evaluated, and for `base`."""

    @property
    def is_run(self) -> bool:
        return self.run_dir is not None and self.adapter is None


class Compared(NamedTuple):
    """A comparison, and where its files go."""

    comparison: Comparison
    first: Stored
    second: Stored
    folder: Path


def compare_sides(names: tuple[str, str], data_dir_of: Callable[[Recipe], Path]) -> Compared:
    """Compare two runs, a run and its base model (`base`), or adapters, on the same test rows.

    The base model and adapters are decoded on the test rows of the run they are compared with, once: the evaluation
    stays in that run's folder.

    Args:
        names: Two of: a run's folder or its name in `RUNS`; an adapter's folder, or an epoch's; `base`.
        data_dir_of: Where a recipe's rows are.

    Raises:
        RunError: A name means nothing, a run is unfinished, or the two cannot be compared.
        ModelError: An adapter does not fit the run's base model.
    """
    sides, home = [_find(name) for name in names], home_of(names)
    for run_dir in [side.run_dir for side in sides if side.run_dir]:
        read_run(run_dir)  # an unfinished run is named before a model is loaded for the other side
    first, second = (_read(side, home, data_dir_of) for side in sides)
    other = second if sides[0].is_run or sides[0].run_dir == home else first
    return Compared(compare(first, second), first, second, home / "compare" / re.sub(r"[^\w.-]+", "_", other.name))


def home_of(names: tuple[str, str]) -> Path:
    """The run in whose folder a comparison and its evaluations are kept.

    Raises:
        RunError: A name means nothing, or neither side belongs to a run.
    """
    sides = [_find(name) for name in names]
    homes = [side.run_dir for side in sides if side.is_run] + [side.run_dir for side in sides if side.run_dir]
    home = next((one for one in homes if one is not None), None)
    if home is None:
        raise RunError(f"{' and '.join(names)}: expected a run, or an adapter of a run, on one side at least; got none")
    return home


def _find(name: str) -> _Side:
    if name == BASE:
        return _Side(BASE, None, None)
    if run := find_run(name):
        return _Side(run.name, run, None)
    for path in (Path(name), RUNS / name):
        for adapter in (path, path / "adapter"):
            if (adapter / "adapter_config.json").is_file() and (adapter / "adapter_model.safetensors").is_file():
                run_dir = next((parent for parent in path.parents if (parent / "config.yaml").is_file()), None)
                shown = path.relative_to(run_dir.parent) if run_dir else path
                return _Side(str(shown), run_dir, adapter)
    raise no_run(name, f"{A_RUN}, the folder of an adapter, or `{BASE}`", "none of these")


def _read(side: _Side, home: Path, data_dir_of: Callable[[Recipe], Path]) -> Stored:
    if side.is_run and side.run_dir is not None:
        return read_run(side.run_dir)
    from ppe_lora.student.others import evaluate_base, evaluate_other  # torch

    run_dir = side.run_dir or home
    recipe = load_recipe(run_dir / "config.yaml")
    if side.adapter is None:
        folder = evaluate_base(recipe, data_dir_of(recipe), run_dir)
    else:
        folder = run_dir / "test_adapters" / hash_adapter(side.adapter)
        evaluate_other(recipe, data_dir_of(recipe), run_dir, side.adapter, folder)
    return read_evaluation(folder, side.name, recipe)
