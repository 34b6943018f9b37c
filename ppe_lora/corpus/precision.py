"""What the task's range and decimals leave of the scores of a source, before anything is trained on them.

Letters: N values of one key.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppe_lora.cells import digits
from ppe_lora.tasks.scores import ScoresTask

MOST_LOST = 0.05
"""Largest share of a score's variance that rounding may take."""
_WORTH_A_NOTE = 0.01
_SMALL_PART = 0.1
"""Values that fill no more of the scale are likely on another one."""
SURE = 20
"""Fewer rows than these may fill little of a range by chance."""


class Scale(NamedTuple):
    """The ends of a source's own scale, which become those of the task's range."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{{low: {digits(self.low)}, high: {digits(self.high)}}}"


class Kept(NamedTuple):
    """What rounding to the task's decimals keeps of one score's values."""

    distinct: int
    """Distinct values before."""
    kept: int
    """Distinct values after."""
    lost: float
    """Mean squared change as a share of the variance, 1 at most; 0 for values that are all equal."""

    def __str__(self) -> str:
        return f"{self.kept} of {self.distinct} distinct values and loses {self.lost:.0%} of their variance"


def to_task(value: float, scale: Scale, task: ScoresTask) -> float:
    """A value of the source's scale as a target: mapped linearly, rounded to the task's decimals, halves to even."""
    # Rounded to 9 digits first: 3.14 is stored a little below, and its half would otherwise round down.
    return task.round(round(task.low + (value - scale.low) / (scale.high - scale.low) * task.span, 9))


def kept_of(values_N: Sequence[float], scale: Scale, task: ScoresTask) -> Kept:
    """What `to_task` keeps of values.

    Example:
        >>> kept_of([0.0, 0.4, 0.6, 1.0], Scale(0, 100), ScoresTask(keys=("a",)))[:2]
        (4, 2)
    """
    exact_N = (task.low + (np.array(values_N) - scale.low) / (scale.high - scale.low) * task.span).round(9)
    rounded_N = exact_N.round(task.decimals)
    variance = float(exact_N.var())
    lost = min(float(np.square(rounded_N - exact_N).mean()) / variance, 1.0) if variance else 0.0
    return Kept(len(np.unique(exact_N)), len(np.unique(rounded_N)), lost)


def check_precision(
    values: Mapping[str, Sequence[float]], task: ScoresTask, rescale: Scale | None, section: str
) -> tuple[list[str], list[str]]:
    """Problems and notes: scores that rounding ruins, and scores that are likely on another scale.

    Args:
        values: The values of each key on the source's scale, one at least.
        task: Its range and decimals.
        rescale: The source's scale where the recipe states one.
        section: The recipe section of the import.

    Returns:
        Problems, each with the line to write, and notes on what may be meant.
    """
    given = _Given(values, task, rescale, section)
    kept = given.kept(task, given.scale)
    words = {key: f"{section}.target.{key}: task.decimals: {task.decimals} leaves {one}" for key, one in kept.items()}
    ruined = [key for key, one in kept.items() if one.lost > MOST_LOST]
    if ruined:
        remedy = given.remedy()
        return [f"{words[key]} (5 % at most); {remedy}" for key in ruined], []
    if given.is_small and not rescale and len(next(iter(values.values()))) >= SURE:
        low, high = given.ends
        return [
            f"{section}: expected scores over the task's range, {task.low} to {task.high}; got {digits(low)} to "
            f"{digits(high)}; write {section}.rescale: {given.fitted} (the ends of their own scale), or "
            f"{section}.rescale: {given.scale} if they are right as they are"
        ], []
    notes = [words[key] for key, one in kept.items() if one.lost > _WORTH_A_NOTE]
    return [], notes + [f"{section}.target.{note}" for note in narrow(values, given.scale)]


def narrow(values: Mapping[str, Sequence[float]], scale: Scale) -> list[str]:
    """A note on each key whose values take a small part of the scale."""
    ends = {key: Scale(min(values_N), max(values_N)) for key, values_N in values.items()}
    return [
        f"{key}: values from {digits(own.low)} to {digits(own.high)} only, of {digits(scale.low)} to "
        f"{digits(scale.high)}; are they on another scale?"
        for key, own in ends.items()
        if 0 < own.high - own.low <= _SMALL_PART * (scale.high - scale.low)
    ]


class _Given(NamedTuple):
    values: Mapping[str, Sequence[float]]
    task: ScoresTask
    rescale: Scale | None
    section: str

    @property
    def scale(self) -> Scale:
        return self.rescale or Scale(self.task.low, self.task.high)

    @property
    def ends(self) -> Scale:
        return Scale(min(map(min, self.values.values())), max(map(max, self.values.values())))

    @property
    def fitted(self) -> Scale:
        """The ends of the values, as whole numbers."""
        low, high = self.ends
        return Scale(math.floor(low), max(math.ceil(high), math.floor(low) + 1))

    @property
    def is_small(self) -> bool:
        return 0 < self.ends.high - self.ends.low <= _SMALL_PART * (self.scale.high - self.scale.low)

    def kept(self, task: ScoresTask, scale: Scale) -> dict[str, Kept]:
        return {key: kept_of(values_N, scale, task) for key, values_N in self.values.items()}

    def remedy(self) -> str:
        """What to do: the first of the lines to write that keeps enough of every score."""
        tenths, wide = {"decimals": 1}, {"low": 0, "high": 100}
        fitted: list[tuple[dict[str, int], Scale | None]] = [({}, self.fitted), (tenths, self.fitted)]
        changes: list[tuple[dict[str, int], Scale | None]] = [(tenths, self.rescale)]
        if not self.rescale:
            changes = fitted + changes if self.is_small else changes + fitted
        changes += [(wide, self.rescale or self.fitted), (wide, self.ends)]
        for change, rescale in changes:
            kept = self.kept(self.task.model_copy(update=change), rescale or self.scale)
            if all(one.lost <= MOST_LOST for one in kept.values()):
                break
        else:
            return "leave the key out of task.keys: no range and decimals keep it beside the others"
        lines = [f"task.{key}: {value}" for key, value in change.items()]
        if rescale and rescale != self.rescale:
            lines.append(f"{self.section}.rescale: {rescale} (the ends of their own scale)")
        return f"write {' and '.join(lines)}"
