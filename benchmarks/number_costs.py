"""What the numbers cost: training steps and evaluation passes with the scores' distributions, against text alone.

    python benchmarks/number_costs.py [--quick] [--out DIR] [--model tiny|smollm2-135m|mistral-7b]

A training step is the forward and backward pass of one pack of 8 rows, all with the same LoRA of rank 16: cross-entropy
alone, with the head's term, with RAFT and CRPS on the distributions of scores read behind the answers before them, with
all three as in `recipes/demo.yaml`, and with RAFT and CRPS of scores read from the request only. An evaluation pass is
the loss of the same pack without gradients, or the distributions of its 48 scores. Rounds are interleaved, medians are
reported, raw samples go to DIR/number_costs_MODEL.json, and the last printed line is one JSON object of headline
figures. `tiny` is a random Mistral of 384 x 8 layers.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from decode_speed import TASK, load, make_requests, timed
from models import MODELS, device_name

from ppe_lora.recipe.schema import Lora, Objective
from ppe_lora.student.collate import Batch, PackedCollator, read, summed_nll
from ppe_lora.student.evaluate import encode_split
from ppe_lora.student.head import FOLDS, TeachingHeads, layers_to_try
from ppe_lora.student.load import StudentModel, attach_lora
from ppe_lora.student.objective import slot_choices, training_loss
from ppe_lora.student.outputs import unembedding_of
from ppe_lora.student.posterior import leaf_log_probs
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import ScoreTrie, build_trie

ROWS = 8
TRAINING = {
    "text": Objective(),
    "text and head": Objective(head=1.0),
    "text, RAFT and CRPS": Objective(raft=1.0, crps=0.5),
    "text, RAFT, CRPS and head": Objective(raft=1.0, crps=1.0, head=1.0),
    "text, RAFT and CRPS, scores from the request only": Objective(raft=1.0, crps=0.5, slots="request"),
}
EVALUATION = {
    "loss": None,
    "distributions": "answers",
    "distributions, scores from the request only": "request",
}


def training_step(model: StudentModel, tokenizer: StudentTokenizer, objective: Objective) -> Callable[[], None]:
    """A forward and a backward pass of one pack."""
    trie = build_trie(TASK, tokenizer, objective.slots)
    batch = make_batch(model, tokenizer, trie, slots=objective.reads_numbers)
    unembedding = unembedding_of(model)
    spread_K = torch.full((len(TASK.keys),), 25.0)
    heads = random_heads(model) if objective.head else None

    def step() -> None:
        loss, tokens = training_loss(model, batch, objective, trie, spread_K, heads, unembedding)
        (loss / tokens).backward()
        model.zero_grad()

    return step


def evaluation_pass(model: StudentModel, tokenizer: StudentTokenizer, slots: Any) -> Callable[[], None]:
    """The loss of one pack, or with `slots` the distributions of its scores."""
    trie = build_trie(TASK, tokenizer, slots or "answers")
    batch = make_batch(model, tokenizer, trie, slots=slots is not None)
    unembedding = unembedding_of(model)

    @torch.no_grad()
    def run() -> None:
        found = read(model, batch, slots=slots is not None, unembedding=unembedding)
        summed_nll(found, batch)
        if slots is not None:
            leaf_log_probs(slot_choices(found, batch, trie), trie)

    return run


def make_batch(model: StudentModel, tokenizer: StudentTokenizer, trie: ScoreTrie, *, slots: bool) -> Batch:
    """One pack of the scripted teacher's requests, with the branches of their scores where they are read."""
    split = encode_split(make_requests(ROWS), TASK, tokenizer, 512)
    batch = PackedCollator(trie if slots else None)(split.batch_rows(trie))
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def random_heads(model: StudentModel) -> TeachingHeads:
    """Heads that read as many layers as fitted ones do."""
    layers = layers_to_try(model)[-4:]
    width = model.config.hidden_size
    weight_FLKD = torch.randn(FOLDS, len(layers), len(TASK.keys), width, device=model.device) / width
    return TeachingHeads(tuple(layers), weight_FLKD, torch.full((FOLDS, len(TASK.keys)), 50.0, device=model.device))


def main() -> None:
    """Measure, print a table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of fifteen")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--model", default="tiny", choices=MODELS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, tokenizer = load(asked.model, Path(folder))
    model: Any = attach_lora(base, Lora(rank=16), seed=0)
    steps = {name: training_step(model, tokenizer, objective) for name, objective in TRAINING.items()}
    passes = {name: evaluation_pass(model, tokenizer, slots) for name, slots in EVALUATION.items()}
    samples: dict[str, dict[str, list[float]]] = {
        "training": {name: [] for name in steps}, "evaluation": {name: [] for name in passes},
    }  # fmt: skip
    for number in range(1 + (3 if asked.quick else 15)):
        for kind, works in (("training", steps), ("evaluation", passes)):
            for name, work in works.items():
                seconds, _ = timed(work)
                if number:  # the first round warms up
                    samples[kind][name].append(seconds)
    ratios: dict[str, dict[str, float]] = {}
    print(f"| {asked.model}, a pack of {ROWS} rows | ms | times the first |\n| --- | --- | --- |")
    for kind, by_name in samples.items():
        median = {name: statistics.median(seconds) for name, seconds in by_name.items()}
        first = next(iter(median.values()))
        ratios[kind] = {name: round(value / first, 3) for name, value in median.items()}
        for name, value in median.items():
            print(f"| {kind}: {name} | {value * 1000:.0f} | {ratios[kind][name]:.2f} |")
    headline = {
        "model": asked.model,
        "device": device_name(),
        "threads": torch.get_num_threads(),
        **ratios,
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    raw = {"headline": headline, "seconds": samples, "rows": ROWS, "torch": torch.__version__}
    (asked.out / f"number_costs_{asked.model}.json").write_text(json.dumps(raw, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
