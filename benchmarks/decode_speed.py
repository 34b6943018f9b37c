"""Decoding: the drafted decoder against `generate`, one request at a time and a whole validation set.

    python benchmarks/decode_speed.py [--quick] [--out DIR] [--model tiny|smollm2-135m|mistral-7b]

The model is first taught the answer's format on the scripted teacher's requests, for a few steps: an untrained one
never writes JSON, and a drafted decoder would have nothing to accept. Rounds are interleaved, medians are reported, raw
samples go to DIR, and the last printed line is one JSON object of headline figures. Ours gives the exact distribution
of every score with each answer; `generate` gives text only. `tiny` is a random Mistral of 384 x 8 layers, `mistral-7b`
one of that size, for a GPU. `generate_batch` is transformers' continuous batching; a static cache, whose passes
`generate` compiles, is tried on GPUs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from models import MODELS, device_name, load_model, model_folder
from transformers import GenerationConfig

from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.rows import Row, row_id
from ppe_lora.corpus.teachers.scripted import ScriptedTeacher
from ppe_lora.recipe.schema import GenerateSource
from ppe_lora.student.collate import PackedCollator, completion_nll
from ppe_lora.student.decode import Decoder, answer_token_limit, generate
from ppe_lora.student.encode import EncodedRow, encode_rows
from ppe_lora.student.load import StudentModel
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer
from ppe_lora.student.trie import ScoreTrie, build_trie
from ppe_lora.tasks.scores import ScoresTask

TASK = ScoresTask()
TAUGHT_ROWS = 8
TAUGHT_STEPS = {"tiny": (120, 1e-3), "smollm2-135m": (40, 1e-4), "mistral-7b": (120, 1e-4)}
"""Steps until the answers are JSON, and their learning rate."""
ROUNDS = {True: (2, 5, 64), False: (3, 10, 192)}
"""Rounds, requests one at a time, and rows of the validation set: of a quick run, and of a whole one."""
GENERATE_BATCHES = (8, 16, 32, 64)
OUR_BATCH = 32
OUR_WHOLE = f"ours free, batch {OUR_BATCH}"
REQUEST_ONLY = "ours forced, scores from the request only"
"""With `train.objective.slots: request` an answer takes one pass."""


def load(kind: str, folder: Path) -> tuple[StudentModel, StudentTokenizer]:
    """A base model with its tokenizer, in the type and on the device it would be served with."""
    return load_model(kind, folder), load_tokenizer(model_folder(kind, folder))


def make_requests(count: int) -> list[Row]:
    """English requests of the scripted teacher."""
    source = GenerateSource(rows=count, languages={"en": 1.0})
    asks = [ask for ask, _ in make_asks(TASK, source, seed=0)]
    texts = [phrased.text for phrased in ScriptedTeacher(TASK, noise=5.0, seed=0).phrase(asks)]
    return [
        Row(id=row_id(text, dict(ask.target), "en", None), request=text, target=dict(ask.target), language="en")
        for ask, text in zip(asks, texts, strict=True)
    ]


def make_rows(count: int, tokenizer: StudentTokenizer) -> list[EncodedRow]:
    """The same as tokens."""
    return list(encode_rows(make_requests(count), TASK, tokenizer, 512).encoded)


def teach_format(model: StudentModel, rows: list[EncodedRow], steps: int, learning_rate: float) -> None:
    """Full fine-tuning until answers are JSON; how good they are does not matter here."""
    collate = PackedCollator()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(steps):
        some = [rows[(step * TAUGHT_ROWS + at) % len(rows)]._asdict() for at in range(TAUGHT_ROWS)]
        batch = {name: tensor.to(model.device) for name, tensor in collate(some).items()}
        nll, tokens = completion_nll(model, batch)
        (nll / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a piece of work, the device's included, and its result."""
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


class Peers(NamedTuple):
    """The ways to answer that are compared."""

    singly: dict[str, Callable[[EncodedRow], Any]]
    """One request at a time."""
    whole: dict[str, Callable[[], list[list[int]]]]
    """The whole validation set: tokens of each answer, in its order."""


