"""What travels with exported weights so that the folder alone can be served: the task, and how answers are read."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ppe_lora.artifacts import hash_file, read_json, write_text
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.calibration import LEAST_ROWS
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import ReadOut
from ppe_lora.section import Count, Section
from ppe_lora.tasks.scores import ScoresTask

FILE_NAME = "ppe_lora.json"


class Contract(Section):
    """What a model was trained to be asked, and which read-out it was selected by."""

    format: Literal[1] = 1
    name: str
    """The run's name."""
    task: ScoresTask
    slots: Literal["answers", "request"]
    """What a score's distribution is conditioned on (recipe key `train.objective.slots`)."""
    read_out: ReadOut
    max_tokens: Count
    """Longest row in tokens that it was trained on, prompt and answer together."""


def contract_of(recipe: Recipe) -> Contract:
    """The contract of the model that a recipe makes."""
    return Contract(
        name=recipe.name,
        task=recipe.task,
        slots=recipe.train.objective.slots,
        read_out=recipe.evaluate.read_out,
        max_tokens=recipe.student.max_tokens,
    )


def uncorrected(contract: Contract, folder: Path) -> str | None:
    """Why a run or an export answers with the posterior mean where its recipe names `calibrated`, and what to do about
    it; None where it has its correction or wants none."""
    if contract.read_out != "calibrated" or (folder / "calibration.json").is_file():
        return None
    run_dir = folder if (folder / "config.yaml").is_file() else folder.parent
    again = "" if run_dir == folder else "; then export again"
    if (run_dir / "calibration.json").is_file():
        why = "exported before it was evaluated; `ppe-lora export RECIPE` takes the correction along"
    elif (run_dir / "test" / "manifest.json").is_file():
        why = f"it has fewer than the {LEAST_ROWS} validation rows that a correction is fitted on"
    else:
        why = f"it has not been evaluated; `ppe-lora evaluate RECIPE` fits the correction{again}"
    return f"{folder}: {contract.name} answers with the posterior mean, uncorrected: {why}"


def check_exported(run_dir: Path, merged: Path) -> None:
    """Raise where a run has been evaluated anew since its export, and would be served with its earlier correction.

    Raises:
        ModelError: It has; the files are named.
    """
    manifest = merged / "manifest.json"
    made_from = read_json(manifest)["inputs"] if manifest.is_file() else {}
    names = [name for name in ("calibration.json", "head.npz") if made_from.get(name) and (run_dir / name).is_file()]
    other = [name for name in names if hash_file(run_dir / name) != made_from[name]]
    if other:
        raise ModelError(
            f"{merged}: expected an export with the {' and '.join(other)} that {run_dir} was measured with; got an "
            "earlier one; `ppe-lora export RECIPE`"
        )


def write_contract(folder: Path, contract: Contract) -> None:
    """Write `ppe_lora.json` beside exported weights."""
    write_text(folder / FILE_NAME, contract.model_dump_json(indent=2) + "\n")


def read_contract(folder: Path) -> Contract:
    """Read `ppe_lora.json` of an exported folder.

    Raises:
        ModelError: The file is missing, or is none of ours.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ModelError(f"{path}: no such file; `ppe-lora export RECIPE` writes it beside the merged weights")
    try:
        return Contract.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{path}: expected the contract of an exported model; got: {first}; export again") from error
