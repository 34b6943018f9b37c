"""Trainings by other means that must make the same adapter: TRL's own, and one on the weights that NF4 stands for."""

import shutil
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from ppe_lora.corpus.rows import read_rows, split_path
from ppe_lora.recipe.schema import Lora, Student
from ppe_lora.student.load import attach_lora, load_base
from tests.pipeline.test_training import EVALUATE, TRAIN, UNGATED, adapter_of, run_in
from tests.runs import TASK


def lora_start(speaker: Path) -> dict[str, torch.Tensor]:
    """The adapter before training."""
    return get_peft_model_state_dict(attach_lora(AutoModelForCausalLM.from_pretrained(speaker), Lora(rank=4), seed=0))


def test_text_alone_is_plain_sft(speaker, tmp_path):
    """Without terms for the numbers, the run is what TRL makes of the same prompts and completions by its own
    tokenization, padding and loss: the same adapter after two epochs."""
    text_alone = (
        TRAIN.format(micro=4).replace("raft: 1, crps: 1, legal: 1, head: 1", "").replace("epochs: 1", "epochs: 2")
    )
    ours = run_in(tmp_path, speaker, text_alone, EVALUATE)
    tokenizer = AutoTokenizer.from_pretrained(speaker)
    rows = read_rows(split_path(tmp_path / "data" / "d", "train"), TASK)
    said = [
        {
            "prompt": tokenizer.apply_chat_template(
                TASK.messages(row.request, "en"), tokenize=False, add_generation_prompt=True
            ),
            "completion": TASK.render(row.target),  # TRL adds the end token
        }
        for row in rows
    ]
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"), num_train_epochs=2, learning_rate=5e-3, per_device_train_batch_size=8,
        lr_scheduler_type="cosine", warmup_steps=0.05, seed=0, data_seed=0, use_cpu=True, bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model = attach_lora(AutoModelForCausalLM.from_pretrained(speaker), Lora(rank=4), seed=0)
    start = lora_start(speaker)
    SFTTrainer(model, config, train_dataset=Dataset.from_list(said), processing_class=tokenizer).train()
    trained = load_file(ours / "epochs" / "002" / "adapter" / "adapter_model.safetensors")
    for name, tensor in get_peft_model_state_dict(model).items():
        moved = (tensor - start[name]).norm()
        assert moved > 0.1
        assert (trained[name] - tensor).norm() < 1e-3 * moved, name


def dequantized(folder: Path, to: Path) -> Path:
    """The model with the weights that NF4 makes of its own, as plain ones."""
    plain = AutoModelForCausalLM.from_pretrained(folder)
    changed = 0.0
    for name, layer in load_base(Student(model=str(folder), quantization="nf4"), folder, "cpu").named_modules():
        if isinstance(layer, Linear4bit):
            weight = plain.get_submodule(name).weight.data
            before = weight.clone()
            weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
            changed += float((weight - before).norm())
    assert changed > 1
    shutil.copytree(folder, to)
    plain.save_pretrained(to)
    return to


def test_training_on_nf4_is_training_on_the_weights_it_stands_for(speaker, tmp_path):
    """Real bitsandbytes on the CPU: the whole objective makes the adapter, in float32, that it makes on a plain base
    with the same rounded weights. TRL would round the adapter before it starts."""
    plain = dequantized(speaker, tmp_path / "dequantized")
    found = []
    for model, quantization in ((speaker, "nf4"), (plain, "none")):
        student = f"student: {{model: '{model}', quantization: {quantization}, lora: {{rank: 4}}}}"
        sections = (student, TRAIN.format(micro=4), UNGATED)
        found.append(adapter_of(run_in(tmp_path / quantization, speaker, *sections)))
    nf4, expected = found
    start = lora_start(speaker)
    for name, tensor in expected.items():
        assert nf4[name].dtype == torch.float32
        moved = (tensor - start[name]).norm()
        assert moved > 0.01
        assert (nf4[name] - tensor).norm() < 1e-4 * moved, name
