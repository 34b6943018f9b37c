"""Rows as a Hugging Face data set on disk: features and splits, ready for `load_from_disk`.

`datasets` is slow to import, so this module is loaded only when such a folder is read or written.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value, disable_progress_bars, load_from_disk

from ppe_lora.tasks.scores import ScoresTask


def write_hf(by_split: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path, task: ScoresTask) -> None:
    """Write records of `formats.record_of(..., "hf")` as a DatasetDict; an absent field is None.

    A context has other names from row to row, which no feature can have: it is a list of names and values.
    """
    text = Value("string")
    features = Features(
        {
            "messages": List({"role": text, "content": text}),
            "id": text,
            "request": text,
            "target": {key: Value("int64" if task.decimals == 0 else "float64") for key in task.keys},
            "language": text,
            "style": text,
            "scenario": List(text),
            "sampler": text,
            "teacher": text,
            "context": List({"name": text, "value": text}),
        }
    )
    disable_progress_bars()
    splits = {}
    for split, records in by_split.items():
        entries = [{**dict.fromkeys(features), **record} for record in records]
        for entry in entries:
            if entry["context"]:
                entry["context"] = [{"name": name, "value": value} for name, value in entry["context"].items()]
        splits[split] = Dataset.from_list(entries, features=features)
    DatasetDict(splits).save_to_disk(str(folder))


def read_hf(folder: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The entries of a data set on disk: split, number from 1, values. A single data set is its own split `train`."""
    loaded = load_from_disk(str(folder))
    for split, data in loaded.items() if isinstance(loaded, DatasetDict) else [("train", loaded)]:
        for number, entry in enumerate(data, 1):
            context = entry.get("context")
            if isinstance(context, list):
                entry = {**entry, "context": {pair["name"]: pair["value"] for pair in context}}
            yield str(split), number, entry
