"""A comparison as Markdown and JSON, and its verdict."""

from pathlib import Path

from ppe_lora.artifacts import write_json, write_text
from ppe_lora.evaluation.comparison import ComparedSlice, Comparison, ReadOuts, RowChange
from ppe_lora.evaluation.paired import Difference
from ppe_lora.report.leaderboard import interval, number, p_value
from ppe_lora.report.page import Words
from ppe_lora.report.run_words import LATENCY_NOTE, READ_OUTS

SHOWN_ROWS = 20
"""Of the rows that changed most, to either side."""
_SHOWN_SLICES = 40
"""Of one field."""


def write_comparison(folder: Path, comparison: Comparison) -> str:
    """Write `comparison.md` and `comparison.json`.

    Returns:
        The verdict and the table of overall metrics, for the console.
    """
    write_json(folder / "comparison.json", comparison.as_json(SHOWN_ROWS))
    write_text(folder / "comparison.md", _markdown(comparison))
    served = comparison.metrics[comparison.served]
    lines = [verdict(comparison).en]
    lines += [f"  {name}: {_told(found)}" for name, found in served.items() if "/" not in name]
    return "\n".join([*lines, str(folder / "comparison.md")])


def verdict(comparison: Comparison) -> Words:
    """Whether the second is better, by how much, and whether that is sure."""
    first, second = comparison.names
    found = comparison.headline
    figures = f"mse_norm {found.first:.4f} → {found.second:.4f}, {interval(found)}, p {p_value(found)}"
    rows = comparison.rows
    if not found.is_shown:
        return Words(
            f"{rows:,} test rows show no difference between {first} and {second}: {figures}.",
            f"テスト {rows:,} 件では {first} と {second} の差は示されません: {figures}。",
        )
    if found.difference < 0:
        return Words(
            f"{second} is better than {first} on {rows:,} test rows: {figures}.",
            f"テスト {rows:,} 件で {second} は {first} に勝ります: {figures}。",
        )
    return Words(
        f"{second} is worse than {first} on {rows:,} test rows: {figures}.",
        f"テスト {rows:,} 件で {second} は {first} に劣ります: {figures}。",
    )


def read_out_words(read_outs: ReadOuts) -> Words:
    """The read-outs that a table compares."""
    one, other = (READ_OUTS[name] for name in read_outs)
    return one if one == other else Words(f"{one.en} → {other.en}", f"{one.ja} → {other.ja}")


def shown_slices(comparison: Comparison) -> list[ComparedSlice]:
    """The slices that a page has room for: of each field those with the most rows."""
    by_field: dict[str, list[ComparedSlice]] = {}
    for one in comparison.slices:  # the largest of a field first
        by_field.setdefault(one.field, []).append(one)
    return [one for own in by_field.values() for one in own[:_SHOWN_SLICES]]


def notes(comparison: Comparison) -> list[Words]:
    """What a reader must know about the rows and the figures."""
    first, second = comparison.names
    one, other = comparison.rejected
    found = [
        Words(
            "Differences are second minus first over paired rows, with 95 % bootstrap intervals; p is of a paired "
            "permutation test. A difference counts as shown where the interval excludes zero and p is below 0.05. "
            "Of twenty figures without a difference, one is marked as shown by chance: the verdict is about the first.",
            "差は対応する行の「後 − 前」、区間は 95 % ブートストラップ区間、p は対応のある並べ替え検定の値です。"
            "区間が 0 を含まず p が 0.05 未満のとき差ありとします。"
            "差のない指標でも 20 個に 1 個は偶然に差ありとなるため、結論は最初の指標によります。",
        ),
        Words(
            f"Rejected greedy texts: {one:,} of {first}, {other:,} of {second}; in the figures of the greedy text each "
            "counts as the worst answer.",
            f"不正な貪欲デコードの文字列: {first} {one:,} 件、{second} {other:,} 件。"
            "貪欲デコードの数値では、それぞれ許される最悪の回答として数えます。",
        ),
    ]
    if comparison.latency_ms:
        found.append(LATENCY_NOTE)
    if more := len(comparison.slices) - len(shown_slices(comparison)):
        found.append(
            Words(
                f"{more:,} smaller slices are not shown; comparison.json has all of them.",
                f"小さい区分 {more:,} 件は表示していません(comparison.json にすべてあります)。",
            )
        )
    if comparison.left_out:
        count = comparison.left_out
        found.append(
            Words(
                f"{count:,} test rows were decoded by one side only (too long for the other), and are left out.",
                f"片方だけが処理した {count:,} 件(もう一方には長すぎる)は除外しました。",
            )
        )
    if comparison.devices[0] != comparison.devices[1]:
        one_device, other_device = comparison.devices
        found.append(
            Words(
                f"Latencies were measured on different devices ({one_device}, {other_device}).",
                f"応答時間は異なるデバイスで測りました ({one_device}、{other_device})。",
            )
        )
    return found


