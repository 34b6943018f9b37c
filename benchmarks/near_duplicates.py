"""All filters over 200,000 requests, and the search for near-duplicates alone: seconds, memory, recall.

    python benchmarks/near_duplicates.py [--quick] [--out DIR]

The requests are put together from clauses like those of the scripted teacher, half of them Japanese. One in ten is an
edited copy of an earlier one, and one in a hundred belongs to a single large cluster, as from a teacher that repeats
itself. Both searches of a data build are timed in a fresh process each: `near_duplicate` (0.8, what the filter
drops) and `group` (0.6, what the split keeps together). Recall is the share of pairs found of those a comparison of
everything with everything finds, among fewer requests, most of them copies; of texts from a few templates, whose
searches are bounded, of those that an unbounded search finds. Then all filters of a data build go over
the same requests, in one more process. Raw figures go to DIR/near_duplicates.json; the last printed line is one JSON
object of headline figures. Seconds are by the clock; `cpu_seconds` are the process's own, on a busy machine less.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ppe_lora.corpus import similarity
from ppe_lora.corpus.filters import filter_rows
from ppe_lora.corpus.rows import Row
from ppe_lora.corpus.similarity import alike_pairs, grams, jaccard, normalized
from ppe_lora.recipe.schema import Filters
from ppe_lora.tasks.scores import ScoresTask

THRESHOLDS = {"near_duplicate": 0.8, "group": 0.6}
SYLLABLES = [
    "ka",
    "mi",
    "ro",
    "ten",
    "sha",
    "lu",
    "pe",
    "win",
    "dor",
    "a",
    "gle",
    "son",
    "ri",
    "tal",
    "me",
    "qua",
    "ves",
]
KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん雨夜静音曲風朝街"


def make_requests(count: int, copied: float = 0.1, seed: int = 0) -> list[str]:
    """Requests of three to six clauses out of 2,000 per language; a share of edited copies, and one large cluster."""
    rng = np.random.default_rng(seed)
    english = [" ".join(_word(rng) for _ in range(rng.integers(2, 8))) for _ in range(2000)]
    japanese = ["".join(rng.choice(list(KANA), rng.integers(4, 16))) for _ in range(2000)]
    requests = ["the same tune as ever, " + ", ".join(english[:3])]
    while len(requests) < count:
        kind = rng.random()
        if kind < 0.01:
            requests.append(_edited(requests[0], rng))
        elif kind < 0.01 + copied:
            requests.append(_edited(requests[int(rng.integers(len(requests)))], rng))
        else:
            clauses, comma = (english, ", ") if rng.random() < 0.5 else (japanese, "、")
            requests.append(comma.join(clauses[i] for i in rng.integers(0, 2000, rng.integers(3, 7))))
    return requests


def make_templated(count: int, seed: int = 0) -> list[str]:
    """Requests from 20 templates of 15 words, three of them drawn from 60, and each with a number of its own: many are
    alike, and far more nearly so."""
    rng = np.random.default_rng(seed)
    words = [_word(rng) + _word(rng) for _ in range(60)]
    templates = [[words[at] if at in (2, 7, 12) else _word(rng) + _word(rng) for at in range(15)] for _ in range(20)]
    requests = []
    for number in range(count):
        own = list(templates[rng.integers(20)])
        for place in (2, 7, 12):
            own[place] = words[rng.integers(60)]
        requests.append(" ".join([*own, str(number)]))
    return requests


def _word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(SYLLABLES, rng.integers(1, 4)))


def _edited(text: str, rng: np.random.Generator) -> str:
    """The text with one to four runs of three characters replaced."""
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(text)))
        text = text[:at] + "".join(rng.choice(list("abcdefghij"), 3)) + text[at + 3 :]
    return text


def measure(count: int, threshold: float) -> dict[str, float]:
    """Seconds, peak memory and pairs of one search, without the making of the texts."""
    texts = make_requests(count)
    started, used = time.perf_counter(), time.process_time()
    pairs = sum(1 for _ in alike_pairs(texts, threshold))
    return {**_spent(started, used), "pairs": pairs}


def measure_filters(count: int) -> dict[str, Any]:
    """Seconds and peak memory of all filters of a data build, and what they reject, without the making of the texts."""
    rows = [
        Row.model_construct(id=str(number), request=text, target={}, language="en" if text.isascii() else "ja")
        for number, text in enumerate(make_requests(count))
    ]
    started, used = time.perf_counter(), time.process_time()
    filtered = filter_rows(rows, ScoresTask(), Filters())
    return {**_spent(started, used), "kept": len(filtered.kept), "rejected": filtered.counts()}


def _spent(started: float, used: float) -> dict[str, float]:
    """Seconds by the clock and of the processor since these times, and the process's peak memory."""
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - used, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
    }


def recall(count: int, threshold: float) -> dict[str, float]:
    """Found and true pairs among `count` requests, by comparing each with each; repeated texts are left out."""
    texts = list(dict.fromkeys(map(normalized, make_requests(count, copied=0.8, seed=1))))
    sets = [grams(text) for text in texts]
    true = {(i, j) for i, j in combinations(range(len(texts)), 2) if jaccard(sets[i], sets[j]) >= threshold}
    found = {(i, j) for i, j, _ in alike_pairs(texts, threshold)}
    return {"true_pairs": len(true), "found": len(found & true), "false": len(found - true)}


def recall_templated(count: int, threshold: float) -> dict[str, float]:
    """Pairs among texts from templates, and those of them that the bounded search finds."""
    texts = make_templated(count)
    found = set(alike_pairs(texts, threshold))
    similarity._MATES = count
    whole = set(alike_pairs(texts, threshold))
    return {"templated_pairs": len(whole), "templated_found": len(found & whole)}


def main() -> None:
    """Measure and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 requests instead of 200,000")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    count, compared = (20_000, 1_000) if asked.quick else (200_000, 4_000)
    raw: dict[str, Any] = {}
    for name, threshold in THRESHOLDS.items():
        with multiprocessing.get_context("spawn").Pool(1) as fresh:  # so that the peak is that of one search
            raw[name] = fresh.apply(measure, (count, threshold))
            raw[name] |= fresh.apply(recall_templated, (10_000, threshold))
        raw[name] |= recall(compared, threshold)
        print(f"{name} ({threshold}): {raw[name]}", flush=True)
    searches = raw.copy()
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        raw["filters"] = fresh.apply(measure_filters, (count,))
    print(f"all filters: {raw['filters']}", flush=True)
    headline = {
        "requests": count,
        "cpu": f"{platform.machine()}, {multiprocessing.cpu_count()} cores",
        "seconds_both": round(sum(one["seconds"] for one in searches.values()), 2),
        "seconds_all_filters": raw["filters"]["seconds"],
        "cpu_seconds_all_filters": raw["filters"]["cpu_seconds"],
        "peak_gb": max(one["peak_gb"] for one in raw.values()),
        "recall": {name: round(one["found"] / one["true_pairs"], 5) for name, one in searches.items()},
        "recall_templated": {
            name: round(one["templated_found"] / one["templated_pairs"], 5) for name, one in searches.items()
        },
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "near_duplicates.json").write_text(json.dumps({"headline": headline, "raw": raw}, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
