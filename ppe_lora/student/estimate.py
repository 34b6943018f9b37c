"""What a recipe needs before it runs: peak memory, rows per second and time, here and on named cards.

All from counts, with one assumption per line; P linear parameters in billions, t tokens of a row.

    memory       see `need_bytes`
    training     4 P GFLOP a token (forward, and backward through frozen weights; 6 P with gradient checkpointing)
    evaluation   2 P GFLOP a token: the row, the drafted answer with its branches, and its own answer to be scored
    speed        the card's dense bfloat16 peak x 0.4; on a CPU what a matrix product of this machine reaches x 0.6
    nf4, int8    weights are unpacked once a pass: 2.5 bytes a parameter moved at the card's memory bandwidth

A row is taken as 60 instruction tokens shared by the rows of a micro step, 64 of request and 48 of answer; a score read
in training or evaluation adds its branches (10 tokens for whole numbers to 100), and its own start where it is read
from the request alone. The time that a model too small to fill a GPU loses there is not counted: for a 135M model, the
speed of a GPU is an upper bound.
"""

import time
from typing import Literal, NamedTuple

import psutil  # type: ignore[import-untyped]
import torch

from ppe_lora.recipe.schema import GenerateSource, Recipe, SplitName
from ppe_lora.student.machine import GB, Size, bfloat16_supported, model_size

INSTRUCTION_TOKENS, REQUEST_TOKENS, ANSWER_TOKENS = 60, 64, 48
_BRANCH_TOKENS, _ALONE_TOKENS = 10, 5
_GPU_UTILIZATION, _CPU_UTILIZATION = 0.4, 0.6
_UNPACKED_BYTES = 2.5  # 0.5 read and 2 written
_WEIGHT_BYTES = {"int8": 1.0, "nf4": 0.52}  # NF4: 4 bits and 0.127 for the doubly quantized scales (arXiv 2305.14314)
_ADAPTER_SHARE = (
    3.75e-4  # LoRA parameters per rank and parameter of a 7B's linear layers: sum(in + out) / sum(in * out)
)
_ACTIVATION_BYTES = 6.7 * 2**20  # per token for a 7B in bfloat16 under PEFT, without checkpointing
_CHECKPOINTED = 0.08  # of these with checkpointing: the inputs of each layer, and one layer's own
_GPU_OVERHEAD_BYTES = 1.5e9  # CUDA context, workspaces, fragmentation
_CPU_OVERHEAD_BYTES = 4e9  # libraries, decoding: SmolLM2 peaks at 3.1 to 5.5 GB, where the rest adds up to 0.9 (LOG.md)
_NEEDS_GPU = 1e9  # parameters from which a training takes weeks on a CPU
_CPU_ROWS = 8  # the longest packs tried there; 0.76 of the time of packs of 2 (LOG.md)
_FILLED = 0.8  # share of the free memory that `auto` fills: rows differ in length, and the need is an estimate


class Card(NamedTuple):
    """A device: memory in bytes, dense bfloat16 FLOP/s, memory bandwidth in bytes/s."""

    name: str
    memory: float
    flops: float
    bandwidth: float
    is_gpu: bool = True


CARDS = (
    Card("RTX 3060 12 GB", 12e9, 51e12, 0.36e12),
    Card("RTX 4090", 24e9, 165e12, 1.0e12),
    Card("A100 80 GB", 80e9, 312e12, 2.0e12),
    Card("H200", 141e9, 788e12, 4.8e12),
)
"""From the makers' data sheets; the H200's FLOP/s is what matrix products reach."""


Fit = Literal["yes", "tight", "no"]
"""Whether a training fits a memory; tight: above the share that `auto` fills."""


def fit(need: float, memory: float) -> Fit:
    """The word for bytes that are needed of bytes that are there."""
    return "yes" if need <= _FILLED * memory else "tight" if need < memory else "no"


class Need(NamedTuple):
    """Peak memory of a training in bytes, by what takes it."""

    weights: float
    adapter: float
    activations: float
    overhead: float

    @property
    def total(self) -> float:
        """The sum."""
        return sum(self)


