"""Encoded rows on disk: made once for the same rows, task and tokenizer, and read without being copied into memory."""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from ppe_lora.artifacts import hash_json, write_bytes
from ppe_lora.corpus.rows import Row
from ppe_lora.student.base import cache_folder
from ppe_lora.student.encode import EncodedRow, EncodedRows, Unusable, encode_rows
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.tasks.scores import ScoresTask

LEAST_ROWS = 2000
"""Fewer rows are encoded in less time than a file is worth."""
_KEPT_FILES = 24
"""The newest ones: a file of 100,000 rows has some 60 MB."""
_FORMAT = 1  # raise it when other ids come of the same rows


class StoredRows(Sequence[EncodedRow]):
    """Encoded rows of a table, each made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._ids = table["id"].to_pylist()
        self._shared = table["shared"].to_numpy()
        self._prompts, self._completions = (_flat(table[name]) for name in ("prompt_ids", "completion_ids"))

    def __len__(self) -> int:
        return len(self._shared)

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...

    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        prompt, completion = (
            values[ends[at] : ends[at + 1]].tolist() for values, ends in (self._prompts, self._completions)
        )
        return EncodedRow(self._ids[at], prompt, completion, int(self._shared[at]))


def encode_once(rows: Sequence[Row], task: ScoresTask, tokenizer: StudentTokenizer, max_tokens: int) -> EncodedRows:
    """`encode_rows`, kept in `cache_folder()/tokens` and found there by the content of rows, task and tokenizer. A file
    that is missing, torn or of other rows is made anew; where none can be written, rows are encoded every time."""
    if len(rows) < LEAST_ROWS:
        return encode_rows(rows, task, tokenizer, max_tokens)
    made_from = [_FORMAT, _hash_rows(rows), task.model_dump(mode="json"), tokenizer.fingerprint(), max_tokens]
    path = cache_folder() / "tokens" / f"{hash_json(made_from)}.arrow"
    found = _read(path)
    if found is None:
        found = encode_rows(rows, task, tokenizer, max_tokens)
        with suppress(OSError):
            _write(path, found)
    return found


def tokens_table(rows: Sequence[EncodedRow]) -> pa.Table:
    """Encoded rows as a table with the fields of `EncodedRow` as columns."""
    if isinstance(rows, StoredRows):
        return rows.table.replace_schema_metadata(None)
    ids = pa.list_(pa.int32())
    kinds = {"id": pa.string(), "prompt_ids": ids, "completion_ids": ids, "shared": pa.int32()}
    return pa.table({name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in kinds.items()})


def _hash_rows(rows: Sequence[Row]) -> str:
    digest = hashlib.blake2b()
    for row in rows:
        digest.update(repr((row.id, row.request, row.language, row.context, row.target)).encode())
    return digest.hexdigest()


def _read(path: Path) -> EncodedRows | None:
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        note = json.loads(table.schema.metadata[b"note"])
        if note["checksum"] != _checksum(table):
            return None
        os.utime(path)  # the files used last are kept
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    unusable = [Unusable(*one) for one in note["unusable"]]
    return EncodedRows(StoredRows(table), [(id, length) for id, length in note["too_long"]], unusable)


def _write(path: Path, rows: EncodedRows) -> None:
    """Write a file whole or not at all, and delete those that were used longest ago."""
    table = tokens_table(rows.encoded)
    note = {"too_long": rows.too_long, "unusable": rows.unusable, "checksum": _checksum(table)}
    table = table.replace_schema_metadata({"note": json.dumps(note)})
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    write_bytes(path, buffer.getvalue().to_pybytes())
    files = sorted(path.parent.glob("*.arrow"), key=lambda file: file.stat().st_mtime)
    for old in files[:-_KEPT_FILES]:
        old.unlink(missing_ok=True)


def _checksum(table: pa.Table) -> int:
    checksum = zlib.crc32("\n".join(table["id"].to_pylist()).encode())
    lists = (numbers for name in ("prompt_ids", "completion_ids") for numbers in _flat(table[name]))
    for numbers in (table["shared"].to_numpy(), *lists):
        checksum = zlib.crc32(numbers.tobytes(), checksum)
    return checksum


def _flat(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """All ids of a column of lists, and where each list ends, 0 in front."""
    lists = column.combine_chunks()
    return lists.values.to_numpy(), lists.offsets.to_numpy()
