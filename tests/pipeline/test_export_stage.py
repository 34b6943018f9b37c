"""`ppe-lora export` of a finished run: three folders, each proven, described, and refused when its files change."""

import json
import socket
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ppe_lora.artifacts import read_json, write_json
from ppe_lora.errors import ModelError
from ppe_lora.export import stage
from ppe_lora.export.parity import check_files
from ppe_lora.export.quantize import check_loss
from ppe_lora.export.stage import export_run
from ppe_lora.recipe import Recipe, load_recipe
from ppe_lora.student.training import train
from tests.runs import as_measured, make_data, make_recipe

SECTIONS = (
    "train: {epochs: 2, rows_per_step: 4, rows_per_micro_step: 4, learning_rate: 3e-3}",
    "evaluate: {gate: 0.0, latency_rows: 0, read_out: posterior_mean}",
    "export: {verify_rows: 6, quantize: nf4, max_loss: 9.0}",
)


class Run(NamedTuple):
    recipe: Recipe
    data: Path
    folder: Path

    def export(self, **settings: object) -> None:
        export = self.recipe.export.model_copy(update=settings)
        export_run(self.recipe.model_copy(update={"export": export}), self.data, self.folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, speaker: Path) -> Run:
    here = tmp_path_factory.mktemp("export")
    recipe = load_recipe(make_recipe(here, speaker, *SECTIONS))
    made = Run(recipe, make_data(here / "data"), here / "run")
    train(recipe, made.data, made.folder)
    write_json(made.folder / "calibration.json", {"kind": "none"})
    as_measured(made.folder)
    made.export()
    return made


