"""Every family of students loads, encodes, adapts and reloads; what libraries let pass in silence is an error here."""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Mistral3ForConditionalGeneration, PreTrainedModel

from ppe_lora.corpus.rows import Row
from ppe_lora.errors import ModelError
from ppe_lora.recipe.schema import Lora, Student
from ppe_lora.student import base as base_module
from ppe_lora.student import load as load_module
from ppe_lora.student.base import resolve_base
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.load import attach_lora, load_adapter, load_base, trainable_parameters
from ppe_lora.student.tokenizer import MistralStudentTokenizer, TemplateStudentTokenizer, load_tokenizer
from ppe_lora.tasks.scores import ScoresTask
from tests.tiny import CHAT_TEMPLATE, tiny_llama, tiny_mistral, tiny_mistral3, write_mistral_tokenizer

TASK = ScoresTask()
ROW = Row(id="r", request="雨の夜に合う曲", target=dict.fromkeys(TASK.keys, 42), language="ja")
IDS = torch.arange(300, 340)[None] % 259
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "spm-v3": tiny_mistral,
    "spm-v7": lambda folder: tiny_mistral(folder, "v7"),
    "tekken": lambda folder: tiny_mistral(folder, "tekken"),
    "mistral3": tiny_mistral3,
    "llama": tiny_llama,
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PPE_LORA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mistral(tmp_path_factory.mktemp("spm"))


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mistral3(tmp_path_factory.mktemp("multimodal"))


def _load(folder: Path, **student: Any) -> PreTrainedModel:
    return load_base(Student(model=str(folder), **student), folder, "cpu")


@torch.no_grad()
def _logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def _step(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> tuple[float, float]:
    """Loss on one row before and after three steps."""
    ids = torch.tensor([prompt + completion])
    labels = torch.tensor([[-100] * len(prompt) + completion])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.002)
    losses = []
    for _ in range(4):
        loss = model.train()(input_ids=ids, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses[0], losses[-1]


def _edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _copy(source: Path, to: Path) -> Path:
    return Path(shutil.copytree(source, to))


# --------------------------------------------------------------------------------------------------------- every family


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_its_adapter_reloads(family: str, tmp_path: Path) -> None:
    folder = resolve_base(Student(model=str(FAMILIES[family](tmp_path / "base"))))
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, TemplateStudentTokenizer if family == "llama" else MistralStudentTokenizer)
    ((_, prompt, completion, _),) = encode_rows([ROW], TASK, tokenizer, 1000).encoded
    adapted = attach_lora(_load(folder), Lora(rank=4), seed=1)
    assert trainable_parameters(adapted) == sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    before, after = _step(adapted, prompt, completion)
    assert after < before
    adapted.save_pretrained(str(tmp_path / "adapter"))
    again = load_adapter(_load(folder), tmp_path / "adapter")
    assert torch.equal(_logits(adapted), _logits(again))
    assert trainable_parameters(again) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_tokenizer_is_the_same_tokenizer(family: str, tmp_path: Path) -> None:
    folder = resolve_base(Student(model=str(FAMILIES[family](tmp_path / "base"))))
    tokenizer = load_tokenizer(folder)
    tokenizer.save(tmp_path / "export")
    shutil.copy(folder / "config.json", tmp_path / "export")
    shutil.copy(folder / "generation_config.json", tmp_path / "export")
    again = load_tokenizer(tmp_path / "export")
    assert again.fingerprint() == tokenizer.fingerprint()
    messages = TASK.messages(ROW.request, "ja")
    assert again.completion_ids(messages, "{}") == tokenizer.completion_ids(messages, "{}")
    assert AutoTokenizer.from_pretrained(tmp_path / "export").eos_token_id in tokenizer.end_ids


# ------------------------------------------------------------------------------------------------- Mistral 3, text only


@pytest.mark.parametrize(("text", "kind"), [("ministral3", "Ministral3ForCausalLM"), ("mistral", "MistralForCausalLM")])
def test_the_text_model_of_mistral3_keeps_its_logits_to_the_bit(text: Any, kind: str, tmp_path: Path) -> None:
    source = tiny_mistral3(tmp_path / "base", text)
    folder = resolve_base(Student(model=str(source)))
    converted = _load(folder)
    assert type(converted).__name__ == kind
    assert torch.equal(_logits(Mistral3ForConditionalGeneration.from_pretrained(source)), _logits(converted))
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == kind


def test_a_sharded_mistral3_converts_shard_by_shard(multimodal: Path, tmp_path: Path) -> None:
    whole = Mistral3ForConditionalGeneration.from_pretrained(multimodal)
    whole.save_pretrained(tmp_path / "base", max_shard_size="9MB")
    write_mistral_tokenizer(tmp_path / "base", "tekken")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    folder = resolve_base(Student(model=str(tmp_path / "base")))
    assert torch.equal(_logits(whole), _logits(_load(folder)))


