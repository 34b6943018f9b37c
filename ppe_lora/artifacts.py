"""Files that say what they were made from: atomic writes, content hashes, manifests written last."""

import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppe_lora.errors import FileError

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets", "mistral-common")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary name beside it, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people: indented, UTF-8, whole or not at all."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileError: It is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(
            f"{path}: expected JSON; got a torn or changed file ({error}); delete it and repeat the command that wrote "
            "it"
        ) from None


def read_jsonl(path: Path) -> list[Any]:
    """Read a file of one JSON value a line."""
    with path.open(encoding="utf-8") as lines:  # not splitlines(): texts hold other line ends, such as U+2028
        return [json.loads(line) for line in lines if line.strip()]


def hash_text(text: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_json(content: Any) -> str:
    """`hash_text` of canonical JSON: the order of keys does not matter."""
    return hash_text(json.dumps(content, ensure_ascii=False, sort_keys=True))


def hash_file(path: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def hash_adapter(folder: Path) -> str:
    """One hash of an adapter's weights and of its configuration, which scales them."""
    return hash_json([hash_file(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors")])


def write_manifest(folder: Path, inputs: Mapping[str, Any], **content: Any) -> None:
    """Write `manifest.json`, the last file of an output: that it exists means that the output is whole.

    Args:
        folder: The output it describes.
        inputs: Everything that decides the output. Equal inputs need no second making.
        content: What else a reader wants to know: counts, hashes of files, seconds.
    """
    write_json(
        folder / "manifest.json",
        {
            "inputs": inputs,
            "inputs_hash": hash_json(inputs),
            **content,
            "git_revision": _git_revision(),
            "packages": package_versions(),
        },
    )


def is_current(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Whether `folder` holds a whole output made from exactly these inputs."""
    path = folder / "manifest.json"
    return path.is_file() and read_json(path).get("inputs_hash") == hash_json(inputs)


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
