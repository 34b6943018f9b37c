"""Whether a training learned, by the losses in its log: an advice that fits a slow training ruins one that diverged."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_WINDOWS = 10
_LEAST_STEPS = 4
_BEHIND = 1.2
"""Times the loss at the start: an end above this is no noise."""
_ROSE, _GAVE_BACK = 2.0, 0.3
"""Times the lowest loss, and the loss at the start: above both, much of what was learned is lost again."""
_FELL = 0.97
"""Of the loss some windows before: below this, it is still falling."""
_MOVED = 0.9
"""Of the loss at the start: above this, next to nothing was learned."""
TRAIN_MORE = "Train longer or raise train.learning_rate; evaluate.gate says what is accepted."


class LossCourse(NamedTuple):
    """Medians of the training loss over a tenth of the steps each, and the largest gradient norm."""

    start: float
    lowest: float
    before_end: float
    """Three tenths before the end."""
    end: float
    largest_gradient: float | None
    """Before clipping; None where the log has none."""

    @property
    def diverged(self) -> bool:
        """Whether the loss ended above where it started, or lost much of what had been learned."""
        lost = self.end > _ROSE * self.lowest and self.end > _GAVE_BACK * self.start
        return lost or self.end > _BEHIND * self.start

    @property
    def story(self) -> str:
        """The losses in words."""
        gradient = "" if self.largest_gradient is None else f", with gradient norms up to {self.largest_gradient:.3g}"
        return f"{self.start:.3g} at its start, {self.lowest:.3g} at its lowest and {self.end:.3g} at its end{gradient}"


def loss_course(losses: Sequence[float], gradients: Sequence[float] = ()) -> LossCourse | None:
    """The course of these losses, one a step; None where there are too few steps to tell one."""
    if len(losses) < _LEAST_STEPS:
        return None
    size = max(1, len(losses) // _WINDOWS)
    starts = range(len(losses) % size, len(losses), size)  # the last window ends with the last step
    medians = [statistics.median(losses[at : at + size]) for at in starts]
    finite = [one for one in gradients if math.isfinite(one)]
    return LossCourse(
        statistics.median(losses[:size]), min(medians), medians[-4], medians[-1], max(finite) if finite else None
    )


def read_loss_course(log: Path) -> LossCourse | None:
    """The course of a training by its `train_log.csv`."""
    with log.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    gradients = [float(line["grad_norm"]) for line in lines if line["grad_norm"]]
    return loss_course([float(line["loss"]) for line in lines], gradients)


def advice(course: LossCourse | None) -> str:
    """What to do about a training none of whose epochs answers in the format."""
    if course is None:
        return TRAIN_MORE
    if course.diverged:
        return (
            f"The training loss was {course.story}: training has diverged. Lower train.learning_rate, and begin again "
            "with `ppe-lora train RECIPE --fresh`."
        )
    if course.end > _MOVED * course.start or course.end < _FELL * course.before_end:
        return TRAIN_MORE
    return (
        f"The training loss was {course.story}, where it no longer falls: more epochs change little. Look at the "
        "texts in epochs/*/eval_predictions.jsonl; more rows or a larger student.lora.rank may help; evaluate.gate "
        "says what is accepted."
    )