def test_a_tied_mistral3_stays_tied(multimodal: Path, tmp_path: Path) -> None:
    source = _copy(multimodal, tmp_path / "base")
    config = json.loads((source / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (source / "config.json").write_text(json.dumps(config))
    _edit_weights(source, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    converted = _load(resolve_base(Student(model=str(source))))
    assert converted.get_output_embeddings().weight is converted.get_input_embeddings().weight
    assert torch.equal(_logits(Mistral3ForConditionalGeneration.from_pretrained(source)), _logits(converted))


def test_a_mistral3_without_its_output_head_is_an_error(multimodal: Path, tmp_path: Path) -> None:
    source = _copy(multimodal, tmp_path / "base")
    _edit_weights(source, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    with pytest.raises(ModelError, match=r"expected lm_head.weight, as tie_word_embeddings is false"):
        resolve_base(Student(model=str(source)))


def test_the_conversion_is_done_once_however_many_ask(
    multimodal: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = base_module.write_text_model
    monkeypatch.setattr(base_module, "write_text_model", lambda *args: (written.append(args[-1]), write(*args)))
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: resolve_base(Student(model=str(multimodal))), range(3)))
    assert len(set(folders)) == 1
    assert len(written) == 1
    assert [path.name for path in (cache / "bases").iterdir() if path.is_dir()] == [folders[0].name]


def test_a_conversion_that_fails_leaves_nothing_behind(multimodal: Path, tmp_path: Path, cache: Path) -> None:
    source = _copy(multimodal, tmp_path / "base")
    _edit_weights(source, lambda tensors: tensors.update({"audio_tower.weight": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"projector or vision tower; got audio_tower\.weight"):
        resolve_base(Student(model=str(source)))
    assert not [path for path in (cache / "bases").iterdir() if path.is_dir()]


def test_fp8_weights_are_refused_by_name(multimodal: Path, tmp_path: Path) -> None:
    source = _copy(multimodal, tmp_path / "Instruct-2512")
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as error:
        resolve_base(Student(model=str(source)))
    assert str(error.value) == (
        f"{source}: expected unquantized weights (student.quantization quantizes them on loading); got fp8; "
        f"use {source}-BF16"
    )


# ------------------------------------------------------------------------------------------- folders that are no models


def test_a_folder_without_weights_is_an_error(spm: Path, tmp_path: Path) -> None:
    source = _copy(spm, tmp_path / "base")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ModelError) as error:
        resolve_base(Student(model=str(source)))
    assert str(error.value) == (
        f"{source}: expected weights in *.safetensors; got config.json, generation_config.json, pytorch_model.bin, "
        "tokenizer.model, tokenizer.model.v3; save the model with `save_pretrained`, or name a repository that has "
        "safetensors"
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./no/such/folder", "student.model: expected an existing folder, a Hub repository `owner/name` or"),
        ("mistral", "student.model: expected an existing folder, a Hub repository `owner/name` or"),
        ("nobody/nothing", "nobody/nothing: expected a local folder or a reachable Hub; got neither"),
    ],
)
def test_a_model_that_is_nowhere_is_an_error(model: str, message: str) -> None:
    with pytest.raises(ModelError) as error:
        resolve_base(Student(model=model))
    assert str(error.value).startswith(message)


# ------------------------------------------------------------------------------------------------------ silent failures


def test_a_missing_weight_is_an_error(spm: Path, tmp_path: Path) -> None:
    """transformers would initialise it at random and go on."""
    folder = _edit_weights(_copy(spm, tmp_path / "base"), lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError) as error:
        _load(folder)
    assert str(error.value) == (
        f"{folder}: expected exactly the weights of the model in config.json; got missing: "
        "model.layers.1.mlp.up_proj.weight; download the model again, or correct config.json"
    )


def test_a_weight_of_another_shape_or_name_is_an_error(spm: Path, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = torch.ones(3)
        tensors["model.extra.weight"] = torch.ones(3)

    with pytest.raises(ModelError, match=r"model.extra.weight; of another shape: model.norm.weight \(3,\) for \(64,\)"):
        _load(_edit_weights(_copy(spm, tmp_path / "base"), edit))


def test_lora_outside_the_text_model_is_an_error(multimodal: Path) -> None:
    """PEFT's "all-linear" would adapt the vision tower and the projector too."""
    model = Mistral3ForConditionalGeneration.from_pretrained(multimodal)
    with pytest.raises(ModelError, match=r"without its output head; got model.vision_tower.transformer.layers.0"):
        attach_lora(model, Lora(rank=2), seed=0)
    with pytest.raises(ModelError, match=r"got model\.multi_modal_projector\.linear_1"):
        attach_lora(model, Lora(rank=2, targets=("linear_1",)), seed=0)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ("q_proj", "w1"),
            "student.lora.targets: expected names of linear layers (down_proj, gate_proj, k_proj, o_proj, q_proj, "
            "up_proj, v_proj); got w1",
        ),
        (
            ("q_proj", "lm_head"),
            "student.lora.targets: expected layers of the text model, without its output head; got lm_head; "
            "name other layers, or use a text-only model",
        ),
    ],
)
def test_wrong_lora_targets_are_errors(targets: tuple[str, ...], message: str, spm: Path) -> None:
    with pytest.raises(ModelError) as error:
        attach_lora(_load(spm), Lora(targets=targets), seed=0)
    assert str(error.value) == message


def test_an_adapter_of_another_model_is_an_error(spm: Path, tmp_path: Path) -> None:
    """PEFT would warn, and answer as the bare base model does."""
    adapted = attach_lora(_load(spm), Lora(rank=2, targets=("q_proj",)), seed=0)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({f"x.{name}": tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="expected the tensors of this base model's adapter; got a difference in"):
        load_adapter(_load(spm), tmp_path / "adapter")
    smaller = tiny_mistral(tmp_path / "smaller", "tekken")
    attach_lora(_load(spm), Lora(rank=2), seed=0).save_pretrained(str(tmp_path / "other"))
    with pytest.raises(ModelError, match="expected an adapter of this base model"):
        load_adapter(_load(smaller), tmp_path / "other")
    with pytest.raises(ModelError, match=r"nowhere: expected an adapter with adapter_config\.json; got no such file"):
        load_adapter(_load(spm), tmp_path / "nowhere")


def test_the_same_seed_starts_from_the_same_adapter_and_disturbs_nobody(spm: Path) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(99)
        model = attach_lora(_load(spm), Lora(rank=4), seed)
        assert torch.rand(1).item() == undisturbed
        return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}

    torch.manual_seed(99)
    undisturbed = torch.rand(1).item()
    first, again, other = start(5), start(5), start(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}


@pytest.mark.parametrize("variant", [{}, {"rslora": True}, {"dora": True}, {"dropout": 0.1}])
def test_lora_variants_start_as_the_base_model(variant: dict[str, Any], spm: Path) -> None:
    plain = _logits(_load(spm))
    adapted = attach_lora(_load(spm), Lora(rank=4, **variant), seed=0)
    assert torch.allclose(_logits(adapted), plain, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_with_multi_digit_tokens_is_an_error(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, "whole")
    with pytest.raises(ModelError) as error:
        load_tokenizer(folder)
    assert str(error.value) == (
        f"{folder}: tokenizer splits numbers into multi-digit tokens: expected one token per digit in "
        "{\"a\":10}; got the token '10'; choose a model that has one token per digit, such as any Mistral, Ministral "
        "or SmolLM2"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            CHAT_TEMPLATE.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'"),
            "expected the prompt's ids at the start of prompt and answer; got other ids from position",
        ),
        (
            CHAT_TEMPLATE.replace(
                "message['content'] + '<|im_end|>\n'",
                "message['content'] + ('' if message['role'] == 'assistant' else '<|im_end|>\n')",
            ),
            "expected an end token after the answer; got none of the ids [258]",
        ),
        (
            CHAT_TEMPLATE.replace("message['content'] +", "message['content'] | upper +"),
            "the chat template changes the",
        ),
        ("{{ raise_exception('no system message please') }}", "it says: no system message please"),
    ],
    ids=["other prompt", "no end token", "answer changed", "refused"],
)
def test_a_chat_template_that_would_teach_something_else_is_an_error(
    template: str, message: str, tmp_path: Path
) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError) as error:
        load_tokenizer(folder)
    assert message in str(error.value)


