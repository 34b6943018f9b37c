"""`ppe-lora data stats`, and the page it writes as a browser shows it: true numbers, no requests, nothing runs off."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

import ppe_lora.corpus.build as build_module
from ppe_lora.artifacts import hash_file, read_json
from ppe_lora.corpus.teachers import Phrased, make_teacher
from tests.command import ppe_lora
from tests.pages import open_page
from tests.tiny import tiny_llama

PAGE = "data_report.html"
SPLITS = ("train", "valid", "test")
HOSTILE = "<script>window.hacked = true</script><img src=x onerror='window.hacked = true'> & a \"calm\" tune {{ made }}"
LEAK = f"{HOSTILE} at seventy"
ALIKE = f"{HOSTILE} </script><b>please</b>, for a walk by the sea"
SPOILT = (LEAK, HOSTILE, ALIKE, "", "</td></table><style>body{display:none}</style> energy, please")


class HostileTeacher:
    """The scripted teacher, but its first English texts are an attack on whoever shows them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._inner = make_teacher(*arguments, **options)
        self.name = self._inner.name
        self.version = self._inner.version
        self._spoilt = iter(SPOILT)

    def phrase(self, asks: Any) -> list[Phrased]:
        phrased = zip(asks, self._inner.phrase(asks), strict=True)
        return [
            Phrased(next(self._spoilt, said.text) if ask.language == "en" else said.text, said.scenario)
            for ask, said in phrased
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A described data set in both languages, with rejects and with rows over the student's limit."""
    here = tmp_path_factory.mktemp("page")
    tiny_llama(here / "model")
    source = "{kind: generate, rows: 400, languages: {ja: 1, en: 1}}"
    filters = "{length: {en: [30, 300], ja: [12, 110]}}"
    (here / "r.yaml").write_text(
        f"data: {{name: d, source: {source}, filters: {filters}, split: {{valid: 0.2, test: 0.2}}}}\n"
        f"student: {{model: '{here / 'model'}', max_tokens: 600}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(build_module, "make_teacher", HostileTeacher)
        # This filter drops markup; the page must be safe without its help.
        patch.setattr("ppe_lora.corpus.filters.meta_answer", lambda row: None)
        assert ppe_lora("data", "build", "r.yaml") == 0
        assert ppe_lora("data", "stats", "r.yaml") == 0
        yield here / "data" / "d"


def number(text: str) -> float:
    return float(text.replace(",", "").replace(" %", ""))


@pytest.mark.parametrize(
    ("width", "scheme", "locale", "heading"),
    [(1280, "light", "en-US", "Rejects by rule"), (390, "dark", "ja-JP", "除外された行")],
)
def test_the_page_opens_cleanly(
    browser: Browser, folder: Path, width: int, scheme: Any, locale: str, heading: str
) -> None:
    """A page that needs the network, throws, or scrolls sideways on a phone; hostile texts that run or hide it."""
    page, faults = open_page(browser, folder / PAGE, width, color_scheme=scheme, locale=locale)
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside = "e => e.closest('.scroll') || e.getBoundingClientRect().right <= innerWidth + 1"
    assert page.evaluate(f"[...document.querySelectorAll('main *')].every({inside})")
    assert page.locator("#rejects h2").inner_text() == heading
    assert page.evaluate("window.hacked") is None
    assert page.locator("section img, section script, section style, section b:text('please')").count() == 0
    page.context.close()


def test_hostile_texts_are_shown_as_they_are(browser: Browser, folder: Path) -> None:
    """What a teacher wrote must be read as text, wherever a row can turn up."""
    page, _ = open_page(browser, folder / PAGE, 1280)
    leak = page.locator("#rejects details", has_text="numeric leak")
    leak.evaluate("element => { element.open = true }")
    assert leak.locator("li", has_text=LEAK).count() == 1
    assert leak.locator("li", has_text=LEAK).locator("mark").inner_text() == "seventy"
    nearest = page.locator("#near article").first.inner_text()
    assert HOSTILE in nearest
    assert ALIKE in nearest
    page.context.close()


def test_only_the_page_s_own_scripts_run(browser: Browser, folder: Path) -> None:
    """The second fence: were a text ever shown unescaped, it still could not run or send anything."""
    page, faults = open_page(browser, folder / PAGE, 1280)
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.injected = true'; document.body.append(s)"
    )
    with page.expect_event("requestfailed") as failed:
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.org/x.png\">')")
    assert failed.value.failure == "csp"
    assert page.evaluate("window.injected") is None
    assert any("Executing inline script violates" in fault for fault in faults)
    page.context.close()


