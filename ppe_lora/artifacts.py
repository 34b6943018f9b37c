"""Files that say what they were made from: atomic and synced writes, content hashes, manifests written last.

A manifest notes the hash of each file it stands for, with its size and times. Whoever reads such a file asks
`changed_files` or `check_files` first: where size and times are as noted nothing is read, else the content is hashed.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ppe_lora.boundary import check_file, naming
from ppe_lora.errors import FileError
from ppe_lora.private import opener

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets", "mistral-common")


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 whole or not at all; `private` as for `write_bytes`."""
    write_bytes(path, text.encode(), private=private)


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all: to a temporary name beside it, synced, then renamed; the folder is synced.

    A `private` one is for its owner's eyes only (see `ppe_lora.private`).
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            with open(temporary, "wb", opener=opener if private else None) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, in such a way that they outlast a power cut."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in reversed(missing):
        sync(one.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk. Windows cannot sync a folder."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name at the end; an exception leaves `out` as it was.

    Where two processes could write the same folder, hold a lock (`ppe_lora.locks`): what another one left is removed.
    """
    make_folder(out.parent)
    ours = re.compile(rf"\.{re.escape(out.name)}\.(\d+|earlier)\.tmp")
    for left in [path for path in out.parent.iterdir() if ours.fullmatch(path.name)]:
        shutil.rmtree(left)  # of a process that was killed
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        commit_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def commit_folder(staged: Path, out: Path) -> None:
    """Give a finished folder its name. Everything in it is synced first, so that no power cut leaves a folder that only
    looks whole; an earlier `out` is moved away whole before it is deleted."""
    for path in (*staged.rglob("*"), staged):
        if path.is_file() or path.is_dir():
            sync(path)
    earlier = out.with_name(f".{out.name}.earlier.tmp")
    shutil.rmtree(earlier, ignore_errors=True)
    if out.exists():
        out.rename(earlier)
    staged.rename(out)
    sync(out.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people: indented, UTF-8, whole or not at all."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


_MEND = "copy or download it again, or delete it and repeat the command that wrote it"


class _Object(dict[str, Any]):
    """An object of a JSON file. A key that it lacks is the fault of the file, not of the reader."""

    def __init__(self, where: str, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise FileError(f"{self.where}: expected the key {key!r}; got none; {_MEND}")


class _Manifest(TypedDict, total=False):
    inputs: dict[str, Any]
    inputs_hash: str
    dataset_version: str
    selected_epoch: int
    seconds_of_last_start: float
    stamps: dict[str, list[int]]


class _Certificate(TypedDict, total=False):
    requests: list[dict[str, Any]]
    entries: list[dict[str, Any]]
    files: dict[str, str | None]


class _Config(TypedDict, total=False):
    model_type: str
    vocab_size: int
    num_hidden_layers: int
    text_config: dict[str, Any] | None
    quantization_config: dict[str, Any] | None


class _Index(TypedDict):
    weight_map: dict[str, str]


_SHAPES: dict[str, TypeAdapter[Any]] = {
    "manifest.json": TypeAdapter(_Manifest),
    "eval_metrics.json": TypeAdapter(dict[str, float]),
    "parity.json": TypeAdapter(_Certificate),
    "config.json": TypeAdapter(_Config),
    "model.safetensors.index.json": TypeAdapter(_Index),
}
"""What files of these names hold. Further keys pass; those that are named here have these types."""


def read_json(path: Path) -> Any:
    """Read a JSON object.

    Raises:
        FileError: It is none, or not of the shape that files of its name have; so is a missing key, once it is asked
            for.
    """
    check_file(path)
    try:
        with naming(path):
            found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: expected JSON; got a torn or changed file ({error}); {_MEND}") from None
    if not isinstance(found, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(found), "a number")
        raise FileError(f"{path}: expected a JSON object; got {kind}; {_MEND}")
    try:
        if path.name in _SHAPES:
            _SHAPES[path.name].validate_python(found, strict=True)
    except ValidationError as error:
        raise FileError("\n".join(_odd(path, problem) for problem in error.errors())) from None
    return _object(str(path), found)


def _object(where: str, content: Mapping[str, Any]) -> _Object:
    inner = {key: _object(where, value) if isinstance(value, dict) else value for key, value in content.items()}
    return _Object(where, inner)


def _odd(path: Path, problem: Any) -> str:
    where, said = ".".join(map(str, problem["loc"])), problem["msg"]
    said = said.replace("Input should be", "expected").replace("Field required", "expected the key; got none")
    value = json.dumps(problem["input"], ensure_ascii=False)
    got = "" if problem["type"] == "missing" else f"; got {value if len(value) <= 80 else f'{value[:77]}...'}"
    return f"{path}: {where}: {said}{got}; {_MEND}"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line.

    Raises:
        FileError: A line is none; so is a missing key of a line, once it is asked for.
    """
    check_file(path)
    values: list[dict[str, Any]] = []
    number = 0
    try:
        with naming(path), path.open("rb") as lines:  # as bytes only a line feed ends a line, and texts hold U+2028
            for line in lines:
                number += 1
                if line.strip():
                    values.append(_Object(f"{path}:{number}", json.loads(line)))
    except (ValueError, TypeError, RecursionError) as error:
        raise FileError(f"{path}:{number}: expected JSON; got a torn or changed file ({error}); {_MEND}") from None
    return values


def hash_text(text: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_json(content: Any) -> str:
    """`hash_text` of canonical JSON: the order of keys does not matter."""
    return hash_text(json.dumps(content, ensure_ascii=False, sort_keys=True))


def hash_file(path: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    return sha256(path)[:16]


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as `sha256sum` prints it."""
    check_file(path)
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_adapter(folder: Path) -> str:
    """One hash of an adapter's weights and of its configuration, which scales them."""
    return hash_json([hash_file(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors")])


def write_manifest(
    folder: Path, inputs: Mapping[str, Any], *, files: Iterable[str] | Mapping[str, str] = (), **content: Any
) -> None:
    """Write `manifest.json`, the last file of an output: that it exists means that the output is whole.

    Args:
        folder: The output it describes.
        inputs: Everything that decides the output. Equal inputs need no second making.
        files: Names, relative to `folder`, of the files that it stands for; see `note_files`.
        content: What else a reader wants to know: counts, seconds.
    """
    write_json(
        folder / "manifest.json",
        {
            "inputs": inputs,
            "inputs_hash": hash_json(inputs),
            **content,
            **note_files(folder, files),
            "git_revision": _git_revision(),
            "packages": package_versions(),
        },
    )


def is_current(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether `folder` holds a whole output made from exactly these inputs, and its files are as they were noted."""
    return is_made_from(folder, inputs) and not changed_files(folder, read_json(folder / "manifest.json"))


def is_made_from(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the manifest of `folder` names exactly these inputs, whatever has become of the files since."""
    path = folder / "manifest.json"
    return path.is_file() and read_json(path).get("inputs_hash") == hash_json(inputs)


def note_files(folder: Path, names: Iterable[str] | Mapping[str, str]) -> dict[str, Any]:
    """The part of a manifest that says which files it stands for.

    Args:
        folder: Holds the files.
        names: Relative to it, with `/`; as a mapping, with hashes that are known already. A name without a file is
            noted, too: such a file must not appear later.

    Returns:
        `files`: the hash of each, or None; `stamps`: size in bytes, and times of change in nanoseconds.
    """
    known = names if isinstance(names, Mapping) else {}
    paths = {name: _path_of(folder, name) for name in names}
    there = {name: path for name, path in paths.items() if path.is_file()}
    return {
        "files": {name: known.get(name) or hash_file(path) if name in there else None for name, path in paths.items()},
        "stamps": {name: _stamp(path) for name, path in there.items()},
    }


class Changed(NamedTuple):
    """A file that is no longer as a manifest has it."""

    name: str
    what: Literal["is missing", "differs", "was not there"]

    def __str__(self) -> str:
        return f"{self.name} {self.what}"


def changed_files(folder: Path, noted: Mapping[str, Any]) -> list[Changed]:
    """What is no longer as a manifest has it, in the manifest's order.

    Args:
        folder: Of the manifest.
        noted: The manifest, or another mapping with what `note_files` returns. One of an earlier version, without
            hashes, finds nothing changed.
    """
    files, stamps, found = noted.get("files"), noted.get("stamps", {}), []
    for name, expected in files.items() if isinstance(files, Mapping) else ():
        path = _path_of(folder, name)
        if expected is None:
            found += [Changed(name, "was not there")] if path.exists() else []
        elif not path.is_file():
            found.append(Changed(name, "is missing"))
        elif _stamp(path) != stamps.get(name) and sha256(path)[: len(expected)] != expected:
            found.append(Changed(name, "differs"))
    return found


def check_files(folder: Path, remedy: str) -> None:
    """Refuse an output whose files are not those that its manifest stands for; one without a manifest passes.

    Raises:
        FileError: Files are missing, or somebody has changed them; all are named, with the remedy.
    """
    path = folder / "manifest.json"
    if path.is_file() and (changed := changed_files(folder, read_json(path))):
        found = ", ".join(map(str, changed))
        raise FileError(f"{folder}: expected the files that manifest.json notes; got others: {found}; {remedy}")


def files_below(folder: Path) -> list[str]:
    """Names of all files below a folder, relative to it, sorted; manifests and hidden files are left out."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        name.as_posix() for name in names if name.name != "manifest.json" and not any(p[0] == "." for p in name.parts)
    )


def _path_of(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder / name))  # `../calibration.json` also where `folder` is yet to be made


def _stamp(path: Path) -> list[int]:
    """Size and times. The second time is the one that nobody can set back, where the system has it."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _git_revision() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