class Estimate(NamedTuple):
    """A recipe on a card. Speeds are rows per second, times seconds."""

    card: Card
    need: Need
    rows_per_s: float
    training_s: float
    evaluation_s: float

    @property
    def fits(self) -> Fit:
        """Whether the peak fits the card's memory."""
        return fit(self.need.total, self.card.memory)


def fitting_rows(recipe: Recipe, size: Size, free: float, *, on_gpu: bool, bfloat16: bool, processes: int = 1) -> int:
    """Rows per micro step: the recipe's number, or for `auto` the largest power of two that divides the rows of a step
    and process and whose training needs at most 0.8 of the free memory; 1 if none does, and at most 8 on a CPU.

    Args:
        recipe: Model, quantization, adapter, rows per step.
        size: Of the model.
        free: Bytes of memory, before the model is loaded.
        on_gpu: Whether it runs on a GPU.
        bfloat16: Whether the device computes in bfloat16.
        processes: Among which the rows of a step are divided.
    """
    given = recipe.train.rows_per_micro_step
    if given != "auto":
        return given
    rows, own = 1, recipe.train.rows_per_step // processes
    while own % (2 * rows) == 0 and (on_gpu or rows < _CPU_ROWS):
        if need_bytes(recipe, size, rows=2 * rows, on_gpu=on_gpu, bfloat16=bfloat16).total > _FILLED * free:
            break
        rows *= 2
    return rows


def need_bytes(recipe: Recipe, size: Size, *, rows: int, on_gpu: bool, bfloat16: bool) -> Need:
    """Peak memory of a training.

        weights      linear parameters x (2 bfloat16 | 4 float32 | 1 int8 | 0.52 nf4), embeddings x (2 | 4)
        adapter      rank x 3.75e-4 x linear parameters x 16 (float32 weight, gradient and two moments)
        activations  tokens per micro step x 6.7 MiB x (parameters / 7.25e9)^(2/3); x 0.08 with gradient checkpointing
        overhead     1.5e9 on a GPU, 4e9 on a CPU, where the libraries' own memory and that of decoding are the same

    Args:
        recipe: Model, quantization, adapter.
        size: Of the model.
        rows: Per micro step.
        on_gpu: Whether it runs on a GPU.
        bfloat16: Whether the device computes in bfloat16.
    """
    student = recipe.student
    wide = 4 if student.dtype == "float32" or (student.dtype == "auto" and not bfloat16) else 2
    linear = size.parameters - size.embeddings
    tokens = rows * min(_row_tokens(recipe, rows), student.max_tokens)
    activations = tokens * _ACTIVATION_BYTES * (wide / 2) * (size.parameters / 7.25e9) ** (2 / 3)
    return Need(
        linear * _WEIGHT_BYTES.get(student.quantization, wide) + size.embeddings * wide,
        student.lora.rank * _ADAPTER_SHARE * linear * 16,
        activations * (_CHECKPOINTED if recipe.train.gradient_checkpointing else 1.0),
        _GPU_OVERHEAD_BYTES if on_gpu else _CPU_OVERHEAD_BYTES,
    )


def estimate(recipe: Recipe, size: Size, card: Card, *, train_rows: int, valid_rows: int) -> Estimate:
    """Memory, speed and time of a whole run: all epochs, each with its evaluation.

    Args:
        recipe: The experiment.
        size: Of its model.
        card: Where it runs.
        train_rows: Rows of an epoch.
        valid_rows: Rows decoded after each.
    """
    rows = fitting_rows(recipe, size, card.memory, on_gpu=card.is_gpu, bfloat16=card.is_gpu)
    linear = size.parameters - size.embeddings
    speed = card.flops * (_GPU_UTILIZATION if card.is_gpu else _CPU_UTILIZATION)
    passes_per_token = 6 if recipe.train.gradient_checkpointing else 4
    unpacking = _UNPACKED_BYTES * linear / card.bandwidth if recipe.student.quantization != "none" else 0.0
    step_s = _row_tokens(recipe, rows) * passes_per_token * linear / speed
    step_s += unpacking * passes_per_token / 2 / rows
    scored = REQUEST_TOKENS + 2 * ANSWER_TOKENS + _slot_tokens(recipe)
    row_s = scored * 2 * linear / speed + unpacking * 9 / recipe.evaluate.batch_rows
    epochs = recipe.train.epochs
    need = need_bytes(recipe, size, rows=rows, on_gpu=card.is_gpu, bfloat16=card.is_gpu)
    return Estimate(card, need, 1 / step_s, epochs * train_rows * step_s, epochs * valid_rows * row_s)