def make_peers(model: StudentModel, tokenizer: StudentTokenizer, trie: ScoreTrie, valid: list[EncodedRow]) -> Peers:
    """`generate` and ours, one at a time and in batches."""
    limit = answer_token_limit(TASK, tokenizer)
    decoder = Decoder(model, tokenizer, trie, limit)
    from_request = Decoder(model, tokenizer, build_trie(TASK, tokenizer, "request"), limit)
    held: Any = model

    def plain(some: list[EncodedRow], batch: int) -> list[list[int]]:
        by_length = sorted(some, key=lambda row: len(row.prompt_ids))
        found: dict[str, list[int]] = {}
        for start in range(0, len(some), batch):
            part = by_length[start : start + batch]
            texts = generate(model, [row.prompt_ids for row in part], tokenizer, limit)
            found.update(zip([row.id for row in part], texts, strict=True))
        return [found[row.id] for row in some]

    def static(row: EncodedRow) -> list[list[int]]:
        held.generation_config.cache_implementation = "static"
        try:
            return plain([row], 1)
        finally:
            held.generation_config.cache_implementation = None

    def continuous() -> list[list[int]]:
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=limit, eos_token_id=list(tokenizer.end_ids), pad_token_id=tokenizer.pad_id
        )
        used = held.config._attn_implementation
        held.set_attn_implementation("sdpa")
        found = held.generate_batch([list(row.prompt_ids) for row in valid], generation_config=settings)
        held.set_attn_implementation(used)
        return [list(answer.generated_tokens) for answer in found.values()]

    def ours(some: list[EncodedRow], batch: int, forced: bool = False, by: Decoder = decoder) -> list[list[int]]:
        return [one.ids for one in by.decode(some, batch_rows=batch, forced=forced)]

    singly: dict[str, Callable[[EncodedRow], Any]] = {
        "generate, batch 1": lambda row: plain([row], 1),
        "ours free, batch 1": lambda row: ours([row], 1),
        "ours forced, batch 1": lambda row: ours([row], 1, forced=True),
        f"{REQUEST_ONLY}, batch 1": lambda row: ours([row], 1, forced=True, by=from_request),
    }
    if torch.cuda.is_available():
        singly["generate, static cache, batch 1"] = static
    whole: dict[str, Callable[[], list[list[int]]]] = {
        "generate_batch": continuous,
        **{f"generate, batch {size}": (lambda size=size: plain(valid, size)) for size in GENERATE_BATCHES},
        OUR_WHOLE: lambda: ours(valid, OUR_BATCH),
        f"ours forced, batch {OUR_BATCH}": lambda: ours(valid, OUR_BATCH, forced=True),
        f"{REQUEST_ONLY}, batch {OUR_BATCH}": lambda: ours(valid, OUR_BATCH, forced=True, by=from_request),
    }
    return Peers(singly, whole)


@torch.no_grad()
def measure(
    peers: Peers, valid: list[EncodedRow], rounds: int, singles: int
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Seconds of every peer, of a row or of the whole set, in interleaved rounds; and the answers to the whole set."""
    for one in peers.singly.values():  # warms up
        one(valid[0])
    samples: dict[str, list[float]] = {name: [] for name in [*peers.singly, *peers.whole]}
    texts: dict[str, list[list[int]]] = {}
    for number in range(rounds):
        for name, work in peers.singly.items():
            samples[name] += [timed(lambda row=row, work=work: work(row))[0] for row in valid[:singles]]
        for name, run in peers.whole.items():
            seconds, texts[name] = timed(run)
            samples[name].append(seconds)
            print(f"round {number + 1}: {name}: {len(valid) / seconds:.2f} rows/s", flush=True)
    return samples, texts


def main() -> None:
    """Measure, print a table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model, fewer rows, two rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--model", default="tiny", choices=MODELS)
    asked = parser.parse_args()
    rounds, singles, rows_count = ROUNDS[asked.quick]
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = load(asked.model, Path(folder))
    rows = make_rows(rows_count + 200, tokenizer)
    valid = [row._replace(completion_ids=[]) for row in rows[:rows_count]]
    teach_format(model, rows[rows_count:], *TAUGHT_STEPS[asked.model])
    trie = build_trie(TASK, tokenizer)
    peers = make_peers(model, tokenizer, trie, valid)
    samples, texts = measure(peers, valid, rounds, singles)
    median = {name: statistics.median(values) for name, values in samples.items()}
    best = min((name for name in peers.whole if name.startswith("generate")), key=lambda name: median[name])
    best_single = min((name for name in peers.singly if name.startswith("generate")), key=lambda name: median[name])
    headline = {
        "model": asked.model,
        "device": device_name(),
        "batch1_vs_generate": round(median[best_single] / median["ours forced, batch 1"], 3),
        "batch1_free_vs_generate": round(median[best_single] / median["ours free, batch 1"], 3),
        "batch1_request_only_vs_forced": round(median["ours forced, batch 1"] / median[f"{REQUEST_ONLY}, batch 1"], 3),
        "whole_request_only_vs_forced": round(
            median[f"ours forced, batch {OUR_BATCH}"] / median[f"{REQUEST_ONLY}, batch {OUR_BATCH}"], 3
        ),
        "batch1_p50_ms": round(1000 * median["ours forced, batch 1"], 1),
        "batch1_p95_ms": round(1000 * float(np.quantile(samples["ours forced, batch 1"], 0.95)), 1),
        "validation_vs_generate_best": round(median[best] / median[OUR_WHOLE], 3),
        "generate_best": best,
        "identical_rate": sum(map(list.__eq__, texts[OUR_WHOLE], texts[best])) / len(valid),
        "in_format_rate": sum(ids == trie.completion(_values(ids, tokenizer)) for ids in texts[OUR_WHOLE]) / len(valid),
    }
    print(f"\n| {asked.model} | seconds, p50 | p95 | a row, ms |\n| --- | --- | --- | --- |")
    for name, value in median.items():
        a_row = value * 1000 / (1 if name in peers.singly else len(valid))
        print(f"| {name} | {value:.3f} | {np.quantile(samples[name], 0.95):.3f} | {a_row:.0f} |")
    asked.out.mkdir(parents=True, exist_ok=True)
    raw = {"headline": headline, "seconds": samples, "rows": len(valid), "torch": torch.__version__}
    (asked.out / f"decode_speed_{asked.model}.json").write_text(json.dumps(raw, indent=2) + "\n")
    print(json.dumps(headline))


def _values(ids: list[int], tokenizer: StudentTokenizer) -> list[float]:
    answer = TASK.parse(tokenizer.decode(ids))
    return list(getattr(answer, "values", [float(TASK.low)] * len(TASK.keys)))


if __name__ == "__main__":
    main()
