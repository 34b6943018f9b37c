"""Training rows per second: plain TRL, tuned TRL, and this project's packed rows, in one run on one machine.

    python benchmarks/train_speed.py [--quick] [--out DIR] [--model tiny|smollm2-135m|mistral-7b] [--quantization nf4]

All train the same LoRA on the same rows: 60 shared instruction tokens, about 64 of request and 48 of answer, with a
realistic spread. Runs are interleaved, medians are reported, raw samples go to DIR/train_speed_MODEL.json, and the last
printed line is one JSON object of headline figures. `tiny` is a random Mistral of 384 x 8 layers, `mistral-7b` one of
that size, for a GPU.

Tokens are those of the rows by themselves, padding not counted and the instruction in every row. Useful operations are
4 for each weight and token (forward, and backward to the activations; the output head's for tokens of answers only), as
a share of what a large matrix product gives on this machine (MFU). Memory is the peak of the device's allocator,
counted on GPUs only.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from datasets import Dataset
from models import MODELS, VOCABULARY, Quantization, device_name, load_model, peak_flops
from transformers import PreTrainedModel, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ppe_lora.recipe.schema import Lora, Train
from ppe_lora.student.attention import IMPLEMENTATION
from ppe_lora.student.collate import PackedCollator, PaddedCollator
from ppe_lora.student.layout import IGNORED
from ppe_lora.student.load import attach_lora
from ppe_lora.student.trainer import PpeTrainer
from ppe_lora.student.training import unused_tokenizer

SHARED, REQUEST, ANSWER = 60, 64, 48
ROWS_PER_STEP = 8


class Peer(NamedTuple):
    """One way to train."""

    name: str
    trainer: type[SFTTrainer]
    collate: Any
    options: dict[str, Any]
    matmul: str = "highest"
    packs: bool = False
    """Whether TRL packs the rows, best fit first, to sequences as long as eight average rows."""


class StepTimes(TrainerCallback):
    """Seconds of every optimizer step but the first, which warms up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[float] = []
        """TRL's count of tokens so far, after every step."""
        self._last: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Note the tokens so far, where TRL counts them."""
        self.tokens += [float(logs["num_tokens"])] if "num_tokens" in logs else []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time since the step before."""
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def make_rows(count: int, vocabulary: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random token rows with the lengths of real ones."""
    rng = np.random.default_rng(seed)
    instruction = rng.integers(10, vocabulary, SHARED).tolist()
    rows = []
    for _ in range(count):
        request = int(np.clip(rng.lognormal(np.log(REQUEST) - 0.08, 0.4), 12, 240))
        answer = int(rng.integers(ANSWER - 3, ANSWER + 4))
        prompt = [*instruction, *rng.integers(10, vocabulary, request).tolist()]
        completion = rng.integers(10, vocabulary, answer).tolist()
        labels = [IGNORED] * len(prompt) + completion
        row = {"prompt_ids": prompt, "completion_ids": completion, "shared": SHARED}
        rows.append({**row, "input_ids": prompt + completion, "labels": labels})
    return rows


def peers() -> list[Peer]:
    """The contenders. TRL pads on the right with its own collator; `as documented` is its default configuration."""
    plain = DataCollatorForLanguageModeling(pad_token_id=0)
    padding_free = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    tuned = {"gradient_checkpointing": False, "optim": "adamw_torch_fused"}
    return [
        Peer("TRL as documented", SFTTrainer, plain, {}),
        Peer("TRL tuned", SFTTrainer, plain, tuned),
        Peer("TRL tuned, by length", SFTTrainer, plain, {**tuned, "train_sampling_strategy": "group_by_length"}),
        Peer("TRL tuned, packing", SFTTrainer, padding_free, tuned, packs=True),
        Peer("ours, padded", PpeTrainer, PaddedCollator(0), tuned),
        Peer("ours, packed", PpeTrainer, PackedCollator(), tuned),
        Peer("ours, packed, matmul medium", PpeTrainer, PackedCollator(), tuned, "medium"),
    ]


class Measured(NamedTuple):
    """What a peer's run of a few steps gave."""

    seconds: list[float]
    """Of `ROWS_PER_STEP` rows, for each step after the first."""
    peak_gib: float | None


def run_peer(peer: Peer, base: PreTrainedModel, rows: list[dict[str, Any]], steps: int, folder: str) -> Measured:
    """Train a fresh adapter on a fresh base for some steps."""
    times = StepTimes()
    data, batch = Dataset.from_list(rows), ROWS_PER_STEP
    if peer.packs:
        length = ROWS_PER_STEP * (SHARED + REQUEST + ANSWER)
        data, batch = pack_dataset(data.select_columns(["input_ids", "labels"]), length), 1
        steps = len(data)
    config = SFTConfig(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=2e-4,
        bf16=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available(), logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, max_length=None, remove_unused_columns=False, seed=0,
        dataset_kwargs={"skip_prepare_dataset": True}, **peer.options,
    )  # fmt: skip
    base.set_attn_implementation(IMPLEMENTATION if peer.trainer is PpeTrainer else "sdpa")
    trainer = peer.trainer(
        model=attach_lora(base, Lora(rank=16), seed=0), args=config, data_collator=peer.collate, train_dataset=data,
        processing_class=unused_tokenizer(), callbacks=[times],
    )  # fmt: skip
    if isinstance(trainer, PpeTrainer):
        trainer.state_dir = Path(folder)
        trainer.settings = Train(matmul=peer.matmul)  # type: ignore[arg-type]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    if not peer.packs:
        return Measured(times.seconds, peak_gib)
    usual = ROWS_PER_STEP * sum(len(row["input_ids"]) for row in rows) / len(rows)
    in_rows = zip(times.seconds, np.diff(times.tokens), strict=False)
    return Measured([second * usual / tokens for second, tokens in in_rows], peak_gib)


def useful_operations(base: PreTrainedModel, rows: list[dict[str, Any]]) -> float:
    """Of a training step, per row, without what padding or a needless pass would add."""
    head = base.config.vocab_size * base.config.hidden_size
    layers = base.num_parameters(exclude_embeddings=True) - (0 if base.config.tie_word_embeddings else head)
    tokens, answers = (sum(len(row[name]) for row in rows) / len(rows) for name in ("input_ids", "completion_ids"))
    return 4 * (layers * tokens + head * answers)


def main() -> None:
    """Measure, print a table, and end with the headline figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--model", default="tiny", choices=MODELS)
    parser.add_argument("--quantization", default="none", choices=get_args(Quantization))
    asked = parser.parse_args()
    rounds, steps = (2, 4) if asked.quick else (3, 9)
    rows = make_rows(ROWS_PER_STEP * steps, VOCABULARY)
    samples: dict[str, list[float]] = {peer.name: [] for peer in peers()}
    peak_gib: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as work:
        for number in range(rounds):
            for peer in peers():
                base = load_model(asked.model, Path(work), asked.quantization)
                operations, dtype = useful_operations(base, rows), base.dtype
                with tempfile.TemporaryDirectory() as folder:
                    seconds, peak_gib[peer.name] = run_peer(peer, base, rows, steps, folder)
                samples[peer.name] += seconds
                print(f"round {number + 1}: {peer.name}: {ROWS_PER_STEP / seconds[-1]:.2f} rows/s", flush=True)
                del base
                gc.collect()  # a trainer holds its model in a circle; the next peer's peak must not count it
    rate = {name: ROWS_PER_STEP / statistics.median(seconds) for name, seconds in samples.items()}
    tokens = sum(len(row["input_ids"]) for row in rows) / len(rows)
    share = operations / peak_flops(dtype)
    documented = rate["TRL as documented"]
    print(f"\n| {asked.model}, {asked.quantization} | rows/s | times TRL as documented | tokens/s | MFU | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, value in rate.items():
        gib = peak_gib[name]
        print(f"| {name} | {value:.2f} | {value / documented:.2f} | {value * tokens:.0f} | {value * share:.2f} "
              f"| {'' if gib is None else f'{gib:.1f}'} |")  # fmt: skip
    best_trl = max(value for name, value in rate.items() if name.startswith("TRL"))
    headline = {
        "model": asked.model,
        "quantization": asked.quantization,
        "device": device_name(),
        "rows_per_s": round(rate["ours, packed"], 3),
        "rows_per_s_vs_trl_default": round(rate["ours, packed"] / documented, 3),
        "rows_per_s_vs_trl_best": round(rate["ours, packed"] / best_trl, 3),
        "matmul_medium_vs_highest": round(rate["ours, packed, matmul medium"] / rate["ours, packed"], 3),
        "mfu": round(rate["ours, packed"] * share, 3),
        "peak_gib": peak_gib["ours, packed"],
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    raw = {
        "headline": headline,
        "seconds_per_step": samples,
        "peak_gib": peak_gib,
        "rows_per_step": ROWS_PER_STEP,
        "tokens_per_row": tokens,
        "useful_operations_per_row": operations,
        "torch": torch.__version__,
    }
    name = asked.model if asked.quantization == "none" else f"{asked.model}_{asked.quantization}"
    (asked.out / f"train_speed_{name}.json").write_text(json.dumps(raw, indent=2) + "\n")
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
