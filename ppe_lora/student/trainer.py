"""The SFT trainer: TRL's, with our loss and with checkpoints that are whole or absent."""

import math
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from ppe_lora.boundary import in_words
from ppe_lora.errors import RunError
from ppe_lora.recipe.schema import Recipe, Train
from ppe_lora.student.checkpoints import STAGING, commit_checkpoint
from ppe_lora.student.divergence import check_adapter
from ppe_lora.student.head import TeachingHeads
from ppe_lora.student.machine import bfloat16_supported
from ppe_lora.student.objective import training_loss
from ppe_lora.student.trie import ScoreTrie

_ALL_STEPS = math.nextafter(1.0, 0.0)
"""The largest share of steps; 1 would be a single step."""


class PpeTrainer(SFTTrainer):
    """TRL's trainer on rows that are tokens already.

    `compute_loss` is the objective divided by the completion tokens of the whole optimizer step, all micro-steps and
    processes together, so that the batching does not change the result. With several processes it does where the rows
    of an epoch are no multiple of rows_per_micro_step x processes: accelerate fills up the last step with the epoch's
    first rows. TRL's entropy and accuracy, each a host synchronization per micro-step, are not computed.
    """

    state_dir: Path
    settings: Train
    trie: ScoreTrie | None = None
    spread_K: torch.Tensor | None = None
    """Standard deviation of each key's training targets, task units."""
    heads: TeachingHeads | None = None
    """Fitted before training, where the objective has a term for them."""
    unembedding: nn.Linear | None = None
    """The model's, from `outputs.unembedding_of`."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Summed objective of the micro-batch over the completion tokens of the step (a scalar, in nats)."""
        if return_outputs:
            raise NotImplementedError("this trainer has no evaluation loop; epochs are evaluated by EpochEvaluation")
        loss, tokens = training_loss(
            model, inputs, self.settings.objective, self.trie, self.spread_K, self.heads, self.unembedding
        )
        # DDP averages gradients over processes, while num_items_in_batch counts the tokens of all of them.
        return loss / (tokens if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-step, with products as precise as the recipe asks.

        Under autocast PEFT does not cast the inputs of adapters to float32, their weights' type: autocast would take
        them back to bfloat16 for the product.
        """
        torch.set_float32_matmul_precision(self.settings.matmul)
        self._cast_inputs(not self.args.bf16)
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self._cast_inputs(True)
            torch.set_float32_matmul_precision("highest")

    def _cast_inputs(self, wanted: bool) -> None:
        for layer in self._adapted:
            layer.cast_input_dtype_enabled = wanted

    @cached_property
    def _adapted(self) -> list[Any]:
        model: Any = self.model
        return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.state_dir / STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        check_adapter(model, self.state_dir.parent, self.state.global_step)
        doing = f"{self.state_dir}: the checkpoint of step {self.state.global_step} could not be written"
        staged = self.state_dir / STAGING
        with in_words(doing, "Continue with `ppe-lora train --resume`: earlier checkpoints are untouched"):
            if self.accelerator.is_main_process:
                shutil.rmtree(staged, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            try:
                # SFTTrainer's own version only adds a model card to each checkpoint.
                Trainer._save_checkpoint(self, model, trial)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)  # half a checkpoint would only fill the disk further
                raise
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                commit_checkpoint(self.state_dir, self.state.global_step, self.settings.keep_checkpoints)
            self.accelerator.wait_for_everyone()


def sft_config(recipe: Recipe, run_dir: Path, processes: int, rows_per_micro_step: int) -> SFTConfig:
    """The trainer's configuration for a recipe.

    Args:
        recipe: The experiment.
        run_dir: Its folder.
        processes: Among which the rows of a step are divided.
        rows_per_micro_step: The recipe's number, or what its `auto` is here.

    Raises:
        RunError: The rows of a step cannot be divided among the processes.
    """
    train = recipe.train
    accumulation, rest = divmod(train.rows_per_step, rows_per_micro_step * processes)
    if rest or not accumulation:
        raise RunError(
            f"train.rows_per_step: expected a multiple of rows_per_micro_step x processes "
            f"({rows_per_micro_step} x {processes}); got {train.rows_per_step}"
        )
    on_cpu = not torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(run_dir / "state"),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=rows_per_micro_step,
        gradient_accumulation_steps=accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(train.schedule, train.schedule),
        warmup_steps=min(train.warmup, _ALL_STEPS),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=train.optimizer,
        gradient_checkpointing=train.gradient_checkpointing,
        bf16=bfloat16_supported(torch.device("cpu" if on_cpu else "cuda")) and recipe.student.dtype != "float32",
        use_cpu=on_cpu,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        max_length=None,
        dataloader_pin_memory=not on_cpu,
        ddp_find_unused_parameters=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    # A launcher's --mixed_precision would otherwise hold where the recipe has none: fp16 overflows.
    config.mixed_precision = "bf16" if config.bf16 else "no"
    return config
