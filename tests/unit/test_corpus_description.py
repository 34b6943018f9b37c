"""What the data report says: counts by hand, planted mistakes that must be found, and broken folders."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppe_lora.artifacts import hash_file, write_manifest
from ppe_lora.corpus.description import DataSet, Description, bin_edges, describe, read_dataset
from ppe_lora.corpus.filters import Rejection
from ppe_lora.corpus.oddities import ODDITY_ROWS, find_oddities
from ppe_lora.corpus.rows import SPLITS, Row, split_path, write_rows
from ppe_lora.corpus.stats import dataset_stats
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import Recipe
from ppe_lora.report.findings import find_all
from ppe_lora.tasks.scores import ScoresTask
from tests.runs import TASK, make_data, make_rows

TWO = ScoresTask(keys=("a", "b"))


def row(number: int, request: str, a: int, b: int = 0, **fields: object) -> Row:
    return Row(id=str(number), request=request, target={"a": a, "b": b}, **{"language": "en", **fields})


def by_hand() -> DataSet:
    train = [row(1, "slow and quiet, as in a dream", 0, 100), row(2, "ゆっくり静かに", 4, 0, language="ja")]
    valid = [row(3, "slow and quiet, as in a dreams", 100, 50)]
    test = [row(4, "faster than anything before", 50, 50, style="short")]
    rejected = [
        Rejection(row(5, "at seventy", 5, 10), "numeric leak", "seventy"),
        Rejection(row(7, "at eighty", 99, 99), "numeric leak", "eighty"),
        Rejection(Row.model_construct(**row(6, "x", 5, 99).model_dump() | {"request": ""}), "empty", "''"),
    ]
    return DataSet("d", {"train": train, "valid": valid, "test": test}, rejected, {}, ())


def test_counts_by_hand() -> None:
    """Asked rows are the kept and the rejected ones; a bin holds its lower edge, and only the last its upper one."""
    tokens = {"1": 9, "2": 30, "3": 10, "4": 8}
    described = describe(by_hand(), TWO, group=0.6, tokens=tokens, max_tokens=9)
    energy = described.keys["a"]
    assert described.asked == 7
    assert energy.edges == list(range(0, 101, 5))
    assert [sum(energy.asked), energy.asked[0], energy.asked[1], energy.asked[10], energy.asked[19]] == [7, 2, 2, 1, 2]
    assert [sum(energy.kept), energy.kept[0], energy.kept[1], energy.kept[19]] == [4, 2, 0, 1]
    assert {split: counts[0] for split, counts in energy.splits.items()} == {"train": 2, "valid": 0, "test": 0}
    pair = described.pairs["a", "b"]
    assert described.pair_edges == [0, 20, 40, 60, 80, 100]
    assert pair.kept == [[1, 0, 0, 0, 1], [0] * 5, [0, 0, 1, 0, 0], [0] * 5, [0, 0, 1, 0, 0]]
    assert pair.asked[0] == [2, 0, 0, 0, 2]
    assert pair.asked[4] == [0, 0, 1, 0, 1]
    assert described.fields["language"] == {"en": 6, "ja": 1}
    assert described.fields["style"] == {"none": 6, "short": 1}
    assert [(rule.name, rule.rows, rule.by_language, len(rule.examples)) for rule in described.rules] == [
        ("numeric leak", 2, {"en": 2}, 2),
        ("empty", 1, {"en": 1}, 1),
    ]
    assert described.too_long == 2
    assert described.odd == []


def test_lengths_by_hand() -> None:
    """Lengths of one language must not hide in those of the other; tokens a character is a slope, not a quotient."""
    described = describe(by_hand(), TWO, group=0.6, tokens={"1": 60, "2": 30, "3": 62, "4": 56})
    assert described.characters["en"].longest == 30
    assert described.characters["ja"].quantiles == {"0.05": 7, "0.5": 7, "0.95": 7}
    assert sum(described.characters["en"].counts) == 3
    assert described.characters["en"].per_character is None
    assert described.tokens["en"].longest == 62
    assert described.tokens["en"].per_character == pytest.approx(2.0)  # 27, 29, 30 characters: 56, 60, 62 tokens
    assert described.tokens["ja"].per_character is None
    assert described.too_long == 0


def test_the_nearest_pair_is_named_with_its_splits() -> None:
    """A request of train that is all but repeated in valid makes the validation too easy."""
    near = describe(by_hand(), TWO, group=0.6).near
    assert (near.threshold, near.pairs, near.across) == (0.5, 1, 1)
    (pair,) = near.nearest
    assert pair.similarity == pytest.approx(25 / 26)
    assert pair.splits == ("train", "valid")
    assert pair.difference_norm == pytest.approx((1.0 + 0.5) / 2)


@given(st.integers(-50, 50), st.integers(1, 300), st.sampled_from([0, 1]), st.integers(2, 30), st.floats(0, 1))
def test_every_legal_value_has_a_bin(low: int, span: int, decimals: int, most: int, place: float) -> None:
    """A value outside the edges would vanish from the histogram without a word."""
    task = ScoresTask(keys=("a",), low=low, high=low + span, decimals=decimals)
    edges = bin_edges(task, most)
    assert 1 <= len(edges) - 1 <= most
    assert np.allclose(np.diff(edges), edges[1] - edges[0])
    value = task.round(low + place * span)
    assert np.histogram([value], bins=edges)[0].sum() == 1


def test_exchanged_targets_are_the_oddest_rows() -> None:
    """The plain squared error names extreme rows instead; these six rows say one thing and are labelled another."""
    rows = make_rows(300, seed=4)
    words = {"tiny": 5, "huge": 95}
    wrong = [r.id for r in rows if r.request.startswith("tiny one, huge other")][:3]
    wrong += [r.id for r in rows if r.request.startswith("huge one, tiny other")][:3]
    assert len(wrong) == 6
    spoilt = [r.model_copy(update={"target": {"a": r.target["b"], "b": r.target["a"]}}) if r.id in wrong else r
              for r in rows]  # fmt: skip
    split = {"train": spoilt[:200], "valid": spoilt[200:250], "test": spoilt[250:]}
    described = describe(DataSet("d", split, [], {}, ()), TASK, group=1.0)
    assert {odd.row.id for odd in described.odd[:6]} == set(wrong)
    assert described.contradictions == 6
    first = described.odd[0]
    said = [words[word] for word in (first.row.request.split()[0], first.row.request.split()[2])]
    assert np.abs(np.subtract(list(first.read.values()), said)).max() < 35
    assert first.read_error > first.average_error > 40
    assert min(described.explained.values()) > 0.6


def test_words_that_say_nothing_explain_nothing() -> None:
    """A reader that had seen the row it reads would find meaning in noise."""
    rng = random.Random(0)
    rows = [row(i, "".join(rng.choices("abcdefgh ", k=40)) + ".", rng.randint(0, 100), 7) for i in range(200)]
    found = find_oddities(rows, TWO)
    assert found is not None
    assert found.explained_K[0] < 0.05
    assert np.isnan(found.explained_K[1])  # a key that never varies
    assert find_oddities(rows[: ODDITY_ROWS - 1], TWO) is None


def write_data(folder: Path) -> Path:
    make_data(folder)
    (folder / "rejected.jsonl").write_text(
        json.dumps({"row": {"id": "r", "request": "", "target": {"a": 1, "b": 2}, "language": "en"}, "rule": "empty",
                    "evidence": "''"}) + "\n"
    )  # fmt: skip
    files = {path.name: hash_file(path) for path in folder.iterdir() if path.name != "manifest.json"}
    write_manifest(folder, {"made": "by a test"}, dataset_version="v", files=files)
    return folder


def test_a_data_set_is_read_back_whole(tmp_path: Path) -> None:
    """A rejected row without text is still a row that was asked for."""
    data = read_dataset(write_data(tmp_path / "d"), TASK)
    assert {split: len(rows) for split, rows in data.by_split.items()} == {"train": 24, "valid": 8, "test": 6}
    assert [(r.row.id, r.row.style, r.rule) for r in data.rejected] == [("r", None, "empty")]
    assert data.changed == ()


def test_a_file_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    """Results would be quoted under the version of data that nobody has any more."""
    folder = write_data(tmp_path / "d")
    write_rows(split_path(folder, "train"), make_rows(20, seed=9))
    assert read_dataset(folder, TASK).changed == ("ft_request_param_train.jsonl",)


def test_broken_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_dataset(tmp_path / "d", TASK)
    assert str(error.value) == (
        f"{tmp_path}/d: expected a finished data set; got none; make it with `ppe-lora data build RECIPE`"
    )
    folder = write_data(tmp_path / "d")
    with (folder / "rejected.jsonl").open("a") as file:
        file.write('{"row": {"id": "r", "request": "x"}}\n')
    with pytest.raises(DataError) as error:
        read_dataset(folder, TASK)
    assert str(error.value) == (
        f"{folder}/rejected.jsonl:2: expected a rejected row (row, rule, evidence); got KeyError: 'target'; "
        "make the data set again with `ppe-lora data build RECIPE`"
    )


def recipe(**data: object) -> Recipe:
    settings = {"name": "r", "task": TASK, "student": {"model": "none"}, "data": {"name": "d", **data}}
    return Recipe.model_validate(settings)


def findings(data: DataSet, described: Description, **settings: object) -> list[str]:
    stats = dataset_stats(data.by_split, TASK)
    return [finding.words.en for finding in find_all(recipe(**settings), data, stats, described)]


def good_data() -> DataSet:
    rows = make_rows(900, seed=2)
    return DataSet("d", {"train": rows[:600], "valid": rows[600:750], "test": rows[750:]}, [], {}, ())


def test_a_good_data_set_has_no_findings() -> None:
    """A report that always warns is a report nobody reads."""
    data = good_data()
    assert findings(data, describe(data, TASK, group=1.0)) == []


def test_planted_faults_are_found() -> None:
    """Each of these has cost someone a training run."""
    data = good_data()
    high = [r for r in data.by_split["train"] if r.target["a"] > 60]
    rejected = [Rejection(r.model_copy(update={"id": f"x{n}"}), "length", "") for n, r in enumerate(high * 2)]
    few = {**data.by_split, "valid": data.by_split["valid"][:50], "test": [r for r in data.by_split["test"]
           if r.target["b"] < 30]}  # fmt: skip
    spoilt = DataSet("d", few, rejected, {"inputs": {"data": {"split": {"valid": 0.5}}}}, ("stale.jsonl",))
    described = describe(spoilt, TASK, group=0.6, tokens={r.id: 600 for r in spoilt.kept}, max_tokens=512)
    found = findings(spoilt, described)
    starts = (
        "Changed after the data set was made: stale.jsonl.",
        "The recipe now has other filter or split settings",
        f"{100 * len(rejected) / described.asked:.0f} % of the candidates were rejected, most often by the rule",
        f"Few rows in valid (50), test ({len(few['test'])})",
        f"{described.near.across:,} pairs of requests at least 0.6 alike lie in different splits",
        "Another mix than in the training rows: test: b.",
        "The filters bent the distribution of a:",
        f"{len(spoilt.kept)} rows are longer than student.max_tokens (512)",
    )
    assert len(found) == len(starts)
    for finding, start in zip(found, starts, strict=True):
        assert finding.startswith(start)


def test_splits_are_all_described() -> None:
    """A split added to the contract and forgotten here would be missing from the page."""
    assert tuple(describe(good_data(), TASK, group=1.0).keys["a"].splits) == SPLITS


@pytest.mark.parametrize(
    ("low", "high", "decimals"),
    [(0, 100, 0), (0, 30, 0), (0, 5, 1), (1, 5, 1), (-5, 5, 1), (0, 1, 1), (0, 37, 0), (1, 100, 0), (0, 255, 0)],
)
@pytest.mark.parametrize("most", [5, 10, 20])
def test_bins_hold_equally_many_values_on_every_scale(low: int, high: int, decimals: Any, most: int) -> None:
    """Twenty bins over 31 values are a comb of one and two that is not in the rows, and edges at sums of tenths leave a
    bin from 0 to 1 empty. Each value once is what an even spread looks like."""
    task = ScoresTask(keys=("a",), low=low, high=high, decimals=decimals)
    values = [step / 10**decimals for step in range(low * 10**decimals, high * 10**decimals + 1)]
    edges = bin_edges(task, most)
    *counts, last = np.histogram(values, bins=edges)[0].tolist()
    assert len(set(counts)) == 1
    assert 0 < last <= counts[0] + 1
    assert sum(counts) + last == len(values)
    assert most / 4 < len(edges) - 1 <= most
