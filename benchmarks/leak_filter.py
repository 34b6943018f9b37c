"""How well the leak filter does on the labelled lists: recall and precision of each kind of leak, and of either.

    python benchmarks/leak_filter.py [--list open|first|second|third|fourth] [--out DIR] [--show]

The lists were written by authors who had not seen the filter. It was tuned on `open`. The others were sealed, one after
the other: each was scored once and then learned from, but for `fourth` (LOG.md has those scores). Texts marked as
debatable are left out. The last printed line is one JSON object of headline figures.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ppe_lora.corpus.leaks import find_key, find_number
from ppe_lora.tasks.scores import ScoresTask

LISTS = Path(__file__).parents[1] / "tests" / "data"


def rates(rows: list[tuple[bool, bool]]) -> dict[str, float]:
    """Recall and precision of (labelled, found) pairs."""
    hits = sum(labelled and found for labelled, found in rows)
    return {
        "texts": len(rows),
        "leaks": sum(labelled for labelled, _ in rows),
        "recall": round(hits / sum(labelled for labelled, _ in rows), 4),
        "precision": round(hits / sum(found for _, found in rows), 4),
    }


def main() -> None:
    """Score a list; print the rates, and with `--show` every text that is judged otherwise than labelled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", default="open", choices=["open", "first", "second", "third", "fourth"])
    parser.add_argument("--show", action="store_true", help="print the errors")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    name = f"leaks_{asked.list}"
    lines = (LISTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    texts: list[dict[str, Any]] = [one for one in map(json.loads, lines) if not one.get("debatable")]
    task = ScoresTask()
    kinds: dict[str, list[tuple[bool, bool]]] = {"numeric": [], "key": [], "either": []}
    for one in texts:
        number, key = find_number(one["text"]), find_key(one["text"], task)
        kinds["numeric"].append((one["numeric"], number is not None))
        kinds["key"].append((one["key"], key is not None))
        kinds["either"].append((one["numeric"] or one["key"], bool(number or key)))
        if asked.show and (one["numeric"], one["key"]) != (number is not None, key is not None):
            print(f"{one['text']} | numeric {one['numeric']}: {number} | key {one['key']}: {key} | {one['why']}")
    headline = {"list": name, **{kind: rates(rows) for kind, rows in kinds.items()}}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{name}.json").write_text(json.dumps(headline, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
