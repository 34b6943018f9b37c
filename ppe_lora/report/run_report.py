"""The report stage of a run: read its files, judge them, write `report.html` and `summary.md`."""

from pathlib import Path

from ppe_lora.recipe import Recipe
from ppe_lora.report.checklist import checklist
from ppe_lora.report.run_analysis import analyse
from ppe_lora.report.run_findings import find_in_run
from ppe_lora.report.run_folder import read_run_folder
from ppe_lora.report.run_page import FILE_NAME, write_run_page
from ppe_lora.report.summary import FILE_NAME as SUMMARY
from ppe_lora.report.summary import headline, write_summary


def write_report(recipe: Recipe, data_dir: Path, run_dir: Path) -> str:
    """Write both files of a run whose test rows were decoded. Equal files make equal reports.

    Returns:
        The verdict, the checklist in short, and where the files are: for the console.

    Raises:
        RunError: A stage before this one is not finished, or is of another recipe or of other test rows.
        DataError: The data set is missing or broken.
        MetricError: Fewer than two test rows.
    """
    analysis = analyse(read_run_folder(recipe, data_dir, run_dir))
    findings, checks = find_in_run(analysis), checklist(analysis)
    write_run_page(analysis, findings, checks)
    write_summary(analysis, findings, checks)
    short = "; ".join(f"{check.name.en}: {check.status}" for check in checks if check.status != "passed")
    passed = sum(check.status == "passed" for check in checks)
    left = f" ({short})" if short else ""
    return (
        f"{headline(analysis)}\nrelease checklist: {passed} of {len(checks)} passed{left}\n"
        f"{run_dir / SUMMARY}\n{run_dir / FILE_NAME}"
    )
