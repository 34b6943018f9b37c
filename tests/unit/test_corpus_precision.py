"""Scores that the task's range or decimals would ruin are refused before anything is trained on them."""

from pathlib import Path
from typing import Any

import pytest

from ppe_lora.corpus.importers import read_import
from ppe_lora.corpus.precision import Scale, check_precision, kept_of, to_task
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import ImportSource
from ppe_lora.tasks.scores import ScoresTask


def task(low: int = 0, high: int = 100, decimals: Any = 0) -> ScoresTask:
    return ScoresTask(keys=("joy",), low=low, high=high, decimals=decimals)


def problems(values: list[float], given: ScoresTask, rescale: Scale | None = None) -> list[str]:
    return check_precision({"joy": values}, given, rescale, "data.source")[0]


def test_the_loss_is_that_of_a_hand_calculation() -> None:
    """0, .4, .6, 1 become 0, 0, 1, 1: changes .16 + .16 over 4, variance (.25 + .01 + .01 + .25) / 4."""
    kept = kept_of([0.0, 0.4, 0.6, 1.0], Scale(0, 1), task(0, 1))
    assert kept[:2] == (4, 2)
    assert kept.lost == pytest.approx(0.08 / 0.13)
    assert kept_of([0.5] * 9, Scale(0, 1), task(0, 1)).lost == 0.0
    assert to_task(3.14, Scale(1, 5), task()) == 54  # 53.5 by hand, halves to even


TENTHS = [i / 10 for i in range(11)]
HUNDREDTHS = [i / 100 for i in range(101)]
MEANS = [i / 3 for i in range(3, 16)]  # of three raters from 1 to 5


TENTHS = [i / 10 for i in range(11)]
HUNDREDTHS = [i / 100 for i in range(101)]
QUARTERS = [2.5, 2.75, 3.0, 3.25, 3.5, 3.75]
THIRDS = [i / 3 for i in range(3, 16)]


OWN = "{low: 0, high: 1} (the ends of their own scale)"


@pytest.mark.parametrize(
    ("values", "given", "rescale", "left", "lost", "remedy"),
    [
        # changes 0 .1 .2 .3 .4 .5 .4 .3 .2 .1 0, mean square .85 / 11; variance .1
        (TENTHS, task(0, 1), None, "2 of 11", "77%", "task.decimals: 1"),
        (TENTHS, task(), None, "2 of 11", "77%", f"data.source.rescale: {OWN}"),
        # changes .25 .25 0 .25 .5 .25 (to 2 3 3 3 4 4), mean square .11458; variance .18229
        (QUARTERS, task(1, 5), None, "3 of 6", "63%", "task.decimals: 1"),
        (HUNDREDTHS, task(1, 5), Scale(0, 1), "5 of 101", "6%", "task.decimals: 1"),
        (
            [0.21, 0.22, 0.23, 0.24],
            task(0, 1, 1),
            None,
            "1 of 4",
            "100%",
            f"task.low: 0 and task.high: 100 and data.source.rescale: {OWN}",
        ),
        ([0.501, 0.502, 0.503, 0.504], task(), Scale(0, 1), "1 of 4", "100%", "task.decimals: 1"),
    ],
)
def test_rounding_that_ruins_a_score_names_the_line_to_write(
    values: list[float], given: ScoresTask, rescale: Scale | None, left: str, lost: str, remedy: str
) -> None:
    """Ratings from 0 to 1 became 0 or 1, means of 1 to 5 became whole, without a word."""
    assert problems(values, given, rescale) == [
        f"data.source.target.joy: task.decimals: {given.decimals} leaves {left} distinct values and loses {lost} of "
        f"their variance (5 % at most); write {remedy}"
    ]


def test_a_score_that_no_line_saves_is_said() -> None:
    """An advice that changes the other scores and does not save this one is none."""
    values = {"joy": [0.0, 1.0] * 5, "grief": [0.0, 0.0001] * 5}
    found, _ = check_precision(values, ScoresTask(keys=("joy", "grief")), Scale(0, 1), "data.source")
    assert found == [
        "data.source.target.grief: task.decimals: 0 leaves 1 of 2 distinct values and loses 100% of their variance "
        "(5 % at most); leave the key out of task.keys: no range and decimals keep it beside the others"
    ]


def test_the_line_to_write_helps() -> None:
    """An advice that leads to the next refusal is none."""
    assert problems(TENTHS, task(0, 1, 1)) == []
    assert problems(TENTHS, task(), Scale(0, 1)) == []
    assert problems(QUARTERS, task(1, 5, 1)) == []
    assert problems([0.21, 0.22, 0.23, 0.24], task(), Scale(0, 1)) == []


def test_a_small_loss_is_a_note() -> None:
    """Thirds of 1 to 5: changes 0 1/3 1/3 in turn, (8 / 9) / 13 of a variance of 14 / 9."""
    assert kept_of(THIRDS, Scale(1, 5), task(1, 5)).lost == pytest.approx(8 / 9 / 13 / (14 / 9))
    assert check_precision({"joy": THIRDS}, task(1, 5), None, "data.source") == (
        [],
        ["data.source.target.joy: task.decimals: 0 leaves 5 of 13 distinct values and loses 4% of their variance"],
    )
    assert check_precision({"joy": THIRDS}, task(), Scale(1, 5), "data.source") == ([], [])


def test_values_on_another_scale_are_refused() -> None:
    """0 and 1 of a scale from 0 to 100 are a model that answers 0 or 1."""
    assert problems([0.0, 1.0] * 10, task()) == [
        "data.source: expected scores over the task's range, 0 to 100; got 0 to 1; write data.source.rescale: "
        "{low: 0, high: 1} (the ends of their own scale), or data.source.rescale: {low: 0, high: 100} if they are "
        "right as they are"
    ]
    assert problems([0.0, 1.0] * 10, task(), Scale(0, 100)) == []
    assert check_precision({"joy": [0.0, 1.0] * 10, "calm": [0.0, 90.0] * 10}, task(), None, "data.source")[1] == [
        "data.source.target.joy: values from 0 to 1 only, of 0 to 100; are they on another scale?"
    ]


def test_noise_of_floating_point_is_no_fault_and_digits_are_shown(tmp_path: Path) -> None:
    """1.0000000000000002 was refused as `expected 0 to 1; got 1`."""
    source = ImportSource.model_validate(
        {"kind": "import", "source_dir": str(tmp_path), "files": {"all": {"path": "x.csv"}}, "request": "all.text",
         "target": {"joy": "all.joy"}}
    )  # fmt: skip
    rows = "id,text,joy\na,x,1.0000000000000002\nb,y,-0.0000000000000002\nc,z,0.30000000000000004\n"
    (tmp_path / "x.csv").write_text(rows)
    assert [row.target["joy"] for row in read_import(source, task(0, 1, 1), "data.source").rows] == [1.0, 0.0, 0.3]
    (tmp_path / "x.csv").write_text("id,text,joy\na,x,1.0000002\n")
    with pytest.raises(DataError) as error:
        read_import(source, task(0, 1, 1), "data.source")
    assert str(error.value) == (
        f"{tmp_path}/x.csv:2: joy: expected 0 to 1 (the task's range; add data.source.rescale); got 1.0000002"
    )
    with pytest.raises(ValueError, match=r"^joy: expected 0 to 1; got 1\.0000000000000002$"):
        task(0, 1).check_target({"joy": 1.0000000000000002})
