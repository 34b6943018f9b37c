"""`ppe-lora report`, and the page it writes as a browser shows it: the four answers first, true numbers, no requests,
nothing runs off, 2,000 rows."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from ppe_lora.artifacts import hash_file, read_json, read_jsonl, write_json, write_manifest, write_text
from ppe_lora.recipe import load_recipe
from ppe_lora.report.checklist import checklist
from ppe_lora.report.run_analysis import analyse
from ppe_lora.report.run_cost import run_cost
from ppe_lora.report.run_folder import RunFolder, read_run_folder
from tests.command import ppe_lora
from tests.pages import open_page
from tests.run_folders import build_data, make_run, profile_recipe

HOSTILE = (
    "<script>window.hacked = true</script><img src=x onerror='window.hacked = true'> & a \"calm\" tune {{ made }}",
    "</script></td></table><style>body{display:none}</style> a calm tune, please, for my evening",
    "a tune \u202e for the \u2028 right-to-left \u202c walk 🎻🌧️ שיר רגוע לערב גשום אחרי העבודה",
    "[[plain|weird]] a calm tune var(--ink) for the long way home by the sea",
)
KEYS = ("energy", "warmth", "brightness", "acousticness", "complexity", "nostalgia")


BETTER = "Better than every baseline measured: the middle of the range, the train mean, n-gram ridge regression."


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the data set `profile` (about a hundred test rows, some of them hostile) and two
    reported runs on it: `profile`, which serves the posterior mean, and `greedy`, with rejected answers."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = profile_recipe(folder, 150, 0.7)
    data = build_data(recipe, folder / "data" / "profile", HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("ppe_lora.evaluation.intervals._RESAMPLES", 299)  # enough for pages, and quick
        make_run(recipe, Path("data/profile"), Path("checkpoints/profile"), skill=0.55)
        (folder / "greedy.yaml").write_text((folder / "profile.yaml").read_text().replace("posterior_mean", "greedy"))
        make_run(load_recipe(folder / "greedy.yaml"), data, Path("checkpoints/greedy"), skill=0.2, rejected=HOSTILE)
        assert ppe_lora("report", "profile.yaml") == 0
        assert ppe_lora("report", "checkpoints/greedy") == 0
        yield folder


@pytest.mark.parametrize(
    ("run", "width", "scheme", "locale", "heading"),
    [
        ("profile", 1280, "light", "en-US", "Release checklist"),
        ("profile", 390, "dark", "ja-JP", "リリース前の確認"),
        ("greedy", 390, "light", "en-US", "Release checklist"),
    ],
)
def test_the_page_opens_cleanly(
    browser: Browser, here: Path, run: str, width: int, scheme: Any, locale: str, heading: str
) -> None:
    """A page that needs the network, throws, or scrolls sideways on a phone; hostile texts that run or hide it."""
    path = here / "checkpoints" / run / "report.html"
    page, faults = open_page(browser, path, width, color_scheme=scheme, locale=locale)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inside = "e => e.closest('.scroll, pre') || e.getBoundingClientRect().right <= innerWidth + 1"
    assert page.evaluate(f"[...document.querySelectorAll('header *, main *')].filter(e => !({inside})(e)).length") == 0
    assert page.locator("#checklist h2").inner_text() == heading
    assert page.evaluate("window.hacked") is None
    assert page.locator("section img, section script, section style").count() == 0
    page.context.close()


def test_the_first_screen_answers_the_four_questions(browser: Browser, here: Path) -> None:
    """A report whose verdict has to be searched for is not read. Also on a phone."""
    for width, height in ((1280, 900), (390, 844)):
        page, _ = open_page(browser, here / "checkpoints" / "profile" / "report.html", width, locale="en-US")
        page.set_viewport_size({"width": width, "height": height})
        assert page.locator("#verdict").inner_text().endswith(BETTER)
        questions = page.locator(".answers article")
        asked = ["Is it better?", "By how much?", "Am I sure?", "Where is it wrong?"]
        assert questions.locator("h2").all_inner_texts() == asked
        assert questions.last.evaluate("e => e.getBoundingClientRect().bottom") <= height
        page.context.close()
    metrics = read_json(here / "checkpoints" / "profile" / "test" / "eval_metrics.json")
    less = 100 * (1 - metrics["mse_norm_posterior_mean"] / metrics["train_mean_mse_norm"])
    text = (here / "checkpoints" / "profile" / "report.html").read_text()
    assert f"{less:.0f} % less error" in text
    assert f"mse_norm {metrics['mse_norm_posterior_mean']:#.3g}" in text


def test_the_numbers_are_those_of_the_files(browser: Browser, here: Path) -> None:
    """A page whose numbers are not those of the metrics makes both worthless."""
    run = here / "checkpoints" / "profile"
    page, _ = open_page(browser, run / "report.html", 1280, locale="en-US")
    metrics = read_json(run / "test" / "eval_metrics.json")

    def figure(place: str, name: str) -> float:
        return float(page.locator(f"{place} [data-bar='{name}'] .figure").inner_text())

    for name, metric in (
        ("middle of the range, always", "constant_mse_norm"),
        ("train mean, always", "train_mean_mse_norm"),
        ("ridge regression on character n-grams", "ridge_mse_norm"),
        ("this model, greedy text", "mse_norm"),
        ("this model, posterior mean", "mse_norm_posterior_mean"),
    ):
        assert figure("#bars", name) == pytest.approx(metrics[metric], rel=0.005), name
    for key in KEYS:
        expected = metrics[f"mse_norm_posterior_mean/{key}"]
        assert figure("#key-bars", key) == pytest.approx(expected, rel=0.005)
    for name in ("p50", "p95", "p99"):
        shown = page.locator(f"#latency-{name}").inner_text().split()[0]
        assert float(shown) == pytest.approx(metrics[f"latency_ms_{name}"], abs=0.05)
    worst = page.locator("#worst article").first
    predictions = {row["id"]: row for row in read_jsonl(run / "test" / "eval_predictions.jsonl")}
    errors = {
        name: np.mean([(row["posterior_mean"][key] - row["target"][key]) ** 2 for key in KEYS]) / 1e4
        for name, row in predictions.items()
    }
    assert worst.get_attribute("data-id") == max(errors, key=lambda name: errors[name])
    drawn = page.evaluate("document.querySelector('[data-figure=key-energy]').data.map(trace => trace.x.length)")
    assert sum(drawn[2:4]) == len(predictions)
    covered = page.locator("#covered tr[data-key=all] td").first.inner_text()
    assert 60 < float(covered.split()[0]) < 95
    page.context.close()


def test_baselines_that_are_models_are_shown_while_they_are_of_these_rows(browser: Browser, here: Path) -> None:
    """As `ppe-lora baselines --models` leaves them, a rejected answer as wrong as can be. The four answers still fit
    on a phone's first screen."""
    run = shutil.copytree(here / "checkpoints" / "profile", here / "checkpoints" / "measured")
    rows = read_jsonl(run / "test" / "eval_predictions.jsonl")
    flat = dict.fromkeys(KEYS, 50.0)
    lines = [
        {"id": row["id"], "embeddings": flat, "untuned": None if at else flat, "plain_sft": near}
        for at, row in enumerate(rows)
        for near in [{key: abs(value - 1) for key, value in row["target"].items()}]
    ]
    write_text(run / "baselines" / "predictions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    test_rows = read_json(run / "test" / "manifest.json")["inputs"]["test_rows"]
    write_manifest(run / "baselines", {"test_rows": test_rows})
    assert ppe_lora("report", "checkpoints/measured") == 0
    page, faults = open_page(browser, run / "report.html", 390, locale="en-US")
    page.set_viewport_size({"width": 390, "height": 844})
    assert faults == []
    assert page.locator(".answers article").last.evaluate("e => e.getBoundingClientRect().bottom") <= 844
    said = {
        name: float(page.locator(f"[data-bar='{name}'] .figure").first.inner_text())
        for name in (
            "plain SFT at this learning rate, greedy text",
            "base model untuned, greedy text",
            "middle of the range, always",
        )
    }
    assert said["plain SFT at this learning rate, greedy text"] == pytest.approx(0.0001)
    assert said["base model untuned, greedy text"] > 2 * said["middle of the range, always"]
    page.context.close()
    assert "but worse than plain SFT at this learning rate" in (run / "summary.md").read_text()

    write_manifest(run / "baselines", {"test_rows": "others"})
    assert ppe_lora("report", "checkpoints/measured") == 0
    assert "| plain SFT at this learning rate, greedy text |" not in (run / "summary.md").read_text()


def test_hostile_texts_and_answers_are_shown_as_they_are(browser: Browser, here: Path) -> None:
    """What a person or a model wrote must be read as text: hostile requests, and texts that were rejected."""
    page, _ = open_page(browser, here / "checkpoints" / "greedy" / "report.html", 1280, locale="en-US")
    predictions = read_jsonl(here / "checkpoints" / "greedy" / "test" / "eval_predictions.jsonl")
    hostile = [row["request"] for row in predictions if row["request"] in HOSTILE]
    assert len(hostile) >= 2
    rejected = page.locator("#worst article pre.raw").all_text_contents()
    assert len(rejected) == len(hostile)
    assert all(text.endswith("}</script>") for text in rejected)
    shown = page.locator("#worst article .request").all_text_contents()[: len(hostile)]
    assert sorted(shown) == sorted(hostile)
    assert (
        "On the test rows the format of the greedy text is below the gate of 0.99"
        in page.locator(".findings").inner_text()
    )
    page.context.close()


def test_a_bad_run_is_called_bad(here: Path) -> None:
    """Greedy text that is wrong more often than the mean: the verdict, the checklist and summary.md must all say so."""
    summary = (here / "checkpoints" / "greedy" / "summary.md").read_text()
    assert "Worse than not reading the request" in summary
    assert "- [ ] mse_norm better than every baseline measured: **failed**." in summary
    assert "- [ ] json_valid_rate above the gate: **failed**. json_valid_rate 0.9" in summary
    assert "rejected answers count as the worst possible ones" in summary


def test_two_thousand_rows_stay_small_and_are_drawn(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size a real test set has. How long that takes is printed (`pytest -s`): the aim is 2 s of the processor of
    the page's main thread, and computers differ."""
    monkeypatch.chdir(tmp_path)
    recipe = profile_recipe(tmp_path, 2500, 0.82)
    build_data(recipe, Path("data/profile"))
    make_run(recipe, Path("data/profile"), Path("checkpoints/profile"))
    assert ppe_lora("report", "profile.yaml") == 0
    path = tmp_path / "checkpoints" / "profile" / "report.html"
    assert len(read_jsonl(tmp_path / "checkpoints" / "profile" / "test" / "eval_predictions.jsonl")) > 2000
    assert path.stat().st_size < 8e6
    drawn_s = drawn_after_s(browser, path)
    print(f"{path.stat().st_size / 1e6:.2f} MB; drawn after {drawn_s:.2f} s of processor")
    assert drawn_s > 0


def drawn_after_s(browser: Browser, path: Path) -> float:
    """Processor seconds of a page's main thread until all of its figures are drawn."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    for figure in page.locator("[data-figure]").all():
        figure.locator(".main-svg").first.wait_for()
    measured = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    opened_s = page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") / 1000
    print(f"loaded after {opened_s:.2f} s by the clock")
    page.context.close()
    return float(measured["TaskDuration"])


def test_the_cost_of_training_and_teacher_is_told(here: Path) -> None:
    """Who weighs a larger data set against a longer training needs both bills, and "nothing" said in words."""
    summary = (here / "checkpoints" / "profile" / "summary.md").read_text(encoding="utf-8")
    assert (
        "training, evaluation of the epochs included: 95 s; of it, core-hours: 0.0528; " in summary
    )  # 95 s x 2 threads
    assert "teacher: no requests, tokens or money: it is a phrase book." in summary
    page = (here / "checkpoints" / "profile" / "report.html").read_text(encoding="utf-8")
    assert "no requests, tokens or money" in page
    run = read_run_folder(
        load_recipe(Path("checkpoints/profile/config.yaml")), Path("data/profile"), Path("checkpoints/profile")
    )
    on_gpus = run._replace(run=run.run | {"device": "cuda:0", "processes": 4}, train_seconds=1800.0)
    assert told(on_gpus)["of it, GPU-hours"] == "2"


def test_a_language_model_as_teacher_is_billed_by_what_it_did(here: Path) -> None:
    """The reader's tokens in the teacher's line would hide which of the two is dear."""
    folder = Path("checkpoints/profile")
    recipe = load_recipe(
        folder / "config.yaml",
        ["data.source.teacher={kind: openai_compatible, model: big, endpoints: [{url: 'http://h/v1'}]}"],
    )
    run = read(folder)._replace(recipe=recipe)
    assert told(run._replace(data=run.data._replace(manifest={})))["teacher"] == "not recorded when the data was built"
    used = {"requests": 1500, "prompt_tokens": 600_000, "completion_tokens": 90_000, "money": 1.5}
    spent = {"writing": used, "reading back": used | {"money": 0.0}}
    billed = told(run._replace(data=run.data._replace(manifest=run.data.manifest | {"spent": spent})))
    tokens = "1,500 requests, 600,000 prompt and 90,000 completion tokens"
    assert billed["teacher, writing the requests"] == f"{tokens}, 1.5 by the recipe's prices"
    assert billed["teacher, reading them back"] == f"{tokens}, no money (the recipe states no prices)"


def test_the_time_of_interrupted_starts_is_not_forgotten(here: Path, tmp_path: Path) -> None:
    """A training of three nights that reports its last hour makes the next one look cheap."""
    folder = tmp_path / "profile"
    shutil.copytree("checkpoints/profile", folder)
    log = folder / "train_log.csv"
    lines = log.read_text().splitlines()
    before = read(folder).train_seconds
    restarted = [",".join([*line.split(",")[:-1], f"{seconds}"]) for seconds, line in enumerate(lines[-5:], 1)]
    log.write_text("\n".join([*lines[:-5], *restarted, ""]))
    earlier = float(lines[-6].split(",")[-1])
    assert read(folder).train_seconds == before + earlier


def read(folder: Path, *overrides: str) -> RunFolder:
    return read_run_folder(load_recipe(folder / "config.yaml", overrides), Path("data/profile"), folder)


def told(run: RunFolder) -> dict[str, str]:
    """The English lines of what a run cost."""
    return {name.en: value.en for name, value in run_cost(run)}


def test_equal_files_make_equal_reports(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report that changes by itself cannot be compared with yesterday's."""
    run = here / "checkpoints" / "profile"
    before = [hash_file(run / name) for name in ("report.html", "summary.md")]
    assert ppe_lora("report", "checkpoints/profile") == 0
    assert [hash_file(run / name) for name in ("report.html", "summary.md")] == before
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{BETTER} On ")
    assert said[1].startswith("release checklist: 5 of 7 passed (Latency p95 within the recipe's limit: not done; ")
    assert said[2:] == ["checkpoints/profile/summary.md", "checkpoints/profile/report.html"]
    assert os.environ.get("HOME", "/nowhere") not in (run / "report.html").read_text()


def statuses(run: Path, *overrides: str) -> dict[str, str]:
    """The checklist of a run as its files are now: line to status."""
    files = read(run, *overrides)
    return {check.name.en: check.status for check in checklist(analyse(files))}


def test_each_line_of_the_checklist_follows_its_files(here: Path) -> None:
    """A checklist that always passes is decoration."""
    run = here / "checkpoints" / "copy"
    shutil.copytree(here / "checkpoints" / "profile", run)
    limit, tracked = "Latency p95 within the recipe's limit", "Artifacts and traces recorded"
    assert statuses(run, "evaluate.latency_limit_ms=1000")[limit] == "passed"
    assert statuses(run, "evaluate.latency_limit_ms=1")[limit] == "failed"
    for tracker in ("wandb", "weave"):
        write_json(run / "tracking" / f"{tracker}.json", {"sent": "x"})
    assert statuses(run)[tracked] == "passed"
    write_text(run / "tracking" / "weave.problem", "ConnectionError: refused\n")
    assert statuses(run)[tracked] == "failed"

    data = here / "data" / "profile"
    train, manifest = data / "ft_request_param_train.jsonl", data / "manifest.json"
    kept = {path: path.read_text() for path in (train, manifest)}
    test_row = read_jsonl(data / "ft_request_param_test.jsonl")[10]
    train.write_text(kept[train] + json.dumps(test_row | {"id": "another"}) + "\n")
    found = statuses(run)
    assert (found["Leak check passed"], found["Seed and distributions fixed"]) == ("failed", "failed")
    train.write_text(kept[train])
    made = read_json(manifest)
    made["inputs"]["data"]["source"]["sampler"]["edges"] = 0.9
    write_json(manifest, made)
    found = statuses(run)
    assert (found["Leak check passed"], found["Seed and distributions fixed"]) == ("passed", "failed")
    manifest.write_text(kept[manifest])

    trained = read_json(run / "manifest.json")
    trained["inputs"]["recipe"]["task"]["output_format_version"] = 7
    write_json(run / "manifest.json", trained)
    assert statuses(run)["Output format fixed"] == "failed"


REFUSED = {
    "unfinished": "unfinished run: the training has not ended; `ppe-lora train RECIPE --resume`",
    "undecoded": "unfinished run: the test rows are not decoded yet; `ppe-lora evaluate RECIPE`",
    "stale": "the test rows were decoded by an earlier training; `ppe-lora evaluate RECIPE`",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_without_all_its_parts_is_named_as_such(
    here: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    folder = here / "checkpoints" / case
    shutil.copytree(here / "checkpoints" / "profile", folder)
    if case == "unfinished":
        (folder / "manifest.json").unlink()
    elif case == "undecoded":
        (folder / "test" / "manifest.json").unlink()
    else:
        manifest = read_json(folder / "manifest.json")
        write_json(folder / "manifest.json", manifest | {"inputs_hash": "another"})
    assert ppe_lora("report", case) == 2
    assert capsys.readouterr().err == f"error: checkpoints/{case}: {REFUSED[case]}\n"


def test_a_run_is_found_by_its_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`report g` failed though checkpoints/g was there, and compare took its name."""
    assert ppe_lora("report", "profile") == 0
    finished = sorted(path.parent.name for path in Path("checkpoints").glob("*/manifest.json"))
    assert "profile" in finished
    capsys.readouterr()
    for nothing in ("data", "gone.yaml"):
        assert ppe_lora("report", nothing) == 2
        assert capsys.readouterr().err == (
            f"error: {nothing}: expected a run (its folder, or its name in checkpoints/) or its recipe file; got "
            f"neither; finished runs: {', '.join(finished)}\n"
        )


def test_a_recipe_that_is_not_the_run_s_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ppe_lora("report", "profile.yaml", "train.epochs=9", "export.verify_rows=3") == 2
    assert capsys.readouterr().err == (
        "error: checkpoints/profile: holds a run that differs from the recipe in train.epochs. Name the folder itself "
        "to report on what it holds, or make the recipe's own run with `ppe-lora run RECIPE`\n"
    )


def test_other_test_rows_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of the old rows beside a test file that has changed since."""
    path = here / "data" / "profile" / "ft_request_param_test.jsonl"
    kept, noted = path.read_text(), hash_file(path)
    path.write_text("\n".join(kept.split("\n")[:-2]) + "\n")
    found = hash_file(path)
    assert ppe_lora("report", "profile.yaml") == 2
    assert capsys.readouterr().err == (
        "error: data/profile/ft_request_param_test.jsonl: expected the test rows that checkpoints/profile was first "
        f"measured on (SHA-256 {noted}...); got {found}...; figures of different test rows cannot be compared. Put "
        "that file back, train under another name (name=...), or delete checkpoints/profile/test_rows.json and "
        "checkpoints/profile/test to give up the old figures\n"
    )
    path.write_text(kept)
    assert ppe_lora("report", "profile.yaml") == 0
