"""Which epoch is the best: a gate on the format, then the smallest true error. Never the token loss."""

import math
from collections.abc import Mapping

from ppe_lora.errors import SelectionError
from ppe_lora.evaluation.loss_course import TRAIN_MORE
from ppe_lora.recipe.schema import ReadOut


def select_epoch(
    metrics_by_epoch: Mapping[int, Mapping[str, float]],
    gate: float,
    read_out: ReadOut = "greedy",
    advice: str = TRAIN_MORE,
) -> int:
    """The epoch to serve: among those whose format rates pass the gate, the one with the smallest
    mse_norm of the read-out, which is a number only while training has not diverged.

    Ties go to the earlier epoch.

    Args:
        metrics_by_epoch: Epoch number to its decoded metrics.
        gate: Lowest json_valid_rate and schema_valid_rate that pass.
        read_out: The read-out that will be served.
        advice: What to do where no epoch passes (see `loss_course.advice`).

    Raises:
        SelectionError: No epoch passes; the message names the nearest.
    """
    name = selected_by(read_out)
    passing = [
        epoch
        for epoch, metrics in metrics_by_epoch.items()
        if format_rate(metrics) >= gate and math.isfinite(metrics.get(name, math.nan))
    ]
    if passing:
        return min(passing, key=lambda epoch: (metrics_by_epoch[epoch][name], epoch))
    if not metrics_by_epoch:
        raise SelectionError("selection: expected at least one evaluated epoch; got none")
    nearest = max(metrics_by_epoch, key=lambda epoch: format_rate(metrics_by_epoch[epoch]))
    found = metrics_by_epoch[nearest]
    if format_rate(found) >= gate:
        raise SelectionError(f"selection: no epoch that passes the format gate of {gate:g} has a {name}. {advice}")
    raise SelectionError(
        f"selection: no epoch passes the format gate of {gate:g}; the nearest is epoch {nearest} with "
        f"json_valid_rate {found['json_valid_rate']:.3f} and schema_valid_rate {found['schema_valid_rate']:.3f}. "
        f"{advice}"
    )


def held_back(metrics_by_epoch: Mapping[int, Mapping[str, float]], gate: float, read_out: ReadOut) -> str | None:
    """What to tell where the gate keeps out an epoch with a smaller error than the selected one; None elsewhere.
    Arguments and errors as of `select_epoch`."""
    taken, better = (select_epoch(metrics_by_epoch, least, read_out) for least in (gate, 0.0))
    if taken == better:
        return None
    name, rate = selected_by(read_out), format_rate(metrics_by_epoch[better])
    own, other = (metrics_by_epoch[epoch][name] for epoch in (taken, better))
    forced = (
        "" if read_out == "greedy" else "; only greedy text can be invalid when served, so a lower gate may be better"
    )
    return (
        f"epoch {better} has {name} {other:.4f}, epoch {taken} {own:.4f}, but {rate:.3f} of its greedy texts are valid "
        f"and evaluate.gate is {gate:g}{forced}"
    )


def metric_of(read_out: ReadOut) -> str:
    """The name of a read-out's mse_norm."""
    return "mse_norm" if read_out == "greedy" else f"mse_norm_{read_out}"


def selected_by(read_out: ReadOut) -> str:
    """The metric that selects the epoch: that of the read-out, or of the posterior mean where it is corrected later."""
    return metric_of("posterior_mean" if read_out == "calibrated" else read_out)


def format_rate(metrics: Mapping[str, float]) -> float:
    """The lower of json_valid_rate and schema_valid_rate, the figure the gate looks at."""
    return min(metrics["json_valid_rate"], metrics["schema_valid_rate"])
