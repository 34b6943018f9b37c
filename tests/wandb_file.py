"""Reads a `.wandb` file back: wandb's package writes them, but has no reader of its own in Python.

The file is a LevelDB log (blocks of 32 KiB; a chunk is checksum, length, type and content) behind a header of seven
bytes, and every entry of it is a protobuf `Record`.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record

_BLOCK, _FILE_HEADER, _CHUNK_HEADER = 32768, 7, 7
_FULL, _LAST = 1, 4


class WandbFile(NamedTuple):
    """What a server would be told."""

    run_ids: list[str]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    artifacts: dict[str, ArtifactRecord]
    x_axis: dict[str, str]
    """Metric, or pattern of metrics, to the metric on its x axis."""


def read_wandb_file(path: Path) -> WandbFile:
    """Every record of the file, put together."""
    found = WandbFile([], {}, [], {}, {}, {})
    indexed = []
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run_ids.append(record.run.run_id)
            found.config.update({one.key: json.loads(one.value_json) for one in record.run.config.update})
        elif kind == "history":
            items = {_name(item): json.loads(item.value_json) for item in record.history.item}
            found.history.append(items | {"_step": record.history.step.num})
        elif kind == "summary":
            found.summary.update({_name(item): json.loads(item.value_json) for item in record.summary.update})
        elif kind == "artifact":
            found.artifacts[record.artifact.name] = record.artifact
        elif kind == "metric":
            indexed.append(record.metric)
    for metric in indexed:
        found.x_axis[metric.name or metric.glob_name] = metric.step_metric
    return found


def _name(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _records(path: Path) -> Iterator[Record]:
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, whole = _FILE_HEADER, b""
    while place < len(content):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK_HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + _CHUNK_HEADER])
        place += _CHUNK_HEADER
        whole += content[place : place + length]
        place += length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record
