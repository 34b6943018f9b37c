"""W&B by its real package: the `.wandb` file read back, and a loopback server that speaks its API."""

import subprocess

import pytest

from ppe_lora.artifacts import read_json
from ppe_lora.tracking.follower import Place, launch
from tests.tracked_runs import WrittenRun
from tests.wandb_file import WandbFile, read_wandb_file
from tests.wandb_server import WandbReceived, wandb_server

CONFIG = (
    "teacher_model", "student_model", "dataset_version", "sampling_seed", "sampling_strategy", "output_format_version",
    "train_size", "valid_size", "test_size", "hyperparameters", "recipe",
)  # fmt: skip
METRICS = (
    "train/loss", "valid/loss", "eval/mse_raw", "eval/mse_norm", "eval/mae_raw", "eval/r2", "eval/json_valid_rate",
    "eval/schema_valid_rate", "eval/latency_ms_p50", "eval/latency_ms_p95",
)  # fmt: skip
TRACK = "{wandb: {project: ppe}}"


def follow(run: WrittenRun, *, mode: str = "auto") -> subprocess.Popen[bytes]:
    return launch(Place(run.run, "wandb"), run.data, run.recipe.track.model_copy(update={"mode": mode}))


def follow_once(run: WrittenRun, *, mode: str = "auto") -> int:
    """Let a follower see a run whose process has ended, and return its exit status."""
    process = follow(run, mode=mode)
    process.stdin.close()
    return process.wait(timeout=250)


def written(run: WrittenRun) -> WandbFile:
    (path,) = (run.run / "tracking").rglob("*.wandb")
    return read_wandb_file(path)


def log_of(run: WrittenRun) -> str:
    return Place(run.run, "wandb").log.read_text()


@pytest.fixture
def online(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with wandb_server() as (url, received):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        yield received


def steps(received: WandbReceived) -> list[int]:
    (run,) = received.runs.values()
    return [line["_step"] for line in run.history]


def test_an_offline_run_has_every_name(tmp_path):
    """A metric or a setting under another name would be missing from every comparison that people have saved."""
    run = WrittenRun(tmp_path, TRACK).all_of_it()
    assert follow_once(run) == 0, log_of(run)
    found = written(run)
    assert set(CONFIG) <= set(found.config)
    assert found.config["recipe"] == run.recipe.model_dump(mode="json")
    assert (found.config["train_size"], found.config["valid_size"], found.config["test_size"]) == (8, 3, 4)
    logged = {name for line in found.history for name in line}
    both = {f"eval/{name}{read_out}{key}" for name in ("mse_raw", "mse_norm", "mae_raw", "r2")
            for read_out in ("", "_posterior_mean") for key in ("", "/a", "/b")}  # fmt: skip
    assert set(METRICS) | both <= logged
    assert [line["_step"] for line in found.history] == list(range(1, 9))
    assert {line["_step"]: line["epoch"] for line in found.history if "eval/mse_norm" in line} == {4: 1, 8: 2}
    assert {name: found.x_axis[name] for name in ("eval/*", "valid/*")} == {"eval/*": "epoch", "valid/*": "epoch"}
    assert found.summary["test/mse_norm_posterior_mean"] == pytest.approx(0.0004)
    assert found.summary["selected_epoch"] == 2


def test_an_offline_run_has_its_files(tmp_path):
    """The data set, what was predicted, the worst cases and the model: the large one by reference, not copied."""
    run = WrittenRun(tmp_path, TRACK).all_of_it()
    assert follow_once(run) == 0, log_of(run)
    artifacts = written(run).artifacts.items()
    found = {name: (one.type, {part.path: part.ref for part in one.manifest.contents}) for name, one in artifacts}
    data = {f"ft_request_param_{split}.jsonl": "" for split in ("train", "valid", "test")}
    merged = run.run / "merged"
    assert found == {
        "d": ("dataset", data),
        "run-adapter": ("model", {"adapter_config.json": "", "adapter_model.safetensors": ""}),
        "run-eval_predictions": ("predictions", {"eval_predictions.jsonl": ""}),
        "run-worst_cases": ("predictions", {"worst_cases.csv": ""}),
        "run-merged": ("model", {path.name: path.as_uri() for path in merged.iterdir()}),
    }


def test_a_resumed_offline_run_is_one_run_with_each_step_once(tmp_path):
    """Offline, wandb would start another run in another folder at every resume."""
    run = WrittenRun(tmp_path, TRACK)
    run.train(1, 4)
    run.evaluate_epoch(1)
    run.train(5, 7)
    assert follow_once(run) == 0, log_of(run)
    first = written(run)
    assert [line["_step"] for line in first.history] == list(range(1, 8))
    lines = (run.run / "train_log.csv").read_text().splitlines(keepends=True)
    (run.run / "train_log.csv").write_text("".join(lines[:-1]))  # as a resume from an earlier checkpoint does
    run.train(7, 8)
    run.evaluate_epoch(2)
    run.finish_training()
    assert follow_once(run) == 0, log_of(run)
    second = written(run)
    assert set(second.run_ids) == set(first.run_ids)
    assert len(set(second.run_ids)) == 1
    assert [line["_step"] for line in second.history] == list(range(1, 9))


def test_the_last_step_of_an_epoch_waits_for_its_evaluation(tmp_path):
    """Sent before, it would be sent without: a step cannot be sent again."""
    run = WrittenRun(tmp_path, TRACK)
    run.train(1, 4)
    assert follow_once(run) == 0, log_of(run)
    assert [line["_step"] for line in written(run).history] == [1, 2, 3]


def test_a_resumed_online_run_is_one_run_with_each_step_once(tmp_path, online):
    run = WrittenRun(tmp_path, TRACK)
    run.train(1, 4)
    run.evaluate_epoch(1)
    run.train(5, 7)
    assert follow_once(run) == 0, log_of(run)
    assert steps(online) == [1, 2, 3, 4, 5, 6, 7]
    run.train(8, 8)
    run.evaluate_epoch(2)
    run.finish_training()
    assert follow_once(run) == 0, log_of(run)
    assert steps(online) == [1, 2, 3, 4, 5, 6, 7, 8]
    (sent,) = online.runs.values()
    assert "eval/mse_norm" in sent.history[-1]
    assert sent.summary["selected_epoch"] == 2
    assert online.unknown == []


def test_a_run_tracked_offline_is_sent_later_and_once(tmp_path, online):
    run = WrittenRun(tmp_path, TRACK).all_of_it()
    assert follow_once(run, mode="offline") == 0, log_of(run)
    assert online.requests == 0
    assert follow_once(run, mode="online") == 0, log_of(run)
    assert steps(online) == list(range(1, 9))
    assert {one.name: one.used for one in online.artifacts} == {
        "d": True, "run-adapter": False, "run-eval_predictions": False, "run-worst_cases": False, "run-merged": False,
    }, "lineage: the data set goes in, the rest comes out"  # fmt: skip
    assert all(one.committed for one in online.artifacts)
    assert sorted(online.artifact("d").uploaded) == sorted(path.name for path in run.data.glob("*.jsonl"))
    assert online.artifact("run-merged").uploaded == []
    merged = online.artifact("run-merged").manifest["contents"]["model.safetensors"]
    assert merged["ref"] == (run.run / "merged" / "model.safetensors").as_uri()
    changes = online.changes
    assert follow_once(run, mode="online") == 0, log_of(run)
    assert online.changes == changes, "a second sync has nothing to send"
    assert read_json(Place(run.run, "wandb").ledger)["online"] is True
