"""Whole builds: the files, the manifest, resuming, and errors that say what to change."""

import json
from pathlib import Path
from typing import Any

import pytest

import ppe_lora.corpus.build as build_module
from ppe_lora.artifacts import hash_file, read_json
from ppe_lora.corpus.build import build_dataset
from ppe_lora.corpus.rows import SPLITS, Row, read_rows, split_path
from ppe_lora.corpus.stats import dataset_stats
from ppe_lora.corpus.teachers import Ask, Phrased
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import Recipe
from ppe_lora.tasks.scores import ScoresTask


def recipe(seed: int = 0, rows: int = 80, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "seed": seed,
            "student": {"model": "none"},
            "data": {
                "name": "d",
                "source": {"kind": "generate", "rows": rows},
                "split": {"valid": 0.2, "test": 0.2},
                **data,
            },
        }
    )


class Careless:
    """A teacher that leaks: what it says depends on the row's number only."""

    name = "careless"
    version = "v1"

    def phrase(self, asks: Any) -> list[Phrased]:
        return [Phrased(self._text(ask), ()) for ask in asks]

    def _text(self, ask: Ask) -> str:
        spoilt = {0: "", 1: "energy please, lots of it", 2: "at seventy in all", 3: "静かな曲"}
        return spoilt.get(ask.number, f"a tune for {'xyzwvuts'[ask.number % 8] * 6} {hash_letters(ask.number)}")