def test_the_numbers_are_those_of_the_files(browser: Browser, folder: Path) -> None:
    """A page whose numbers are not those of stats.json makes both worthless."""
    page, _ = open_page(browser, folder / PAGE, 1280, locale="en-US")
    stats, manifest = read_json(folder / "stats.json"), read_json(folder / "manifest.json")
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    counts = stats["counts"]
    assert {split: number(page.locator(f"#rows-{split}").inner_text()) for split in SPLITS} == counts["split"]
    assert number(page.locator("#asked").inner_text()) == manifest["asked"] == 400
    assert number(page.locator("#rejected").inner_text()) == len(rejected) > 20
    for split in SPLITS:
        for key, found in stats["keys"][split].items():
            cells = page.locator(f"#key-{key} tr[data-split={split}] td").all_inner_texts()
            exact = [found["mean"], found["variance"] ** 0.5, *found["quantiles"].values()]
            assert list(map(number, cells)) == pytest.approx(exact, abs=0.0501)
    for field in ("language", "style", "sampler"):
        for value in counts[field]["train"]:
            cells = page.locator(f"#balance-{field} tr[data-value={value}] td").all_inner_texts()
            kept = [counts[field][split].get(value, 0) for split in SPLITS]
            asked = sum(kept) + sum(line["row"][field] == value for line in rejected)
            assert number(cells[0]) == asked
            assert number(cells[1]) == pytest.approx(100 * sum(kept) / asked, abs=0.0501)
            assert [number(cell.split()[0]) for cell in cells[2:]] == kept
    figures = json.loads(page.locator("#figures").text_content() or "")
    for key in stats["keys"]["train"]:
        asked_bars, kept_bars = (trace["y"] for trace in figures[f"key-{key}"]["data"][:2])
        assert (sum(asked_bars), sum(kept_bars)) == (400, sum(counts["split"].values()))
    drawn = page.evaluate("document.querySelector('[data-figure=key-energy]').data[1].y")
    assert sum(drawn) == sum(counts["split"].values())
    page.context.close()


def test_figures_follow_the_theme_and_the_language(browser: Browser, folder: Path) -> None:
    """Dark text on a dark ground, or English words in a Japanese page."""
    page, faults = open_page(browser, folder / PAGE, 1280, color_scheme="light", locale="en-US")
    bar = page.locator("[data-figure=key-energy] .bars .point path").nth(25)
    hover = "document.querySelector('[data-figure=key-energy]').data[1].hovertemplate"
    expect(bar).to_have_css("fill", "rgb(31, 111, 181)")
    assert "kept" in page.evaluate(hover)
    page.emulate_media(color_scheme="dark")
    expect(bar).to_have_css("fill", "rgb(90, 169, 230)")
    page.get_by_role("button", name="日本語").click()
    assert "採用" in page.evaluate(hover)
    assert page.locator("#verdict").inner_text().startswith("候補 400 件のうち")
    assert faults == []
    page.context.close()


def test_equal_data_make_equal_pages_and_a_new_build_removes_the_old_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report of older data beside new data; or a rebuild that refuses because of our own report."""
    before = hash_file(folder / "data_report.html")
    assert (folder / "data_report.html").stat().st_size < 8e6
    assert ppe_lora("data", "stats", "r.yaml") == 0
    assert hash_file(folder / "data_report.html") == before
    said = capsys.readouterr().out
    rows = read_json(folder / "stats.json")["counts"]["split"]
    assert f"{rows['train']} train, {rows['valid']} valid, {rows['test']} test." in said
    assert said.splitlines()[-1] == "data/d/data_report.html"
    manifest = read_json(folder / "manifest.json")
    assert manifest["files"]["stats.json"] == hash_file(folder / "stats.json")

    assert ppe_lora("data", "build", "r.yaml", "seed=1", "data.name=other") == 0
    assert "`ppe-lora data stats RECIPE` writes data_report.html" in capsys.readouterr().out
    assert ppe_lora("data", "stats", "r.yaml", "data.name=other", "student.model=./nowhere") == 0
    said = capsys.readouterr().out
    assert "no lengths in tokens: student.model: expected an existing folder" in said
    other = folder.parent / "other"
    assert "No lengths in tokens:" in (other / "data_report.html").read_text()
    assert ppe_lora("data", "build", "r.yaml", "seed=2", "data.name=other") == 0
    assert not (other / "data_report.html").exists()


def test_no_data_no_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ppe_lora("data", "stats", "r.yaml", "data.name=missing") == 2
    assert capsys.readouterr().err == (
        "error: data/missing: expected a finished data set; got none; make it with `ppe-lora data build RECIPE`\n"
    )
