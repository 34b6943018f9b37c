"""GPTQ by the real llm-compressor, in its own environment, as a part of the export stage: `make test-engines`."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from ppe_lora.artifacts import read_json
from ppe_lora.export.parity import check_files
from ppe_lora.export.stage import export_run
from ppe_lora.recipe import load_recipe
from ppe_lora.student.training import train
from tests.runs import make_data, make_recipe

PYTHON = Path(__file__).parents[2] / ".venv-compress" / "bin" / "python"
SECTIONS = (
    "train: {epochs: 2, rows_per_step: 4, rows_per_micro_step: 4, learning_rate: 3e-3}",
    "evaluate: {gate: 0.0, latency_rows: 0, read_out: posterior_mean}",
    "export: {verify_rows: 40, quantize: gptq, max_loss: 0.25}",  # 8,192 weights have less to spare than a model
)

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no {PYTHON}: `make test-engines` makes it"),
]


def test_gptq_weights_are_made_loaded_and_measured(
    tmp_path: Path, speaker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that only llm-compressor can read, or that lost what was learned, must not count as an export."""
    monkeypatch.setenv("PPE_LORA_COMPRESS_PYTHON", str(PYTHON))
    recipe = load_recipe(make_recipe(tmp_path, speaker, *SECTIONS))
    data = make_data(tmp_path / "data", train=48, valid=40)
    train(recipe, data, tmp_path / "run")
    export_run(recipe, data, tmp_path / "run")
    folder = tmp_path / "run" / "quantized"
    quantization = read_json(folder / "config.json")["quantization_config"]
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["config_groups"]["group_0"]["weights"]["num_bits"] == 4
    found = read_json(folder / "manifest.json")
    assert found["verdict"].startswith("gptq weights of ")
    (row,) = [line for line in (folder / "README.md").read_text().splitlines() if "`mse_norm_posterior_mean`" in line]
    before, after = (found[made]["mse_norm_posterior_mean"] for made in ("merged", "quantized"))
    assert row.endswith(f"| {before:.4g} | {after:.4g} |")
    assert 0 < abs(after / before - 1) <= 0.25  # 0 would be weights that nobody quantized
    check_files(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.rope_parameters == AutoConfig.from_pretrained(speaker).rope_parameters