def hash_letters(number: int) -> str:
    return "".join(chr(97 + (number * 7919 + k * k * 31 + number // (k + 1)) % 26) for k in range(20))


def test_a_build_writes_every_file_and_the_manifest_matches(tmp_path: Path) -> None:
    """Counts that are kept in two places drift apart; a hash of the wrong file proves nothing."""
    report = build_dataset(recipe(), tmp_path / "d")
    assert report.asked == 80
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "ft_request_param_test.jsonl",
        "ft_request_param_train.jsonl",
        "ft_request_param_valid.jsonl",
        "manifest.json",
        "rejected.jsonl",
        "stats.json",
    ]
    manifest = read_json(tmp_path / "d" / "manifest.json")
    rows = {split: read_rows(split_path(tmp_path / "d", split), ScoresTask()) for split in SPLITS}
    assert report.rows == manifest["rows"] == {split: len(found) for split, found in rows.items()}
    assert sum(report.rows.values()) + sum(report.rejected.values()) == 80
    assert manifest["files"]["stats.json"] == hash_file(tmp_path / "d" / "stats.json")
    assert report.dataset_version == manifest["dataset_version"]
    assert not {row.id for row in rows["train"]} & {row.id for row in rows["test"]}
    assert {row.teacher for row in rows["train"]} == {"scripted"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_an_equal_build_is_skipped_and_another_replaces_it(tmp_path: Path) -> None:
    """Paying a teacher twice for the same data, or keeping the old data of a changed recipe."""
    first = build_dataset(recipe(), tmp_path / "d")
    again = build_dataset(recipe(), tmp_path / "d")
    assert again == first._replace(made=False)
    moved = build_dataset(recipe(), tmp_path / "elsewhere")
    assert moved.dataset_version == first.dataset_version
    other = build_dataset(recipe(seed=1), tmp_path / "d")
    assert other.made
    assert other.dataset_version != first.dataset_version


def test_observed_vectors_decide_the_data_by_content(tmp_path: Path) -> None:
    """A moved file must not remake the data; another content under the same path must."""
    vectors = ",".join(ScoresTask().keys) + "\n10,20,30,40,50,60\n"
    for name in ("one.csv", "other.csv"):
        (tmp_path / name).write_text(vectors)

    def made(name: str) -> bool:
        sampler = {"observed": {"path": str(tmp_path / name)}}
        return build_dataset(recipe(source={"kind": "generate", "rows": 60, "sampler": sampler}), tmp_path / "d").made

    assert made("one.csv")
    assert not made("other.csv")
    (tmp_path / "other.csv").write_text(vectors.replace("10", "90"))
    assert made("other.csv")


def test_training_settings_do_not_remake_data(tmp_path: Path) -> None:
    """A rank sweep that rebuilt its data would compare different data."""
    build_dataset(recipe(), tmp_path / "d")
    changed = recipe().model_copy(update={"name": "other", "train": recipe().train.model_copy(update={"epochs": 9})})
    assert not build_dataset(changed, tmp_path / "d").made
    louder = recipe(filters={"near_duplicate": 0.7})
    assert build_dataset(louder, tmp_path / "d").made


def test_rejected_rows_are_kept_with_rule_and_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer that cannot be represented as a row would stop the build instead of being counted."""
    monkeypatch.setattr(build_module, "make_teacher", lambda *_, **__: Careless())
    source = {"kind": "generate", "rows": 60, "languages": {"en": 1.0}}
    report = build_dataset(recipe(source=source, filters={"language": True}), tmp_path / "d")
    lines = [json.loads(line) for line in (tmp_path / "d" / "rejected.jsonl").read_text().splitlines()]
    assert [(line["row"]["request"], line["rule"], line["evidence"]) for line in lines[:4]] == [
        ("", "empty", "''"),
        ("energy please, lots of it", "key-name leak", "energy"),
        ("at seventy in all", "numeric leak", "seventy"),
        ("静かな曲", "length", "4 characters; allowed 12 to 600"),
    ]
    assert report.rejected["empty"] == 1
    assert len(lines) == sum(report.rejected.values())


def test_a_killed_build_leaves_no_half_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with rows but no end looks whole to whoever reads only the training file."""
    before = build_dataset(recipe(), tmp_path / "d")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(recipe(seed=5), tmp_path / "d")
    assert build_dataset(recipe(), tmp_path / "d") == before._replace(made=False)
    assert build_dataset(recipe(seed=5), tmp_path / "d").made
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_foreign_files_are_never_deleted(tmp_path: Path) -> None:
    """`data.name` pointing at a folder of someone's own files must not cost them."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.md").write_text("mine")
    with pytest.raises(DataError) as error:
        build_dataset(recipe(), tmp_path / "d")
    assert str(error.value) == (
        f"{tmp_path}/d: expected a data set to replace; got other files (thesis.md); "
        "move them, or choose another data.name"
    )
    assert (tmp_path / "d" / "thesis.md").read_text() == "mine"


def held_out(folder: Path, requests: list[str]) -> dict[str, Any]:
    """The recipe section of a file of people's requests, all with 50 on every key."""
    lines = [{"id": i, "text": text, **dict.fromkeys(ScoresTask().keys, 50)} for i, text in enumerate(requests)]
    (folder / "people.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "kind": "import",
        "source_dir": str(folder),
        "files": {"people": {"path": "people.jsonl"}},
        "request": "people.text",
        "target": {key: f"people.{key}" for key in ScoresTask().keys},
    }


def test_held_out_rows_are_the_test_split(tmp_path: Path) -> None:
    """People's requests that are trained on, or generated ones that are tested on, make the figure meaningless."""
    source = {"kind": "generate", "rows": 60, "languages": {"en": 1.0}}
    plain = build_dataset(recipe(source=source, split={"valid": 0.2, "test": 0.2}), tmp_path / "plain")
    known = read_rows(split_path(plain.folder, "train"), ScoresTask())[0].request
    data = {"source": source, "split": {"valid": 0.2, "test": 0.0}}
    data["held_out"] = held_out(tmp_path, ["year 1984, please", known, "year 1984, please"])
    report = build_dataset(recipe(**data), tmp_path / "d")
    test = read_rows(split_path(tmp_path / "d", "test"), ScoresTask())
    assert [row.request for row in test] == ["year 1984, please", known]
    assert {row.sampler for row in test} == {"import"}
    assert report.rejected["like a held-out row"] == 1
    assert report.rejected["duplicate id"] == 1
    assert report.asked == 63 == sum(report.rows.values()) + sum(report.rejected.values())
    assert report.rows["valid"] == pytest.approx(0.2 * (report.rows["train"] + report.rows["valid"]), abs=6)
    data["held_out"] = held_out(tmp_path, ["another request"])
    assert build_dataset(recipe(**data), tmp_path / "d").made


def test_a_bad_held_out_file_stops_the_build_before_the_teacher_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher paid for 200,000 rows that a typo in another file keeps from being written."""
    monkeypatch.setattr(Careless, "phrase", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(build_module, "make_teacher", lambda *_, **__: Careless())
    section = held_out(tmp_path, ["x"]) | {"request": "people.words"}
    with pytest.raises(DataError) as error:
        build_dataset(recipe(split={"test": 0.0}, held_out=section), tmp_path / "d")
    assert str(error.value).startswith(
        f"data.held_out.request: expected a column of {tmp_path}/people.jsonl (id, text,"
    )


def test_held_out_rows_and_another_test_split_exclude_each_other(tmp_path: Path) -> None:
    """Which of two test splits a figure refers to could not be told from the recipe."""
    section = held_out(tmp_path, ["x"])
    for data, message in (
        ({"held_out": section}, "set data.split.test to 0"),
        ({"held_out": section | {"split": "people.split"}, "split": {"test": 0.0}}, "leave data.held_out.split out"),
        ({"held_out": section, "source": section | {"split": "a.b"}, "split": {"test": 0.0}}, "leave one out"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(**data)


def test_an_empty_split_says_what_to_change(tmp_path: Path) -> None:
    """Training would fail an hour later on an empty validation file."""
    with pytest.raises(DataError) as error:
        build_dataset(recipe(rows=1, split={"valid": 0.0, "test": 0.0}), tmp_path / "d")
    assert str(error.value) == (
        "data d: expected rows in every split; got none for valid, test from 1 requests, 0 rejected; raise "
        "data.source.rows (now 1), or change data.split.valid (now 0) or data.split.test (now 0)"
    )
    assert list(tmp_path.iterdir()) == []


def test_max_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    """Rows that vanish without a count make the sums of the report wrong."""
    capped = build_dataset(recipe(split={"valid": 0.2, "test": 0.2, "max_rows": {"train": 5}}), tmp_path / "d")
    assert capped.rows["train"] == 5
    assert sum(capped.rows.values()) + sum(capped.rejected.values()) + capped.dropped["over max_rows.train"] == 80


def test_statistics_by_hand() -> None:
    """Mean 20 and population variance (100 + 0 + 100) / 3 of 10, 20, 30; a sample variance would say 100."""
    rows = [
        Row(id=str(v), request="x", target={"a": v}, language="en", style="short" if v > 10 else None)
        for v in (10, 20, 30)
    ]
    stats = dataset_stats({"train": rows}, ScoresTask(keys=("a",)))
    assert stats == {
        "keys": {
            "train": {
                "a": {
                    "mean": 20.0,
                    "variance": 66.666667,
                    "quantiles": {"0.05": 11.0, "0.25": 15.0, "0.5": 20.0, "0.75": 25.0, "0.95": 29.0},
                }
            }
        },
        "counts": {
            "split": {"train": 3},
            "language": {"train": {"en": 3}},
            "style": {"train": {"none": 1, "short": 2}},
            "sampler": {"train": {"import": 3}},
        },
    }
