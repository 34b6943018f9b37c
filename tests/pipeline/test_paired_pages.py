"""leaderboard.html and comparison.html as a browser shows them: true figures, no requests, nothing runs off."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from ppe_lora.compare import compare_sides
from ppe_lora.evaluation.comparison import Comparison
from ppe_lora.evaluation.leaderboard import Leaderboard, build_leaderboard
from ppe_lora.recipe import load_recipe
from ppe_lora.report.comparison_page import write_comparison_page
from ppe_lora.report.leaderboard_page import write_leaderboard_page
from tests.evaluations import predictions, write_run
from tests.pages import open_page

HOSTILE = "<script>window.hacked = true</script><img src=x onerror='window.hacked = true'> {{ made }}"
PAGES = ("leaderboard.html", "comparison.html")


def rows(spread: float, seed: int, count: int = 60) -> list[dict[str, Any]]:
    found = np.random.default_rng(seed).normal(0, spread, count).clip(-30, 30).round()
    made = predictions([int(error) for error in found], rejected=[5])
    for row in made[:3]:
        row |= {"request": HOSTILE, "scenario": [HOSTILE] * 1, "style": HOSTILE}
    return made


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Leaderboard]:
    folder = tmp_path_factory.mktemp("board")
    runs = {}
    for rank, spread in ((4, 20), (8, 8), (16, 6)):
        run = write_run(folder / f"r{rank:02d}", rows(spread, rank), f"student.lora.rank={rank}", valid=1 / rank)
        runs[run] = load_recipe(run / "config.yaml")
    runs[folder / "r32"] = load_recipe(folder / "r16.yaml", ["name=r32"])
    found = build_leaderboard(runs, {"r32": HOSTILE})
    write_leaderboard_page(folder, "ranks", found)
    return folder, found


@pytest.fixture(scope="module")
def compared(board: tuple[Path, Leaderboard]) -> Comparison:
    folder, _ = board
    found = compare_sides((str(folder / "r04"), str(folder / "r16")), lambda recipe: folder)
    write_comparison_page(folder, found.comparison, (found.first, found.second))
    return found.comparison


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme", "locale"), [(1280, "light", "en-US"), (390, "dark", "ja-JP")])
def test_pages_open_cleanly(
    browser: Browser, board: tuple[Path, Leaderboard], compared: Comparison, name: str, width: int, scheme: Any,
    locale: str,
) -> None:  # fmt: skip
    """A page that needs the network, throws, scrolls sideways on a phone, or runs what a request says."""
    path = board[0] / name
    assert path.stat().st_size < 8e6
    page, faults = open_page(browser, path, width, color_scheme=scheme, locale=locale)
    assert faults == []
    assert page.evaluate("window.hacked") is None
    assert page.locator("section img, section script").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside = "e => e.closest('.scroll') || e.getBoundingClientRect().right <= innerWidth + 1"
    assert page.evaluate(f"[...document.querySelectorAll('main *')].every({inside})")
    page.context.close()


def test_the_leaderboard_shows_the_figures_of_its_runs(browser: Browser, board: tuple[Path, Leaderboard]) -> None:
    folder, found = board
    page, _ = open_page(browser, folder / "leaderboard.html", 1280, locale="en-US")
    assert page.locator("#verdict").inner_text().startswith("r16 is selected: ")
    for entry in found.entries:
        cells = page.locator(f"#runs-table tr[data-run={entry.name}] td").all_inner_texts()
        assert float(cells[1]) == pytest.approx(entry.error, abs=5e-5)
        assert cells[5] == ", ".join(found.beaten_by(entry.name))
        assert cells[6:] == ["passed", "1,000", "2.00", "2.500"]
    assert page.locator("#runs-table tr.selected").get_attribute("data-run") == "r16"
    assert page.locator("#pairs-table tbody tr").count() == 3
    assert HOSTILE in page.locator("#unfinished").inner_text()
    drawn = page.evaluate("document.querySelector('[data-figure=differences]').data.map(trace => trace.x[0])")
    assert drawn == pytest.approx([found.between("r16", name).difference for name in ("r08", "r04")])
    page.context.close()


def test_the_comparison_shows_its_figures(
    browser: Browser, board: tuple[Path, Leaderboard], compared: Comparison
) -> None:
    page, _ = open_page(browser, board[0] / "comparison.html", 1280, locale="en-US")
    assert page.locator("#verdict").inner_text().startswith("r16 is better than r04 on 60 test rows: ")
    assert [int(page.locator(f"#{name}").inner_text()) for name in ("wins", "ties", "losses")] == list(compared.tally)
    table = page.locator("#metrics details").first
    for name, found in compared.metrics[compared.served].items():
        cells = table.locator(f"tr[data-metric='{name}'] td").all_inner_texts()
        assert [float(cell.replace(",", "")) for cell in cells[1:3]] == pytest.approx(
            [found.first, found.second], abs=0.06
        )
        worded = {"better": found.is_shown, "worse": found.is_shown, "not shown": not found.is_shown}
        assert worded[cells[0]]
    assert page.locator("#rows article").count() == len(compared.improved(10)) + len(compared.worsened(10))
    assert page.locator("#slices", has_text=HOSTILE).count() == 1
    points = page.evaluate("document.querySelector('[data-figure=rows]').data[1].y.length")
    assert points == compared.rows
    page.context.close()
