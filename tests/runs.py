"""Small data sets, a small model that already speaks the format, and recipes, for tests of whole runs."""

import random
from pathlib import Path

import torch

from ppe_lora.artifacts import read_json, write_manifest
from ppe_lora.corpus.rows import SPLITS, Row, row_id, split_path, write_rows
from ppe_lora.student.collate import PackedCollator, completion_nll
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.tokenizer import load_tokenizer
from ppe_lora.tasks.scores import ScoresTask
from tests.tiny import tiny_llama

TASK = ScoresTask(keys=("a", "b"), instruction={"en": "Score {keys}."})
TASK_YAML = "task: {keys: [a, b], instruction: {en: 'Score {keys}.'}}"
_LEVELS = {"tiny": 5, "small": 25, "fair": 50, "large": 75, "huge": 95}


def make_rows(count: int, seed: int) -> list[Row]:
    """Rows such as "tiny a, huge b" whose targets follow the words, with a little noise."""
    rng = random.Random(seed)
    rows = {}
    while len(rows) < count:
        words = rng.choice(list(_LEVELS)), rng.choice(list(_LEVELS))
        target = dict(zip("ab", (min(100, max(0, _LEVELS[word] + rng.randint(-4, 4))) for word in words), strict=True))
        request = f"{words[0]} one, {words[1]} other, case {rng.randint(0, 10**6)}"
        row = Row(id=row_id(request, target, "en", None), request=request, target=target, language="en")
        rows[row.id] = row
    return list(rows.values())


def make_rows_of(task: ScoresTask, count: int, seed: int) -> list[Row]:
    """Requests of `make_rows` with legal targets of any task, drawn at random."""
    rng = random.Random(seed)
    steps = 10**task.decimals
    return [
        row.model_copy(
            update={"target": {key: rng.randint(task.low * steps, task.high * steps) / steps for key in task.keys}}
        )
        for row in make_rows(count, seed)
    ]


def make_data(folder: Path, train: int = 24, valid: int = 8, test: int = 6) -> Path:
    """Write a finished data set of `make_rows`."""
    rows = make_rows(train + valid + test, seed=1)
    bounds = {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, len(rows))}
    for split in SPLITS:
        write_rows(split_path(folder, split), rows[slice(*bounds[split])])
    write_manifest(folder, {"made": "by a test"}, dataset_version="test-data")
    return folder


def as_measured(run: Path) -> None:
    """Let the correction that now lies in a run folder be the one that its test rows were decoded with."""
    training = read_json(run / "manifest.json")["inputs_hash"]
    write_manifest(run / "test", {"training": training}, files=["../calibration.json", "../head.npz"])


def make_recipe(folder: Path, model: Path, *lines: str, name: str = "run") -> Path:
    """Write a recipe for `model` on the data set `data/d`; `lines` are whole further sections."""
    path = folder / f"{name}.yaml"
    sections = [TASK_YAML, "data: {name: d}", *lines]
    if not any(line.startswith("student:") for line in lines):
        sections.append(f"student: {{model: '{model}', lora: {{rank: 4}}}}")
    path.write_text("\n".join(sections) + "\n", encoding="utf-8")
    return path


def make_speaker(folder: Path, steps: int = 120) -> Path:
    """A tiny Llama whose weights are trained until it answers in the format, though not yet well."""
    from transformers import AutoModelForCausalLM

    tiny_llama(folder)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    encoded = encode_rows(make_rows(64, seed=7), TASK, tokenizer, 512).encoded
    collate = PackedCollator()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        start = step * 16 % len(encoded)
        nll, tokens = completion_nll(model, collate([row._asdict() for row in encoded[start : start + 16]]))
        (nll / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
