"""Files that say what they were made from, and what is said when they are broken."""

import pytest

from ppe_lora.artifacts import is_current, read_json, read_jsonl, write_manifest
from ppe_lora.errors import PpeError


@pytest.mark.parametrize("content", [b'{"inputs": {', b"\xff"])
def test_a_torn_manifest_is_named_with_its_remedy(tmp_path, content):
    """A full disk or a copy that was cut off ended in a traceback of the JSON module."""
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(PpeError) as error:
        is_current(tmp_path, {})
    where, _, rest = str(error.value).partition(" (")
    assert where == f"{path}: expected JSON; got a torn or changed file"
    assert rest.endswith("); delete it and repeat the command that wrote it")
    path.unlink()
    write_manifest(tmp_path, {"made": "from this"})
    assert is_current(tmp_path, read_json(path)["inputs"])


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [(b'{"a": 1}\n{"a"', 2, "Expecting"), (b"\xff\n", 1, "'utf-8'"), (b"[" * 100_000, 1, "maximum recursion")],
)
def test_a_torn_line_is_named(tmp_path, content, line, problem):
    """Predictions cut by a full disk ended report and compare in a traceback."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(PpeError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}:{line}: expected JSON; got a torn or changed file ({problem}")
