"""The parity certificate of an export, `parity.json`: proof that it answers as the adapter did, and what its files are.

    requests   the rows that were asked, each with what the adapter on its base answers, by text, by the mean and by the
               read-out that is served: the reference
    entries    one per engine that was asked the same: how many texts are identical, and by read-out and key how far off
               the others are
    files      SHA-256 of every file of the folder, as `sha256sum` prints it

Every export folder has its own. Engines append their entries with `add_entry`; who serves calls `check_files` first.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ppe_lora.artifacts import changed_files, files_below, read_json, sha256, write_json
from ppe_lora.corpus.rows import Row
from ppe_lora.errors import ModelError
from ppe_lora.tasks.scores import Answer, Language, ScoresTask

FILE_NAME = "parity.json"
# Written after the certificate (the last by npm), or meant to be edited.
_NOT_CERTIFIED = {FILE_NAME, "manifest.json", "README.md", "package-lock.json"}
_WEIGHTS = {".safetensors", ".gguf", ".onnx", ".onnx_data", ".bin", ".pt", ".pth"}
_READ = _WEIGHTS | {".npz", ".json", ".jinja", ".model"}
"""Endings of what models and their read-outs are loaded from."""


class Reading(NamedTuple):
    """What an engine makes of one request."""

    text: str
    """The greedy answer."""
    posterior_mean: Mapping[str, float] | None = None
    """By key, in task units, not rounded; None where the engine gives no distributions."""
    served: Mapping[str, Mapping[str, float]] = {}
    """By read-out (`posterior_median`, `calibrated`, `calibrated_without_head`), then as `posterior_mean`; empty where
    text or mean are served, and where an engine gives no distributions."""

    @property
    def read_outs(self) -> dict[str, Mapping[str, float]]:
        """What is not text, by read-out."""
        means = {} if self.posterior_mean is None else {"posterior_mean": self.posterior_mean}
        return {**means, **self.served}


class Asked(NamedTuple):
    """A request of a certificate: what `ScoresTask.messages` takes, and the adapter's answer."""

    request: str
    language: Language
    context: dict[str, str] | None
    reference: Reading


def write_certificate(folder: Path, rows: Sequence[Row], reference: Sequence[Reading]) -> None:
    """Start the certificate of a folder whose other files are complete.

    Args:
        folder: The export.
        rows: The requests.
        reference: Of each row, the answer of the adapter on the base it was trained on.
    """
    requests = [
        {
            "id": row.id,
            "request": row.request,
            "language": row.language,
            "context": row.context,
            "text": reading.text,
            "posterior_mean": reading.posterior_mean,
            "served": reading.served,
        }
        for row, reading in zip(rows, reference, strict=True)
    ]
    write_json(folder / FILE_NAME, {"requests": requests, "entries": [], "files": hash_files(folder)})


def copy_certificate(source: Path, folder: Path) -> None:
    """Start the certificate of an export that was made from another one: its requests and entries, and the new folder's
    files."""
    write_json(folder / FILE_NAME, _read(source) | {"files": hash_files(folder)})


def asked(folder: Path) -> list[Asked]:
    """The requests of a folder's certificate, for an engine that is to be held against it.

    Raises:
        ModelError: The folder has no certificate, or one of an earlier version.
    """
    requests = _read(folder)["requests"]
    if not all("served" in one for one in requests):
        raise ModelError(
            f"{folder / FILE_NAME}: expected served answers; got a certificate of an earlier version; make the export "
            "again with `ppe-lora export RECIPE`"
        )
    return [
        Asked(
            one["request"], one["language"], one["context"], Reading(one["text"], one["posterior_mean"], one["served"])
        )
        for one in requests
    ]


