"""`leaderboard.html`: the runs of a sweep for a person to choose from."""

from pathlib import Path

from ppe_lora.artifacts import write_text
from ppe_lora.evaluation.leaderboard import Leaderboard
from ppe_lora.evaluation.paired import Difference
from ppe_lora.report.intervals import differences_figure, interval_lines
from ppe_lora.report.leaderboard import (
    SHOWN,
    against_selected,
    gigabytes,
    interval,
    metric_label,
    number,
    p_value,
    verdict,
)
from ppe_lora.report.page import Words, render_page
from ppe_lora.report.run_words import LATENCY_NOTE

FILE_NAME = "leaderboard.html"
_NOTES = (
    Words(
        "Intervals are paired 95 % bootstrap intervals over the test rows that all runs decoded; p is of a paired "
        "permutation test, adjusted for the number of pairs (Benjamini-Hochberg). One run beats another only where the "
        "interval excludes zero and p is below 0.05. A rejected answer counts as the worst admissible one.",
        "区間は、すべての実行が処理したテスト行についての対応のある 95 % ブートストラップ区間、"
        "p は並べ替え検定の値(組の数で補正、Benjamini-Hochberg)です。"
        "区間が 0 を含まず p が 0.05 未満のときだけ「勝る」とします。不正な回答は許される最悪の回答として数えます。",
    ),
)


def write_leaderboard_page(folder: Path, title: str, board: Leaderboard) -> None:
    """Write the page. Equal leaderboards make equal pages."""
    against: dict[str, Difference] = {}
    for entry in board.entries:
        found = against_selected(board, entry)
        if found is not None:
            against[entry.name] = found
    first = board.entries[0].stored
    inputs = first.manifest["inputs"]
    html = render_page(
        "leaderboard.html.j2",
        {"differences": differences_figure(against)} if against else {},
        title=title,
        board=board,
        verdict=verdict(board),
        keys=list(board.entries[0].settings),
        lines={line.name: line for line in interval_lines(against, "mse_norm")},
        pairs=interval_lines({f"{one} → {other}": found for (one, other), found in board.pairs.items()}, "mse_norm"),
        metric_groups=_metric_groups(board),
        notes=[*_NOTES, LATENCY_NOTE],
        made={
            "test rows": inputs["test_rows"],
            "metric version": inputs["metric_version"],
            "data set": f"{first.recipe.data.name}, {board.entries[0].training['inputs']['dataset_version']}",
            "student": first.recipe.student.model,
            "device": first.manifest["device"],
            "git_revision": first.manifest["git_revision"],
        },
        interval=interval,
        p_value=p_value,
        number=number,
        gigabytes=gigabytes,
        label=lambda name: metric_label(name, board),
    )
    write_text(folder / FILE_NAME, html)


def _metric_groups(board: Leaderboard) -> list[tuple[Words, list[str]]]:
    known = {name: None for entry in board.entries for name in entry.stored.metrics}
    keyed = [name for name in known if "/" in name]
    rest = [name for name in known if name not in SHOWN and name not in keyed]
    groups = [
        (Words("Overall", "全体"), [name for name in SHOWN if name in known]),
        (Words("By key", "キー別"), keyed),
        (Words("All others", "その他"), rest),
    ]
    return [(heading, names) for heading, names in groups if names]
