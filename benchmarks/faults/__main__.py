"""The fault matrix: accidents, races and attacks, and what the product does about each.

    python benchmarks/faults [SECTION ...] [--quick] [--out DIR]

Each section is a module beside this file with a function `cases(quick, scratch)`. Prints one table a section. Raw
results go to DIR/faults.json; the last printed line is one JSON object: cases and passed cases by section. Exits with
status 1 when a case failed.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path

from case import Case

NOT_SECTIONS = {"__main__", "case"}


def sections() -> list[str]:
    """The names of all sections, in order of the alphabet."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_SECTIONS)


def main() -> None:
    """Run the sections named on the command line, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", nargs="*", choices=[[], *sections()], help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; ten minutes on two cores")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    results: dict[str, list[Case]] = {}
    for name in arguments.section or sections():
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"faults-{name}-") as scratch:
            results[name] = importlib.import_module(name).cases(arguments.quick, Path(scratch))
        print(f"\n{name}: {time.monotonic() - started:.0f} s")
        for case in results[name]:
            print(f"  {'ok  ' if case.passed else 'FAIL'} {case.name}: {case.observed} (expected: {case.expected})")
    arguments.out.mkdir(parents=True, exist_ok=True)
    raw = {name: [case._asdict() for case in cases] for name, cases in results.items()}
    (arguments.out / "faults.json").write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
    counts = {name: f"{sum(case.passed for case in cases)}/{len(cases)}" for name, cases in results.items()}
    print(json.dumps(counts))
    sys.exit(0 if all(case.passed for cases in results.values() for case in cases) else 1)


if __name__ == "__main__":
    main()