def add_entry(folder: Path, task: ScoresTask, engine: str, readings: Sequence[Reading]) -> dict[str, Any]:
    """Append what an engine answered to the requests of a certificate, in their order; an earlier entry of that engine
    is replaced.

    Args:
        folder: Holds the certificate.
        task: Reads the answers.
        engine: What answered, with its version and settings: "vllm 0.32.0, float32".
        readings: One per request.

    Returns:
        The entry: `identical` of `answers` texts, `unlike` of which one is an answer and the other is not, and by
        read-out and key the largest difference in task units between those that both are.

    Raises:
        ModelError: The folder has no certificate, or not as many requests.
    """
    content = _read(folder)
    references = [one.reference for one in asked(folder)]
    if len(readings) != len(references):
        raise ModelError(f"{folder}: expected {len(references)} answers of {engine}; got {len(readings)}")
    entry = {"engine": engine, **compare(references, readings, task)}
    content["entries"] = [one for one in content["entries"] if one["engine"] != engine] + [entry]
    write_json(folder / FILE_NAME, content)
    return entry


def compare(references: Sequence[Reading], readings: Sequence[Reading], task: ScoresTask) -> dict[str, Any]:
    """Hold answers against their references; see `add_entry` for what is returned."""
    pairs = list(zip(references, readings, strict=True))
    parsed = [(task.parse(one.text), task.parse(other.text)) for one, other in pairs]
    values = [
        (one.values, other.values) for one, other in parsed if isinstance(one, Answer) and isinstance(other, Answer)
    ]
    by_read_out = {"greedy": values}
    for one, other in pairs:
        for name in one.read_outs.keys() & other.read_outs.keys():
            both = tuple(tuple(side.read_outs[name][key] for key in task.keys) for side in (one, other))
            by_read_out.setdefault(name, []).append((both[0], both[1]))
    return {
        "answers": len(pairs),
        "identical": sum(one.text == other.text for one, other in pairs),
        "unlike": sum(isinstance(one, Answer) != isinstance(other, Answer) for one, other in parsed),
        "largest_difference": {
            name: {key: max(abs(one[at] - other[at]) for one, other in found) for at, key in enumerate(task.keys)}
            for name, found in by_read_out.items()
            if found
        },
    }


def told_difference(found: Mapping[str, Any], read_out: str) -> str:
    """How far answers of a read-out are off at most, in words: `at most 0.31 off (a 0.31, b 0.12)`, in task units.

    Args:
        found: From `compare`.
        read_out: A read-out of the certificate; `greedy` is the text.
    """
    by_key: dict[str, float] | None = found["largest_difference"].get(read_out)
    if by_key is None:
        return f"{read_out} not compared"
    each = ", ".join(f"{key} {most:.2g}" for key, most in by_key.items())
    return f"at most {max(by_key.values()):.2g} off ({each})"


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 by relative name of the files that a certificate speaks of."""
    return {name: sha256(folder / name) for name in files_below(folder) if name not in _NOT_CERTIFIED}


def certified_files(folder: Path) -> dict[str, str]:
    """What `hash_files` entered into a folder's certificate.

    Raises:
        ModelError: The folder has no certificate.
    """
    return dict(_read(folder)["files"])


def check_files(folder: Path, *, weights: bool = True) -> None:
    """Refuse an export whose files are not those that were proven.

    Args:
        folder: The export.
        weights: Whether to look at weights, too: whoever asks an engine for answers does not load them.

    Raises:
        ModelError: There is no certificate, a file is missing or differs from its hash, or there are further files that
            a model is read from.
    """
    certified = certified_files(folder)
    looked_at = {name: one for name, one in certified.items() if weights or Path(name).suffix not in _WEIGHTS}
    problems = [*map(str, changed_files(folder, {"files": looked_at}))]  # no times: these files have come from anywhere
    further = [path.name for path in folder.iterdir() if path.suffix in _READ and path.name not in certified]
    problems += [f"{name} is not in it" for name in sorted(set(further) - _NOT_CERTIFIED)]
    if problems:
        raise ModelError(
            f"{folder}: expected the files that {FILE_NAME} certifies; got others: {', '.join(problems)}; "
            "export the run again"
        )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE_NAME
    if not path.is_file():
        raise ModelError(
            f"{folder}: expected an export with its {FILE_NAME}; got none; make it with `ppe-lora export RECIPE`"
        )
    content: dict[str, Any] = read_json(path)
    return content
