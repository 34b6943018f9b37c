"""The certificate says how far engines are off, and refuses files that are not the proven ones."""

import hashlib
import json
from pathlib import Path

import pytest

from ppe_lora.errors import ModelError
from ppe_lora.export.parity import (
    Reading,
    add_entry,
    asked,
    check_files,
    compare,
    copy_certificate,
    told_difference,
    write_certificate,
)
from tests.runs import TASK, make_rows

ROWS = make_rows(3, seed=5)
REFERENCE = [
    Reading('{"a":10,"b":20}', {"a": 10.25, "b": 20.5}, {"calibrated": {"a": 11.0, "b": 21.0}}),
    Reading('{"a":30,"b":40}', {"a": 30.0, "b": 40.0}),
    Reading("no idea", {"a": 50.0, "b": 60.0}),
]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    (folder / "nested").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "nested" / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("card")
    write_certificate(folder, ROWS, REFERENCE)
    return folder


def test_entry_counts_identical_answers_and_the_largest_difference_of_each_key(export: Path) -> None:
    """By hand: the first differs by 2 in b, the third is an answer where the reference is none."""
    readings = [
        Reading('{"a":10,"b":22}', {"a": 10.0, "b": 21.0}),
        Reading('{"a":30,"b":40}', {"a": 30.5, "b": 40.0}),
        Reading('{"a":50,"b":60}', {"a": 50.0, "b": 60.0}),
    ]
    entry = add_entry(export, TASK, "engine 1", readings)
    assert entry == {
        "engine": "engine 1",
        "answers": 3,
        "identical": 1,
        "unlike": 1,
        "largest_difference": {"greedy": {"a": 0.0, "b": 2.0}, "posterior_mean": {"a": 0.5, "b": 0.5}},
    }
    add_entry(export, TASK, "text only", [Reading(one.text) for one in REFERENCE])
    add_entry(export, TASK, "engine 1", REFERENCE)  # asked again: the newer entry counts
    entries = json.loads((export / "parity.json").read_text())["entries"]
    assert [(one["engine"], one["identical"]) for one in entries] == [("text only", 3), ("engine 1", 3)]
    assert entries[0]["largest_difference"] == {"greedy": {"a": 0.0, "b": 0.0}}


def test_differences_are_by_read_out() -> None:
    """What is served may be neither text nor mean: equal texts say nothing of it. By hand: 1 and 3 apart in b."""
    reference = [
        Reading('{"a":10,"b":20}', {"a": 10.0, "b": 20.0}, {"calibrated": {"a": 12.0, "b": value}})
        for value in (20.0, 21.0)
    ]
    served = [one._replace(served={"calibrated": {"a": 12.0, "b": 21.0 + 3 * at}}) for at, one in enumerate(reference)]
    found = compare(reference, served, TASK)
    assert found["identical"] == 2
    assert found["largest_difference"]["calibrated"] == {"a": 0.0, "b": 3.0}
    assert told_difference(found, "calibrated") == "at most 3 off (a 0, b 3)"
    assert told_difference(found, "posterior_median") == "posterior_median not compared"
    lacking = compare(reference, [Reading(one.text) for one in reference], TASK)
    assert set(lacking["largest_difference"]) == {"greedy"}


def test_the_same_requests_can_be_asked_again(export: Path) -> None:
    found = asked(export)
    assert [(one.request, one.language, one.context) for one in found] == [
        (row.request, row.language, row.context) for row in ROWS
    ]
    assert [one.reference for one in found] == REFERENCE


def test_a_certificate_of_an_earlier_version_is_named(export: Path) -> None:
    content = json.loads((export / "parity.json").read_text())
    for one in content["requests"]:
        del one["served"]
    (export / "parity.json").write_text(json.dumps(content))
    with pytest.raises(ModelError) as error:
        asked(export)
    assert str(error.value) == (
        f"{export}/parity.json: expected served answers; got a certificate of an earlier version; make the export "
        "again with `ppe-lora export RECIPE`"
    )


def test_answers_to_other_requests_are_refused(export: Path) -> None:
    with pytest.raises(ModelError, match="expected 3 answers of engine 1; got 2"):
        add_entry(export, TASK, "engine 1", REFERENCE[:2])


def test_hashes_are_those_of_sha256sum_and_an_edited_card_is_no_other_model(export: Path) -> None:
    files = json.loads((export / "parity.json").read_text())["files"]
    assert files == {
        "model.safetensors": hashlib.sha256(b"weights").hexdigest(),
        "nested/tokenizer.json": hashlib.sha256(b"{}").hexdigest(),
    }
    (export / "README.md").write_text("edited")
    (export / "notes.txt").write_text("mine")
    check_files(export)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"others!"), "model.safetensors differs"),
        (lambda folder: (folder / "nested" / "tokenizer.json").unlink(), "nested/tokenizer.json is missing"),
        (lambda folder: (folder / "extra.safetensors").write_bytes(b"x"), "extra.safetensors is not in it"),
    ],
)
def test_other_files_than_the_proven_ones_are_refused(export: Path, spoil, problem: str) -> None:
    """A swapped weight file or tokenizer would be served as if it had been proven."""
    spoil(export)
    with pytest.raises(ModelError) as error:
        check_files(export)
    assert str(error.value) == (
        f"{export}: expected the files that parity.json certifies; got others: {problem}; export the run again"
    )


def test_a_folder_without_a_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        check_files(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: expected an export with its parity.json; got none; make it with `ppe-lora export RECIPE`"
    )


def test_an_export_made_from_another_has_its_requests_and_own_files(export: Path, tmp_path: Path) -> None:
    """A GGUF that carried the merged model's hashes would never pass its check."""
    add_entry(export, TASK, "merged", REFERENCE)
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"gguf")
    copy_certificate(export, gguf)
    check_files(gguf)
    content = json.loads((gguf / "parity.json").read_text())
    assert list(content["files"]) == ["model.gguf"]
    assert [one["engine"] for one in content["entries"]] == ["merged"]
    assert asked(gguf) == asked(export)
