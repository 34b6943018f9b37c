"""How well the filters of texts do on labelled lists: recall and precision of what is to be rejected.

    python benchmarks/text_filters.py [--list LIST] [--out DIR] [--show]

`leaks_*` judge the filter of numbers and key names, by kind of leak; `meta_*` the filters of answers that are no
request (empty, refused, talk about the request, wrapped), by language. The lists were written by authors who had not
seen the filter. It was tuned on `leaks_open`; every other list was sealed: scored once, and then learned from, but for
`leaks_fourth` (LOG.md has the first scores). Texts marked as debatable are left out. The last printed line is one JSON
object of headline figures.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from ppe_lora.corpus.filters import empty, meta_answer
from ppe_lora.corpus.leaks import find_key, find_number
from ppe_lora.corpus.rows import Row
from ppe_lora.tasks.scores import ScoresTask

LISTS = Path(__file__).parents[1] / "tests" / "data"


class Judged(NamedTuple):
    """A text under one heading: is it to be rejected, and what the filter found in it."""

    heading: str
    labelled: bool
    found: str | None


def judge_leak(one: dict[str, Any]) -> list[Judged]:
    """Numbers, key names, and either of them."""
    number, key = find_number(one["text"]), find_key(one["text"], ScoresTask())
    return [
        Judged("numeric", one["numeric"], number),
        Judged("key", one["key"], key),
        Judged("either", one["numeric"] or one["key"], number or key),
    ]


def judge_meta(one: dict[str, Any]) -> list[Judged]:
    """No request, in the text's language and in both; the first two rules of a data build decide."""
    row = Row.model_construct(id="", request=one["text"], target={}, language=one["language"])
    broken = empty(row) or meta_answer(row)
    found = broken.evidence if broken else None
    return [Judged(heading, one["rejected"], found) for heading in (one["language"], "both")]


JUDGES = {"leaks": judge_leak, "meta": judge_meta}


def rates(rows: list[Judged]) -> dict[str, float]:
    """Recall and precision of the texts under one heading."""
    hits = sum(row.labelled and row.found is not None for row in rows)
    labelled, found = sum(row.labelled for row in rows), sum(row.found is not None for row in rows)
    return {
        "texts": len(rows),
        "to_reject": labelled,
        "recall": round(hits / labelled, 4),
        "precision": round(hits / found, 4),
    }


def main() -> None:
    """Score a list; print the rates, and with `--show` every text that is judged otherwise than labelled."""
    names = sorted(path.stem for kind in JUDGES for path in LISTS.glob(f"{kind}_*.jsonl"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", default="leaks_open", choices=names)
    parser.add_argument("--show", action="store_true", help="print the errors")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    lines = (LISTS / f"{asked.list}.jsonl").read_text(encoding="utf-8").splitlines()
    judge = JUDGES[asked.list.split("_")[0]]
    headings: dict[str, list[Judged]] = {}
    for one in map(json.loads, lines):
        if one.get("debatable"):
            continue
        judged = judge(one)
        for row in judged:
            headings.setdefault(row.heading, []).append(row)
        wrong = [row for row in judged if row.labelled != (row.found is not None)]
        if asked.show and wrong:
            errors = "; ".join(f"{row.heading} {row.labelled}: {row.found!r}" for row in wrong)
            print(f"{one['text']!r} | {errors} | {one['why']}")
    headline = {"list": asked.list, **{heading: rates(rows) for heading, rows in sorted(headings.items())}}
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{asked.list}.json").write_text(json.dumps(headline, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
