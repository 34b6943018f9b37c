"""A student with all that decoding some rows takes: loaded once, the same way, whatever is to be decoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ppe_lora.corpus.rows import Row
from ppe_lora.recipe import Recipe
from ppe_lora.student.base import resolve_trained_base
from ppe_lora.student.collate import packs_exactly
from ppe_lora.student.evaluate import EncodedSplit, encode_for
from ppe_lora.student.load import StudentModel, load_adapter, load_base
from ppe_lora.student.processes import processes
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer
from ppe_lora.student.trie import ScoreTrie, build_trie


class Ready(NamedTuple):
    """A loaded student and the rows it is to decode."""

    model: StudentModel
    tokenizer: StudentTokenizer
    split: EncodedSplit
    trie: ScoreTrie | None
    """None where the model does not compute packs exactly: there are no distributions then."""


def make_ready(recipe: Recipe, rows: Sequence[Row], run_dir: Path, adapter: Path | None) -> Ready:
    """Load the student of a finished run, with an adapter or as it is, on this process's device.

    Raises:
        ModelError: The base model, the tokenizer or the adapter cannot be used, or the base is no longer the run's.
    """
    base = resolve_trained_base(recipe.student, run_dir)
    tokenizer = load_tokenizer(base)
    bare = load_base(recipe.student, base, processes().device)
    model: StudentModel = load_adapter(bare, adapter) if adapter else bare
    split = encode_for(recipe, rows, tokenizer)
    packs = packs_exactly(model, split.encoded, tokenizer.pad_id)
    trie = build_trie(recipe.task, tokenizer, recipe.train.objective.slots) if packs else None
    return Ready(model, tokenizer, split, trie)