def test_merged_folder_has_what_engines_read(run: Run) -> None:
    merged = run.folder / "merged"
    names = {path.name for path in merged.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "README.md", "calibration.json", "parity.json", "manifest.json",
        "ppe_lora.json",
    }  # fmt: skip
    config = read_json(merged / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]  # older readers know no rope_parameters
    assert read_json(merged / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    generation = read_json(merged / "generation_config.json")
    assert (generation["do_sample"], generation["eos_token_id"]) == (False, [258])
    assert len('{"a":100,"b":100}') < generation["max_new_tokens"] < 40


def test_certificate_holds_adapter_merged_and_plain_transformers_together(run: Run) -> None:
    certificate = read_json(run.folder / "merged" / "parity.json")
    assert len(certificate["requests"]) == 6
    assert len({one["text"] for one in certificate["requests"]}) > 1  # a model that always says the same proves nothing
    ours, plain = certificate["entries"]
    assert ours["engine"] == "merged in float32, ppe_lora"
    assert plain["engine"].startswith("merged in float32, transformers 5")
    assert [ours["identical"], plain["identical"]] == [6, 6]
    assert max(ours["largest_difference"]["posterior_mean"].values()) < 0.01
    assert set(ours["largest_difference"]["posterior_mean"]) == {"a", "b"}
    for name in ("merged", "adapter", "quantized"):
        check_files(run.folder / name)


def test_what_may_be_published_says_nothing_of_the_machine(run: Run) -> None:
    """Cards, manifests and certificates go to the Hub as they are. An adapter's configuration has to name its base."""
    details = (str(Path.home()), str(run.folder), run.recipe.student.model, socket.gethostname(), str(Path.cwd()))
    looked_at = []
    for name in ("merged", "adapter", "quantized"):
        for path in (run.folder / name).iterdir():
            if path.suffix in (".json", ".md", ".jinja") and path.name not in ("adapter_config.json", "tokenizer.json"):
                text = path.read_text(encoding="utf-8")
                assert not [detail for detail in details if len(detail) > 5 and detail in text], path
                looked_at.append(path.name)
    assert {"README.md", "manifest.json", "parity.json", "config.json", "ppe_lora.json"} <= set(looked_at)


def test_adapter_folder_loads_on_the_base_it_names(run: Run) -> None:
    """An adapter that names another base than it was trained on answers nonsense at best."""
    folder = run.folder / "adapter"
    config = read_json(folder / "adapter_config.json")
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    merged = AutoModelForCausalLM.from_pretrained(run.folder / "merged")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert (config["lora_alpha"], config["inference_mode"], config["revision"]) == (32, True, None)
    assert config["target_modules"] == sorted(config["target_modules"])
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        keys = list(file.keys())
    assert all(key.startswith("base_model.model.model.layers.") and ".lora_" in key for key in keys)
    assert "--max-lora-rank 8" in (folder / "README.md").read_text()
    assert [one["engine"] for one in read_json(folder / "parity.json")["entries"]]


def test_quantized_folder_is_smaller_and_says_what_that_costs(run: Run) -> None:
    folder = run.folder / "quantized"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.quantization_config.bnb_4bit_quant_type == "nf4"
    assert (folder / "model.safetensors").stat().st_size < (run.folder / "merged" / "model.safetensors").stat().st_size
    manifest = read_json(folder / "manifest.json")
    before, after = (manifest[name]["mse_norm_posterior_mean"] for name in ("merged", "quantized"))
    assert before > 0
    assert before != after
    assert f"mse_norm_posterior_mean {before:.5f} -> {after:.5f}" in manifest["verdict"]
    card = (folder / "README.md").read_text()
    assert "| metric | valid | merged, 6 valid rows | nf4, the same rows |" in card
    assert "then merged and quantized to nf4." in card
    engines = [one["engine"] for one in read_json(folder / "parity.json")["entries"]]
    assert engines[-1] == "quantized to nf4, ppe_lora"
    assert len(engines) == 3
    assert read_json(folder / "config.json")["rope_theta"]
    assert read_json(folder / "calibration.json") == {"kind": "none"}


def test_what_is_complete_is_not_made_again_and_what_changed_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A new calibration that stayed out of the exported folders would be served by nobody."""
    when = (run.folder / "merged" / "model.safetensors").stat().st_mtime_ns
    run.export()
    assert capsys.readouterr().out.count("complete and unchanged") == 3
    assert (run.folder / "merged" / "model.safetensors").stat().st_mtime_ns == when
    write_json(run.folder / "calibration.json", {"kind": "affine"})
    as_measured(run.folder)
    run.export(quantize="none")
    assert read_json(run.folder / "merged" / "calibration.json") == {"kind": "affine"}
    assert read_json(run.folder / "adapter" / "calibration.json") == {"kind": "affine"}


def test_a_quantized_model_that_loses_too_much_is_not_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(*args: object, **kwargs: object) -> stage.Answers:
        answers = real(*args, **kwargs)
        raised = {name: value * 1.2 for name, value in answers.metrics.items()}
        return answers._replace(metrics=raised)

    real = stage.answer_rows
    monkeypatch.setattr(stage, "answer_rows", worse)
    with pytest.raises(ModelError, match=r"expected int8 weights to lose at most 5\.0%"):
        run.export(quantize="int8", max_loss=0.05)
    assert not list(run.folder.glob(".quantized*"))
    assert (run.folder / "merged" / "manifest.json").is_file()
    assert read_json(run.folder / "merged" / "manifest.json")["merged"]


def test_loss_is_that_of_the_served_read_out(run: Run) -> None:
    """By hand: 0.0200 -> 0.0210 is 5 % more; the greedy text, which gets far worse, is not served."""
    before = {"mse_norm": 0.01, "mse_norm_posterior_mean": 0.02}
    allowed = run.recipe.model_copy(update={"export": run.recipe.export.model_copy(update={"max_loss": 0.0501})})
    after = {"mse_norm": 0.5, "mse_norm_posterior_mean": 0.021}
    assert check_loss(allowed, before, after) == "mse_norm_posterior_mean 0.02000 -> 0.02100 (+5.0%)"
    strict = run.recipe.model_copy(update={"export": run.recipe.export.model_copy(update={"max_loss": 0.049})})
    with pytest.raises(ModelError) as error:
        check_loss(strict, before, after)
    assert str(error.value) == (
        "export.quantize: expected nf4 weights to lose at most 4.9%; got mse_norm_posterior_mean 0.02000 -> 0.02100 "
        "(+5.0%); no quantized model is kept: choose int8 or none, or raise export.max_loss"
    )
    with pytest.raises(ModelError, match="expected accepted answers of the nf4 model; got none"):
        check_loss(strict, before, {})


def test_changed_weights_are_refused(run: Run, tmp_path: Path) -> None:
    """One flipped byte in a gigabyte of weights makes a model that nobody has tested."""
    copied = tmp_path / "merged"
    copied.mkdir()
    for file in (run.folder / "merged").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    check_files(copied)
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match=r"got others: model\.safetensors differs; export the run again"):
        check_files(copied)


def test_certificate_is_plain_json_of_the_rows_requests(run: Run) -> None:
    lines = (run.data / "ft_request_param_valid.jsonl").read_text().splitlines()
    requests = [one["request"] for one in read_json(run.folder / "merged" / "parity.json")["requests"]]
    assert requests == [json.loads(line)["request"] for line in lines[:6]]


def test_a_missing_environment_of_llm_compressor_says_how_to_make_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPE_LORA_COMPRESS_PYTHON", str(tmp_path / "python"))
    with pytest.raises(ModelError) as error:
        run.export(quantize="gptq")
    assert str(error.value) == (
        f"export.quantize: expected the environment of llm-compressor; got no {tmp_path / 'python'}; make it with "
        "`make compress`, or name its Python in PPE_LORA_COMPRESS_PYTHON"
    )
