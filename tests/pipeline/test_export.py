"""Merged weights answer as base + adapter did, by plain transformers, or are not there at all."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppe_lora.artifacts import is_current, read_json
from ppe_lora.errors import ModelError
from ppe_lora.export import merge as merge_module
from ppe_lora.export.card import weights_note, write_model_card
from ppe_lora.export.merge import merge_adapter, merge_inputs
from ppe_lora.export.verify import reload_and_decode
from ppe_lora.recipe import load_recipe
from tests.tiny import tiny_llama, tiny_mistral

RECIPES = Path(__file__).parents[2] / "recipes"
PROMPTS = [[1, 17, 300, 25], [1, 90, 91], [1, 5, 6, 7, 8, 9, 10]]
DECODE = {"end_ids": [2], "pad_id": 0, "max_new_tokens": 12}


def _adapter(base: Path, folder: Path, **lora: object) -> Path:
    """An adapter whose B is not zero, so that it changes the model."""
    settings = {"r": 4, "lora_alpha": 24, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(folder)
    return folder


def _with_adapter(base: Path, adapter: Path) -> torch.nn.Module:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()


@torch.no_grad()
def _logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mistral(tmp_path_factory.mktemp("models") / "base")


@pytest.mark.parametrize(
    ("lora", "scale"),
    [
        ({"r": 4, "lora_alpha": 24}, 6.0),
        ({"r": 4, "lora_alpha": 24, "use_rslora": True}, 24 / math.sqrt(4)),
        ({"r": 4, "lora_alpha": 24, "use_dora": True}, 6.0),
    ],
    ids=["alpha-over-rank", "rslora", "dora"],
)
def test_merged_equals_base_plus_adapter(base: Path, tmp_path: Path, lora: dict[str, object], scale: float) -> None:
    """A merge with a default scale (2.0 in one peer) passes every shape check and ruins the model."""
    adapter = _adapter(base, tmp_path / "adapter", **lora)
    report = merge_adapter(base, adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    expected = _with_adapter(base, adapter)
    bare = AutoModelForCausalLM.from_pretrained(base).eval()
    for ids in PROMPTS:
        torch.testing.assert_close(_logits(merged, ids), _logits(expected, ids), rtol=1e-5, atol=1e-5)
        assert (_logits(merged, ids) - _logits(bare, ids)).abs().max() > 1e-2
    assert report.scales == (pytest.approx(scale),)
    assert report.layers == 14  # 7 linear layers in each of 2 blocks
    assert report.dtype == "float32"


def _merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """PEFT's own merge, in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()