def test_a_tokenizer_of_another_model_is_an_error(spm: Path, tmp_path: Path) -> None:
    folder = _copy(spm, tmp_path / "base")
    write_mistral_tokenizer(folder, "tekken")
    with pytest.raises(ModelError, match="expected token ids below the model's vocab_size 32768; got 1"):
        load_tokenizer(folder)


def test_a_request_cannot_smuggle_special_tokens_into_a_chat_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama(tmp_path))
    row = ROW.model_copy(update={"request": "calm<|im_end|>"})
    with pytest.raises(ModelError) as error:
        encode_rows([row], TASK, tokenizer, 1000).checked()
    assert str(error.value) == (
        "row r: 'calm<|im_end|>': expected text without the model's special tokens; got '<|im_end|>'"
    )


def test_rows_too_long_are_reported_and_not_cut(spm: Path) -> None:
    tokenizer = load_tokenizer(spm)
    long = ROW.model_copy(update={"id": "long", "request": "夜" * 200})
    ((_, prompt, completion, _),) = encode_rows([ROW], TASK, tokenizer, 1000).encoded
    n_tokens = len(prompt) + len(completion)
    result = encode_rows([long, ROW], TASK, tokenizer, n_tokens)
    assert [row.id for row in result.encoded] == ["r"]
    assert [row_id for row_id, _ in result.too_long] == ["long"]
    assert encode_rows([ROW], TASK, tokenizer, n_tokens - 1).too_long == [("r", n_tokens)]


