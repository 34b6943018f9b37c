"""Pictures of committed results, for people who would rather look than read.

    python benchmarks/pictures.py [--out docs]

Draws `accuracy.svg` (the ladder on human ratings), `data_sizes.svg` (its curve over training rows) and
`training_speed.svg` from the raw figures in benchmarks/results.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from accuracy import COMMITTED, EMBEDDING, MEAN, NGRAMS, RESULTS, table
from matplotlib.figure import Figure

STYLE = {"svg.hashsalt": "ppe_lora", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
OURS, OTHERS = "#0072b2", "#9aa5b1"  # told apart by people with any colour vision
NAMES = {
    "cross_entropy, greedy": "plain SFT, greedy text",
    "cross_entropy, posterior_mean": "plain SFT, posterior mean",
    "cross_entropy, calibrated": "plain SFT, calibrated",
    "head, posterior_mean": "head's term, posterior mean",
    "head, calibrated": "head's term, calibrated",
    "numbers_head, posterior_mean": "RAFT, CRPS and head's term, posterior mean",
    "numbers_head, calibrated": "RAFT, CRPS and head's term, calibrated",
    "numbers_request_head, posterior_mean": "all three, scores from the request only, posterior mean",
    "numbers_request_head, calibrated": "all three, scores from the request only, calibrated",
}
BASELINES = (MEAN, NGRAMS, EMBEDDING)

SIZES = (250, 500, 1000, 2000)
CURVE = {
    "cross_entropy, greedy": "plain SFT, greedy text",
    "cross_entropy, calibrated": "plain SFT, calibrated",
    NGRAMS: "n-gram ridge",
    EMBEDDING: "e5 embedding ridge",
    MEAN: MEAN,
    "head, calibrated": "head's term, calibrated",
}


@mpl.rc_context(STYLE)
def bars(title: str, axis: str, named: Sequence[tuple[str, float, str, bool]], out: Path) -> None:
    """One bar per line, in the order given: its name, its length, what is written behind it, whether it is ours."""
    figure = Figure(figsize=(8, 0.8 + 0.34 * len(named)), layout="constrained")
    axes: Any = figure.subplots()
    names, lengths, labels, ours = zip(*named, strict=True)
    drawn = axes.barh(names, lengths, color=[OURS if own else OTHERS for own in ours])
    axes.bar_label(drawn, labels, padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, loc="left")
    axes.set_xlabel(axis)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


def draw_accuracy(out: Path) -> None:
    """Mean squared error on the 1,000 test rows, best last."""
    raw = json.loads(COMMITTED.read_text(encoding="utf-8"))
    lines = {line.name: line for line in table(raw)}
    first = lines["cross_entropy, greedy"].mse_norm
    kept = sorted((lines[name] for name in (*NAMES, *BASELINES)), key=lambda line: -line.mse_norm)
    named = [
        (NAMES.get(line.name, line.name), line.mse_norm, f"{line.mse_norm:.5f} ({line.mse_norm / first:.2f})",
         line.name in NAMES and line is not lines["cross_entropy, greedy"])
        for line in kept
    ]  # fmt: skip
    bars("Six emotion scores rated by people (EmoBank)", "mse_norm on 1,000 test rows; lower is better", named, out)


@mpl.rc_context(STYLE)
def draw_data_sizes(out: Path) -> None:
    """Mean squared error on the same 1,000 test rows by training rows, each name at the end of its line."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes: Any = figure.subplots()
    measured = [{line.name: line.mse_norm for line in table(by_size(rows))} for rows in SIZES]
    for name, shown in CURVE.items():
        ours = name == "head, calibrated"
        own = [lines[name] for lines in measured]
        colour = OURS if ours else OTHERS
        axes.plot(SIZES, own, marker="o", color=colour, linewidth=2.5 if ours else 1.5)
        end, beside = (SIZES[-1], own[-1]), {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{shown} {own[-1]:.5f}", end, color=colour, **beside)
    axes.set_xscale("log")
    axes.set_xticks(SIZES, [f"{rows:,}" for rows in SIZES])
    axes.minorticks_off()
    axes.set_xlabel("training rows")
    axes.set_ylabel("mse_norm on 1,000 test rows")
    axes.set_title("Six emotion scores rated by people (EmoBank)", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


def by_size(rows: int) -> dict[str, Any]:
    """The ladder's raw predictions with that many training rows."""
    path = COMMITTED.with_stem(f"{COMMITTED.stem}_{rows}")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def draw_training_speed(out: Path) -> None:
    """Rows per second of every way to train the same rows."""
    raw = json.loads((RESULTS / "train_speed_tiny.json").read_text(encoding="utf-8"))
    rate = {
        name: raw["rows_per_step"] / statistics.median(seconds) for name, seconds in raw["seconds_per_step"].items()
    }
    first = next(iter(rate.values()))
    named = [
        (name.replace("ours", "ppe_lora"), value, f"{value:.1f} ({value / first:.2f} times)", name.startswith("ours"))
        for name, value in rate.items()
    ]
    bars("Training a small Mistral on two CPU cores", "rows per second; higher is better", named, out)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    draw_accuracy(asked.out / "accuracy.svg")
    draw_data_sizes(asked.out / "data_sizes.svg")
    draw_training_speed(asked.out / "training_speed.svg")


if __name__ == "__main__":
    main()