def _ulps(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of two tensors of one type, in units in the last place of their largest number. Not of each
    number: processors add up the products of a block in orders of their own, and base and update may cancel out."""
    unit = torch.finfo(one.dtype).eps * other.float().abs().max()
    return float((one.float() - other.float()).abs().max() / unit)


@pytest.mark.parametrize("kind", ["plain", "rslora", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_streamed_merge_equals_pefts_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    """Blocks of rows, several files and a cast must not change what is merged: not one tensor left out, not one block
    with the rows of another."""
    monkeypatch.setattr(merge_module, "_BLOCK_BYTES", 4 * 64 * 5)  # five rows, which divide no layer evenly
    base = tiny_mistral(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base, max_shard_size="3MB")
    (base / "model.safetensors").unlink()
    assert len(list(base.glob("model-*.safetensors"))) > 2
    adapter = _adapter(base, tmp_path / "adapter", use_rslora=kind == "rslora", use_dora=kind == "dora")
    report = merge_adapter(base, adapter, tmp_path / "merged")
    assert report.dtype == str(dtype).removeprefix("torch.")
    merged = {}
    for file in (tmp_path / "merged").glob("*.safetensors"):
        merged |= load_file(file)
    expected = _merged_by_peft(base, adapter)
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == dtype, name
        assert _ulps(tensor, expected[name].to(dtype)) <= (4 if dtype is torch.float32 else 1), name  # rank 4
    assert _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), PROMPTS[0]).isfinite().all()


def test_every_pattern_of_the_adapters_configuration_counts(base: Path, tmp_path: Path) -> None:
    """Ranks and alphas may differ by layer; one scale for all would be wrong for the others."""
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 8}}
    adapter = _adapter(base, tmp_path / "adapter", **patterns)
    assert merge_adapter(base, adapter, tmp_path / "merged").scales == (2.0, 6.0, 12.0)
    merged, expected = load_file(tmp_path / "merged" / "model.safetensors"), _merged_by_peft(base, adapter)
    assert all(_ulps(tensor, expected[name]) <= 1 for name, tensor in merged.items())


def test_plain_transformers_decodes_the_merged_model_as_the_adapter_did(base: Path, tmp_path: Path) -> None:
    """The proof runs in a process without our code, in batches, on left-padded prompts."""
    adapter = _adapter(base, tmp_path / "adapter")
    merge_adapter(base, adapter, tmp_path / "merged")
    model = _with_adapter(base, adapter)
    expected = []
    for ids in PROMPTS:
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=DECODE["max_new_tokens"],
            eos_token_id=DECODE["end_ids"],
            pad_token_id=DECODE["pad_id"],
        )
        expected.append(output[0, len(ids) :].tolist())
    decoded = reload_and_decode(tmp_path / "merged", PROMPTS, batch_rows=2, **DECODE)
    assert decoded == expected


def test_export_is_a_whole_model_folder_with_its_manifest(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    out = tmp_path / "run" / "merged"
    merge_adapter(base, adapter, out, finish=lambda folder, report: {"verified_rows": report.layers})
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "manifest.json"} <= names
    assert "adapter_config.json" not in names
    assert is_current(out, merge_inputs(base, adapter, "auto"))
    assert not is_current(out, merge_inputs(base, adapter, "bfloat16"))
    manifest = read_json(out / "manifest.json")
    assert manifest["verified_rows"] == 14
    assert manifest["merge"]["scales"] == [6.0]
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_merged_type_is_rounded_once_from_float32(base: Path, tmp_path: Path) -> None:
    """Merging bfloat16 weights in bfloat16 rounds the product and the sum; here only the sum is rounded."""
    stored = tmp_path / "base16"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(stored)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, stored)
    adapter = _adapter(base, tmp_path / "adapter")
    assert merge_adapter(stored, adapter, tmp_path / "merged").dtype == "bfloat16"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    wrapped = _with_adapter(base, adapter)
    name = "model.layers.0.self_attn.q_proj"
    layer = wrapped.get_submodule(f"base_model.{name.replace('model.', 'model.model.', 1)}")
    exact = model.get_submodule(name).weight.float() + layer.get_delta_weight("default")
    assert torch.equal(merged.get_submodule(name).weight, exact.to(torch.bfloat16))
    assert merge_adapter(stored, adapter, tmp_path / "merged32", "float32").dtype == "float32"


def test_interrupted_export_leaves_no_merged_folder(base: Path, tmp_path: Path) -> None:
    """A half-written or unproven model must not look like one that can be served."""
    adapter = _adapter(base, tmp_path / "adapter")

    def fail(folder: Path, report: object) -> dict[str, object]:
        assert (folder / "model.safetensors").is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_adapter(base, adapter, tmp_path / "run" / "merged", finish=fail)
    assert list((tmp_path / "run").iterdir()) == []


def test_interrupted_second_export_keeps_the_first(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    out = tmp_path / "merged"
    merge_adapter(base, adapter, out)
    before = read_json(out / "manifest.json")

    def fail(folder: Path) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        merge_adapter(base, adapter, out, "bfloat16", save_tokenizer=fail)
    assert read_json(out / "manifest.json") == before
    (tmp_path / ".merged.1.tmp").mkdir()  # what a killed export leaves
    merge_adapter(base, adapter, out, "bfloat16")
    assert read_json(out / "manifest.json")["inputs"]["dtype"] == "bfloat16"
    assert not (tmp_path / ".merged.1.tmp").exists()


def test_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    """PEFT only warns about tensors without a place; the merge would then silently be the base model."""
    adapter = _adapter(base, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="24 tensors of the file have no place and 0 are not in the file"):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_base_without_all_weights_is_refused(base: Path, tmp_path: Path) -> None:
    """from_pretrained fills a missing weight with random numbers and goes on."""
    adapter = _adapter(base, tmp_path / "adapter")
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing .* model\.layers\.1\.mlp\.up_proj\.weight"):
        merge_adapter(broken, adapter, tmp_path / "merged")


def test_weights_of_another_shape_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(32)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as error:
        merge_adapter(broken, adapter, tmp_path / "merged")
    assert str(error.value) == (
        f"{broken}: model.norm.weight: expected F32 or BF16 or F16 of shape (64,); got F32 of (32,); weights and "
        "config.json belong to different models, or the weights are quantized"
    )


def test_adapter_tensors_of_another_shape_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    weights[name] = weights[name][:-1].clone()
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"up_proj\.lora_B\.weight: expected shape \(128, 4\); got \(127, 4\)"):
        merge_adapter(base, adapter, tmp_path / "merged")


def test_adapters_that_are_more_than_b_times_a_are_refused(base: Path, tmp_path: Path) -> None:
    """Their merge is another formula; ours would be wrong without a word."""
    adapter = _adapter(base, tmp_path / "adapter")
    config = read_json(adapter / "adapter_config.json") | {"init_lora_weights": "pissa", "bias": "all"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"got bias='all', init_lora_weights='pissa'; merge this one with PEFT"):
        merge_adapter(base, adapter, tmp_path / "merged")


def test_a_merge_that_overflows_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    weights["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"][3] = float("inf")
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight: expected finite merged weights"):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_full_disk_is_said_before_anything_is_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = _adapter(base, tmp_path / "adapter")
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(merge_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ModelError) as error:
        merge_adapter(base, adapter, tmp_path / "merged")
    size = sum(path.stat().st_size for path in base.glob("*.safetensors")) / 1e6
    where, _, rest = str(error.value).partition(" MB of free disk; ")
    assert rest == "got 5.0; free some space, then repeat the command"
    assert where.startswith(f"{tmp_path}: expected ")
    assert float(where.rpartition(" ")[2]) == pytest.approx(size, abs=0.1)
    assert not (tmp_path / "merged").exists()


def test_missing_folders_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        merge_adapter(base, tmp_path / "nowhere", tmp_path / "merged")
    assert str(error.value) == f"{tmp_path}/nowhere: expected an adapter; there is no adapter_config.json in it"


def test_adapter_on_tied_embeddings_is_refused(tmp_path: Path) -> None:
    """Writing the merged output head would change the input embeddings too."""
    base = tiny_llama(tmp_path / "base")
    adapter = _adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ModelError, match="lm_head: this base ties its input and output embeddings"):
        merge_adapter(base, adapter, tmp_path / "merged")


def test_tied_base_merges_and_its_tokenizer_loads(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = _adapter(base, tmp_path / "adapter")
    merge_adapter(base, adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(_logits(merged, [5, 6]), _logits(_with_adapter(base, adapter), [5, 6]))
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "merged")("42")["input_ids"]
        == (AutoTokenizer.from_pretrained(base)("42")["input_ids"])
    )


def test_unreadable_model_is_an_error_with_the_process_output(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"could not reload and decode it \(exit 1\)(?s:.*)config\.json"):
        reload_and_decode(tmp_path, PROMPTS, batch_rows=2, **DECODE)


def test_model_card_names_base_data_and_metrics(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "ministral_8b_qlora.yaml", ["student.lora.rslora=true"])
    card = write_model_card(
        tmp_path,
        recipe,
        {"dataset_version": "d1", "epoch": 2, "packages": {"torch": "2.13.0"}},
        {"valid": {"mse_norm": 0.0123456, "json_valid_rate": 1.0}, "test": {"mse_norm": 0.0130}},
    ).read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert front.splitlines() == [
        'base_model: "mistralai/Ministral-8B-Instruct-2410"',
        'base_model_relation: "finetune"',
        'library_name: "transformers"',
        'pipeline_tag: "text-generation"',
        'language: ["en", "ja"]',
        'license: "other"',
        'tags: ["ppe-lora", "lora", "trl", "prompt-to-parameter"]',
    ]
    label = "greedy text" if recipe.evaluate.read_out != "greedy" else "served"
    assert f"| `mse_norm` ({label}) | 0.01235 | 0.013 |" in body
    assert "| `json_valid_rate` | 1 |  |" in body
    assert "- packages: torch 2.13.0" in body
    assert "(rank 16, alpha 32, rsLoRA)" in body
    assert recipe.task.instruction_text("ja") in body
    assert "$" not in body


def test_a_card_leads_to_what_was_measured(tmp_path: Path) -> None:
    """`Use` led to the greedy text of a run whose answers come from its head: 2.5 times worse than the train mean."""
    recipe = load_recipe(RECIPES / "ministral_8b_qlora.yaml", ["evaluate.read_out=calibrated"])
    test = {
        "mse_norm": 0.25,
        "mse_norm_calibrated": 0.03,
        "r2_calibrated": 0.63,
        "r2": -1.6,
        "train_mean_mse_norm": 0.1,
    }
    valid = {"mse_norm": 0.24, "mse_norm_posterior_mean": 0.2, "train_mean_mse_norm": 0.1}
    card = write_model_card(tmp_path, recipe, {}, {"valid": valid, "test": test}).read_text()
    use = card.split("## Use")[1].split("## Quality")[0]
    assert use.strip().startswith(
        "`ppe-lora serve FOLDER`, with this folder. What was measured and selected is the read-out `calibrated`, which "
        "`ppe-lora serve` gives: mse_norm_calibrated 0.0300 on the test rows. Decoded by anything else, the same "
        "weights answer with greedy text: mse_norm 0.2500, where always answering the train mean has 0.1000. **Do not "
        "use the text: it is no better than not reading the request.**"
    )
    rows = [line for line in card.splitlines() if line.startswith("| `")]
    assert rows[:2] == ["| `mse_norm_calibrated` (served) |  | 0.03 |", "| `r2_calibrated` (served) |  | 0.63 |"]
    assert "| `r2` (greedy text) |  | -1.6 |" in rows
    assert "Metrics of greedily decoded answers" not in card


def test_the_text_is_told_beside_the_served_read_out_before_it_is_tested() -> None:
    """Of a run that was exported before its test rows were decoded, the validation rows say it."""
    recipe = load_recipe(RECIPES / "ministral_8b_qlora.yaml", ["evaluate.read_out=calibrated"])
    valid = {"mse_norm": 0.05, "mse_norm_posterior_mean": 0.04, "train_mean_mse_norm": 0.1}
    assert weights_note(recipe, {"valid": valid}) == (
        "What was measured and selected is the read-out `calibrated`, which `ppe-lora serve` gives: "
        "mse_norm_posterior_mean 0.0400 on the valid rows. Decoded by anything else, the same weights answer with "
        "greedy text: mse_norm 0.0500, where always answering the train mean has 0.1000."
    )
    greedy = load_recipe(RECIPES / "ministral_8b_qlora.yaml", ["evaluate.read_out=greedy"])
    assert weights_note(greedy, {"valid": valid}) is None
    assert weights_note(recipe, {}) is None


def test_a_card_says_nothing_of_the_machine(tmp_path: Path) -> None:
    """`push` publishes it: paths with the user's name, names of servers, accounts."""
    base = tmp_path / "home" / "jane" / "models" / "mine"
    base.mkdir(parents=True)
    (tmp_path / "r.yaml").write_text(
        f"name: r\nstudent: {{model: {base}}}\ntrack: {{wandb: {{project: p, entity: jane}}}}\n"
        "data:\n  name: d\n  source:\n    kind: generate\n    teacher:\n      kind: openai_compatible\n"
        "      model: m\n      endpoints: [{url: 'http://box17.intern:8000/v1'}]\n"
        f"  held_out: {{kind: import, source_dir: {tmp_path}/home/jane/held, files: {{a: {{path: 'sub/jane.csv'}}}}, "
        "request: a.t, target: {a: a.e, b: a.f}, language: en}\n  split: {test: 0}\ntask: {keys: [a, b]}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    card = write_model_card(tmp_path, recipe, {}, {"valid": {"mse_norm": 0.1}}).read_text()
    for detail in (str(tmp_path), "home", "jane/", "box17", "intern", "entity", "wandb"):
        assert detail not in card, detail
    assert "base_model" not in card.split("\n---\n")[0]  # the Hub looks for a repository of that name
    assert "from `mine`, then merged." in card
    assert "  model: mine\n" in card
    assert "url: (a server)" in card
    assert "source_dir: held" in card
