"""Which test rows a run is measured on: noted at the first use, and the same ever after."""

from pathlib import Path

from ppe_lora.artifacts import hash_file, read_json, write_json
from ppe_lora.errors import RunError

NOTE = "test_rows.json"
TEST_FORMAT = 6
"""Raised when equal inputs would make other files in `test/`: an evaluation of before is then done again."""


def note_test_rows(run_dir: Path, test_path: Path, rows: int) -> None:
    """Note the test file's SHA-256 (16 digits), path and rows in the run folder, unless it has a note already."""
    if not (run_dir / NOTE).is_file():
        write_json(run_dir / NOTE, {"file": str(test_path), "sha256": hash_file(test_path), "rows": rows})


def check_test_rows(run_dir: Path, test_path: Path) -> None:
    """Refuse other test rows than those of the run's first evaluation.

    Raises:
        RunError: The file has changed since.
    """
    if not (run_dir / NOTE).is_file():
        return
    noted, found = read_json(run_dir / NOTE)["sha256"], hash_file(test_path)
    if noted != found:
        raise RunError(
            f"{test_path}: expected the test rows that {run_dir} was first measured on (SHA-256 {noted}...); got "
            f"{found}...; figures of different test rows cannot be compared. Put that file back, train under another "
            f"name (name=...), or delete {run_dir / NOTE} and {run_dir / 'test'} to give up the old figures"
        )
