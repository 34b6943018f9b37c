"""`ppe-lora compare` on finished run folders: what it says, what it refuses, and why."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.compare import compare_sides
from ppe_lora.errors import RunError
from ppe_lora.evaluation.comparison import Comparison
from ppe_lora.evaluation.comparison import compare as compare_evaluations
from ppe_lora.evaluation.stored import read_run
from ppe_lora.report.comparison import notes, shown_slices, verdict, write_comparison
from ppe_lora.report.comparison_page import write_comparison_page
from ppe_lora.report.intervals import rows_figure
from tests.evaluations import predictions, write_run

ROWS = 60


def errors(spread: float, seed: int) -> list[int]:
    """Within the 30 that every target is from the ends of the range."""
    return [int(error) for error in np.random.default_rng(seed).normal(0, spread, ROWS).clip(-30, 30).round()]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkpoints"


def compare(first: str, second: str) -> Comparison:
    return compare_sides((first, second), lambda recipe: Path("data") / recipe.data.name).comparison


def refusal(first: str, second: str) -> str:
    with pytest.raises(RunError) as error:
        compare(first, second)
    return str(error.value)


def test_a_better_run_is_called_better(here):
    write_run(here / "wide", predictions(errors(20, seed=1)))
    write_run(here / "narrow", predictions(errors(5, seed=2)))
    found = compare("wide", "narrow")
    assert found.headline.is_shown
    assert found.headline.high < 0
    assert verdict(found).en.startswith(f"narrow is better than wide on {ROWS} test rows: mse_norm 0.0")
    assert verdict(found).ja.startswith(f"テスト {ROWS} 件で narrow は wide に勝ります: ")
    assert verdict(compare("narrow", "wide")).en.startswith(f"wide is worse than narrow on {ROWS} test rows: ")
    assert sum(found.tally) == ROWS
    assert found.tally.wins > found.tally.losses
    assert found.improved(5)[0].change == min(change.change for change in found.changes)
    assert found.worsened(5)[0].change == max(change.change for change in found.changes)


def test_of_equal_runs_no_difference_is_claimed(here):
    """The second training of the same recipe must not beat the first; a slice of it neither."""
    rows = predictions(errors(10, seed=1), rejected=[3])
    write_run(here / "one", rows)
    write_run(here / "same", rows)
    found = compare("one", "same")
    assert verdict(found).en == (
        f"{ROWS} test rows show no difference between one and same: mse_norm {found.headline.first:.4f} → "
        f"{found.headline.first:.4f}, +0.0000 [+0.0000, +0.0000], p 1.000."
    )
    every = [*found.formats.values(), *(one for by_name in found.metrics.values() for one in by_name.values())]
    every += [one.difference for one in found.slices if one.difference]
    assert len(every) > 30
    assert not any(one.is_shown for one in every)
    assert found.tally == (0, ROWS, 0)
    assert found.improved(5) == found.worsened(5) == []


def test_rejected_answers_cost_what_they_cost_in_mse_norm_strict(here):
    """Left out of the pairs, a model that refuses every hard row would win."""
    write_run(here / "answers", predictions(errors(10, seed=1)))
    write_run(here / "refuses", predictions(errors(5, seed=1), rejected=range(0, ROWS, 3)))
    found = compare("answers", "refuses")
    strict = read_json(here / "refuses" / "test" / "eval_metrics.json")["mse_norm_strict"]
    assert found.headline.second == pytest.approx(strict)
    assert found.headline.is_shown
    assert found.headline.difference > 0
    assert found.rejected == (0, ROWS // 3)
    assert found.formats["schema_valid_rate"].second == pytest.approx(2 / 3)
    assert found.metrics["posterior_mean", "posterior_mean"]["mse_norm"].difference < 0


def test_read_outs_are_compared_as_served_and_like_with_like(here):
    write_run(here / "text", predictions(errors(10, seed=1)))
    write_run(here / "means", predictions(errors(10, seed=1)), "evaluate.read_out=posterior_mean")
    found = compare("text", "means")
    assert list(found.metrics) == [
        ("greedy", "posterior_mean"), ("greedy", "greedy"), ("posterior_mean", "posterior_mean"),
    ]  # fmt: skip


def test_slices_name_where_it_is_better(here):
    """A model that is better in English and worse in Japanese is not the same as one that did not change."""
    change = [8 if number % 2 else 2 for number in range(ROWS)]
    write_run(here / "even", predictions([5] * ROWS))
    write_run(here / "english", predictions(change))
    found = {(one.field, one.value): one for one in compare("even", "english").slices}
    assert found["language", "en"].difference.high < 0 < found["language", "ja"].difference.low
    assert ("sampler", "uniform") not in found, "a property of all rows splits nothing"
    assert found["style", "polite"].rows == 15
    assert found["scenario", "rainy"].rows == 20
    assert {value for field, value in found if field == "length"} == {"shortest third", "middle third", "longest third"}
    few = predictions([5] * 12)
    write_run(here / "few", few)
    write_run(here / "more", few)
    assert {one.difference for one in compare("few", "more").slices if one.rows < 10} == {None}


def test_rows_that_one_side_left_out_are_counted(here):
    """A student with a smaller max_tokens decodes fewer rows: the others are compared, the missing ones named."""
    rows = predictions(errors(10, seed=1))
    write_run(here / "all", rows)
    write_run(here / "short", rows[:-4])
    found = compare("all", "short")
    assert (found.rows, found.left_out) == (ROWS - 4, 4)
    write_run(here / "none", [row | {"id": f"x{row['id']}"} for row in rows])
    assert refusal("all", "none") == "all, none: expected rows that all of them decoded; got none"


def test_files_of_a_comparison(here):
    write_run(here / "a", predictions(errors(20, seed=1)))
    write_run(here / "b", predictions(errors(5, seed=2), rejected=[7]))
    compared = compare_sides(("a", str(here / "b")), lambda recipe: Path("data"))
    assert compared.folder == Path("checkpoints/a/compare/b")
    told = write_comparison(compared.folder, compared.comparison)
    assert told.splitlines()[0] == verdict(compared.comparison).en
    stored = read_json(compared.folder / "comparison.json")
    assert stored["metrics"]["posterior_mean"]["mse_norm"]["is_shown"] is True
    assert stored["improved_most"][0]["request"]
    assert stored["wins"] + stored["ties"] + stored["losses"] == ROWS
    text = (compared.folder / "comparison.md").read_text(encoding="utf-8")
    assert "雨の日の曲" in text
    rejected = (
        "Rejected greedy texts: 0 of a, 1 of b; in the figures of the greedy text each counts as the worst answer."
    )
    assert rejected in text


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.fixture
def run(here) -> Path:
    return write_run(here / "good", predictions(errors(10, seed=1)))


def test_other_test_rows_are_refused(here, run):
    write_run(here / "other", predictions(errors(10, seed=1)), test_rows="def")
    assert refusal("good", "other") == (
        "other: expected the test rows of good (abc); got def; only errors on the same rows can be compared"
    )


def test_another_metric_version_is_refused(here, run):
    write_run(here / "old", predictions(errors(10, seed=1)), metric_version=1)
    assert refusal("good", "old") == (
        "old: expected the metric version of good (2); got 1; evaluate the older one again: `ppe-lora evaluate RECIPE`"
    )


def test_another_task_is_refused(here, run):
    config = here / "ranged" / "config.yaml"
    write_run(here / "ranged", predictions(errors(10, seed=1)))
    config.write_text(config.read_text().replace("high: 100", "high: 200"))
    assert refusal("good", "ranged") == (
        "ranged: expected the task of good (a, b from 0 to 100 with 0 decimals); got a, b from 0 to 200 with 0 "
        "decimals; errors on different scores or ranges cannot be compared"
    )


def test_an_unfinished_run_is_named_as_such(here, run):
    """Its best epoch so far is on disk; comparing it would rank a run by how early it was stopped."""
    training = write_run(here / "training", predictions(errors(10, seed=1)))
    (training / "manifest.json").unlink()
    assert refusal("good", "training") == (
        "checkpoints/training: unfinished run: the training has not ended; `ppe-lora train RECIPE --resume`"
    )
    assert refusal("training", "base").startswith("checkpoints/training: unfinished run: ")
    decoding = write_run(here / "decoding", predictions(errors(10, seed=1)))
    (decoding / "test" / "manifest.json").unlink()
    assert refusal("decoding", "good") == (
        "checkpoints/decoding: unfinished run: the test rows are not decoded yet; `ppe-lora evaluate RECIPE`"
    )


def test_test_rows_of_an_earlier_training_are_refused(here, run):
    manifest = read_json(run / "manifest.json")
    write_json(run / "manifest.json", manifest | {"inputs_hash": "new"})
    shutil.copytree(run, here / "copy")
    assert refusal("good", "copy") == (
        "checkpoints/good: the test rows were decoded by an earlier training; `ppe-lora evaluate RECIPE`"
    )


def test_names_that_mean_nothing(here, run):
    assert refusal("good", "nothing") == (
        "nothing: expected a run (its folder, or its name in checkpoints/), the folder of an adapter, or `base`; got "
        "none of these; finished runs: good"
    )
    assert refusal("base", "base") == (
        "base and base: expected a run, or an adapter of a run, on one side at least; got none"
    )


def test_torn_predictions_are_named(here, run):
    write_run(here / "torn", predictions(errors(10, seed=1)))
    path = here / "torn" / "test" / "eval_predictions.jsonl"
    path.write_text(json.dumps({"id": "row0"}) + '\n{"id"')
    assert refusal("good", "torn").startswith(
        "checkpoints/torn/test/eval_predictions.jsonl: expected the predictions of an evaluation; got: "
    )


def test_requests_with_separators_of_lines_are_one_row(here):
    """JSON may hold U+2028 as it is; Python takes it for the end of a line, a JSONL reader must not."""
    rows = predictions(errors(10, seed=1))
    rows[0]["request"] = "rain\u2028and\x85more"
    write_run(here / "one", rows)
    assert list(read_run(here / "one").predictions) == [row["id"] for row in rows]


def test_pages_of_large_comparisons_stay_bounded(tmp_path):
    """20,000 rows and 1,500 tags made a page of megabytes beside its library, and a table nobody reads."""
    rows = predictions([number % 7 for number in range(3000)])
    for number, row in enumerate(rows):
        row["scenario"] = [f"tag{number % 150}"]
    sides = [read_run(write_run(tmp_path / name, rows)) for name in ("one", "other")]
    found = compare_evaluations(*sides)
    shown = shown_slices(found)
    assert len([one for one in found.slices if one.field == "scenario"]) == 150
    assert len([one for one in shown if one.field == "scenario"]) == 40
    more = len(found.slices) - len(shown)
    assert f"{more} smaller slices are not shown; comparison.json has all of them." in [one.en for one in notes(found)]
    errors = [one.first_mse_norm for one in found.changes]
    figure = rows_figure(errors, errors, [one.id for one in found.changes], found.names)
    assert len(figure.data[1].x) == 2000
    write_comparison_page(tmp_path / "out", found, (sides[0], sides[1]))
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "<b>2,000</b>" in page
    assert page.count('<tr><th scope="row"><small>') < 60