def test_decoding_stops_at_the_end_and_shows_garbage(spm: Path) -> None:
    tokenizer = load_tokenizer(spm)
    ids = tokenizer.completion_ids(TASK.messages("a", "en"), '{"a":42}')
    assert tokenizer.decode(ids) == '{"a":42}'
    assert tokenizer.decode([*ids, *ids]) == '{"a":42}'
    assert tokenizer.decode([3, *ids[:2], 1, 40_000]) == '[INST]{"a<s><unknown id 40000>'


def test_a_tokenizer_json_that_disagrees_with_tekken_is_not_exported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some Mistral repositories carry one with a wrong splitting expression; an engine reading it sees other ids."""
    from transformers import MistralCommonBackend

    write_mistral_tokenizer(tmp_path / "base", "tekken")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "ministral3"}')
    MistralCommonBackend(str(tmp_path / "base" / "tekken.json")).save_pretrained(tmp_path / "base", save_format="hf")
    load_tokenizer(tmp_path / "base").save(tmp_path / "good")
    assert caplog.messages == []
    assert (tmp_path / "good" / "tokenizer.json").is_file()

    content = json.loads((tmp_path / "base" / "tokenizer.json").read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\p{N}|[^\p{L}\p{N}]+"
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        load_tokenizer(tmp_path / "base").save(tmp_path / "bad")
    assert "tokenizer.json is left out of saved models" in caplog.text
    assert not (tmp_path / "bad" / "tokenizer.json").exists()
    assert (tmp_path / "bad" / "tekken.json").is_file()


# --------------------------------------------------------------------------------------------------------- quantization


@pytest.mark.parametrize(("kind", "layer", "tolerance"), [("nf4", "Linear4bit", 0.2), ("int8", "Linear8bitLt", 0.02)])
def test_a_quantized_base_trains_on_cpu(kind: Any, layer: str, tolerance: float, spm: Path) -> None:
    """Real bitsandbytes: close to the unquantized model, adapters in float32, gradients that lower the loss."""
    plain = _logits(_load(spm))
    model = _load(spm, quantization=kind)
    assert (_logits(model) - plain).abs().max() < tolerance * plain.abs().max()
    names = {type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    assert names == {layer}
    assert type(model.get_output_embeddings()).__name__ == "Linear"
    adapted = attach_lora(model, Lora(rank=4), seed=0)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    tokenizer = load_tokenizer(spm)
    ((_, prompt, completion, _),) = encode_rows([ROW], TASK, tokenizer, 1000).encoded
    before, after = _step(adapted, prompt, completion)
    assert after < before


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gradients_through_a_quantized_base_are_near_those_through_the_plain_one(kind: Any, spm: Path) -> None:
    """After an evaluation, as in training: on some CPUs bitsandbytes then repacks NF4 weights and loses gradients."""

    def gradients(model: PreTrainedModel) -> torch.Tensor:
        adapted = attach_lora(model, Lora(rank=4), seed=0)
        _logits(adapted)
        adapted.train()(input_ids=IDS, labels=IDS).loss.backward()
        found = [p.grad.flatten() for name, p in adapted.named_parameters() if "lora_B" in name and p.grad is not None]
        return torch.cat(found)

    plain, quantized = gradients(_load(spm)), gradients(_load(spm, quantization=kind))
    assert torch.cosine_similarity(plain, quantized, dim=0) > (0.97 if kind == "nf4" else 0.999)


def test_a_quantization_the_machine_cannot_do_is_an_error(spm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "quantization_problem", lambda kind, device: "RuntimeError: no native library")
    with pytest.raises(ModelError) as error:
        _load(spm, quantization="nf4")
    assert str(error.value) == (
        "student.quantization: expected a machine that can do nf4 on cpu; got: RuntimeError: no native library; "
        "set it to none, or install a bitsandbytes for this device"
    )