def expected_rows(recipe: Recipe) -> tuple[int, int] | None:
    """Training and validation rows that a recipe asks for, before its filters; None for an import of unknown size."""
    split = recipe.data.split
    source = recipe.data.source
    asked = source.rows if isinstance(source, GenerateSource) else None
    counts = []
    shares: tuple[tuple[SplitName, float], ...] = (("train", 1 - split.valid - split.test), ("valid", split.valid))
    for name, share in shares:
        most = split.max_rows.get(name)
        if asked is None and most is None:
            return None
        counts.append(min(value for value in (most, asked and round(asked * share)) if value is not None))
    return counts[0], counts[1]


def this_machine() -> Card:
    """The first GPU with the speed of its kind (of an A100 where the kind is not among `CARDS`; the name says so), or
    this CPU with the FLOP/s that a matrix product reaches now (takes a second)."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        known = next((card for card in CARDS if _kind(card.name) in properties.name), None)
        name = properties.name if known else f"{properties.name} (speed of an A100)"
        return (known or CARDS[2])._replace(name=name, memory=float(properties.total_memory))
    factor = torch.ones(1024, 1024)
    factor @ factor
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        factor @ factor
        count += 1
    flops = count * 2 * 1024**3 / (time.perf_counter() - started)
    return Card("this CPU", float(psutil.virtual_memory().available), flops, 20e9, is_gpu=False)


def _kind(name: str) -> str:
    """The part of a card's name that its driver gives too: 4090, A100, H200."""
    return next(word for word in name.split() if len(word) == 4 and word[-1].isdigit())


def fit_here(recipe: Recipe) -> tuple[Fit | None, str]:
    """Whether training fits this machine, and a sentence with the figures; None and why for a model of unknown size.
    Without a GPU a model of a billion parameters or more does not, whatever the memory."""
    size = model_size(recipe.student)
    if size is None:
        return None, f"{recipe.student.model}: unknown size, so no estimate; load it once to see"
    model = f"{recipe.student.model} ({recipe.student.quantization})"
    on_gpu = torch.cuda.is_available()
    if not on_gpu and size.parameters >= _NEEDS_GPU:
        return "no", f"{model} needs a GPU: on this CPU a training takes weeks"
    bfloat16 = bfloat16_supported(torch.device("cuda" if on_gpu else "cpu"))
    have = torch.cuda.get_device_properties(0).total_memory if on_gpu else psutil.virtual_memory().available
    rows = fitting_rows(recipe, size, have, on_gpu=on_gpu, bfloat16=bfloat16)
    need = need_bytes(recipe, size, rows=rows, on_gpu=on_gpu, bfloat16=bfloat16)
    return (
        fit(need.total, have),
        f"{model} needs about {need.total / GB:.1f} of {have / GB:.1f} GB "
        f"of {'GPU' if on_gpu else 'free'} memory: weights {need.weights / GB:.1f}, adapter {need.adapter / GB:.1f}, "
        f"activations {need.activations / GB:.1f}, the rest {need.overhead / GB:.1f}",
    )


def free_bytes(device: torch.device) -> float:
    """Free memory of a GPU, or of the machine."""
    return float(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def _row_tokens(recipe: Recipe, rows: int) -> float:
    shared = INSTRUCTION_TOKENS / rows
    objective = recipe.train.objective
    slots = _slot_tokens(recipe) if objective.reads_numbers else 0
    return shared + REQUEST_TOKENS + ANSWER_TOKENS + slots


def _slot_tokens(recipe: Recipe) -> int:
    alone = _ALONE_TOKENS if recipe.train.objective.slots == "request" else 0
    return len(recipe.task.keys) * (_BRANCH_TOKENS + alone)