def _told(found: Difference) -> str:
    told = "" if found.is_shown else "  (no difference shown)"
    return f"{number(found.first)} → {number(found.second)}  {interval(found)}  p {p_value(found)}{told}"


def _markdown(comparison: Comparison) -> str:
    first, second = comparison.names
    wins, ties, losses = comparison.tally
    lines = [f"# {first} → {second}", "", verdict(comparison).en, ""]
    lines += [f"Row by row: {second} is better on {wins:,}, the same on {ties:,}, worse on {losses:,}.", ""]
    for read_outs, by_name in comparison.metrics.items():
        served = " (served)" if read_outs == comparison.served else ""
        lines += _table(f"{read_out_words(read_outs).en}{served}", comparison.names, by_name)
    lines += _table("format of the greedy text", comparison.names, comparison.formats)
    if comparison.latency_ms:
        lines += [f"| latency, one request at a time | {first} | {second} |", "| --- | --- | --- |"]
        lines += [f"| {name} | {one:.1f} | {other:.1f} |" for name, (one, other) in comparison.latency_ms.items()]
        lines.append("")
    if comparison.slices:
        lines += [
            f"| slice | rows | {first} | {second} | difference in mse_norm | p, adjusted |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
    for one in shown_slices(comparison):
        cells = ["", "", "", ""]
        if one.difference is not None:
            cells = [number(one.difference.first), number(one.difference.second)]
            cells += [interval(one.difference), p_value(one.difference)]
        lines.append(f"| {one.field}: {one.value} | {one.rows} | {' | '.join(cells)} |")
    for title, rows in (
        ("improved most", comparison.improved(SHOWN_ROWS // 2)),
        ("worsened most", comparison.worsened(SHOWN_ROWS // 2)),
    ):
        lines += ["", f"| {title} | {first} | {second} | target |", "| --- | --- | --- | --- |", *map(_row, rows)]
    lines += ["", *(note.en + "\n" for note in notes(comparison))]
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, names: tuple[str, str], by_name: dict[str, Difference]) -> list[str]:
    head = [f"| {title} | {names[0]} | {names[1]} | difference | p | |", "| --- | --- | --- | --- | --- | --- |"]
    lines = [
        f"| {name} | {number(found.first)} | {number(found.second)} | {interval(found)} | {p_value(found)} | "
        f"{'shown' if found.is_shown else ''} |"
        for name, found in by_name.items()
    ]
    return [*head, *lines, ""]


def _row(change: RowChange) -> str:
    request = change.request.replace("|", "\\|").replace("\n", " ")
    sides = ((change.first, change.first_mse_norm), (change.second, change.second_mse_norm))
    cells = [f"{error:.4f}: {answer_text(answer)}" for answer, error in sides]
    return f"| {request} | {' | '.join(cells)} | {answer_text(change.target)} |"


def answer_text(answer: dict[str, float] | None) -> str:
    """An answer's values in the order of the keys."""
    return "rejected" if answer is None else ", ".join(f"{value:g}" for value in answer.values())
