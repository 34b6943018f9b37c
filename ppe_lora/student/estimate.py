"""What a recipe needs before it runs: peak memory, rows per second and time, here and on named cards.

All from counts, with one assumption per line; P linear parameters in billions, t tokens of a row.

    memory       see `need_bytes`
    training     4 P GFLOP a token (forward, and backward through frozen weights; 6 P with gradient checkpointing)
    evaluation   2 P GFLOP a token: the row, the drafted answer with its branches, and its own answer to be scored
    speed        the card's dense bfloat16 peak x 0.4; on a CPU what a matrix product of this machine reaches x 0.6
    nf4, int8    weights are unpacked once a pass: 2.5 bytes a parameter moved at the card's memory bandwidth

What a row takes is counted in the rows where there are some, else assumed (`row_tokens.py`); a score read in training
or evaluation adds its branches, and its own start where it is read from the request alone. The time that a model too
small to fill a GPU loses there is not counted: for a 135M model, the speed of a GPU is an upper bound.
"""

import time
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import psutil  # type: ignore[import-untyped]
import torch

from ppe_lora.corpus.importers import read_import
from ppe_lora.corpus.rows import read_rows, split_path
from ppe_lora.errors import ModelError
from ppe_lora.recipe.schema import GenerateSource, Recipe, SplitName
from ppe_lora.student.base import resolve_tokenizer
from ppe_lora.student.encode import encode_rows
from ppe_lora.student.machine import GB, Size, bfloat16_supported, model_size
from ppe_lora.student.row_tokens import RowTokens, assumed_tokens, counted_tokens
from ppe_lora.student.tokenizer import load_tokenizer

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


_SAMPLED_ROWS = 500
_TRAINED_ON: tuple[SplitName, ...] = ("train", "valid")


class Card(NamedTuple):
    """A device: memory in bytes, dense bfloat16 FLOP/s, memory bandwidth in bytes/s."""

    name: str
    memory: float
    flops: float
    bandwidth: float
    is_gpu: bool = True
    exact_flops: float | None = None
    """Where products of whole float32 are slower than what `train.matmul` asks for: their FLOP/s, for evaluation."""


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


def fitting_rows(
    recipe: Recipe,
    size: Size,
    free: float,
    *,
    on_gpu: bool,
    bfloat16: bool,
    processes: int = 1,
    tokens: RowTokens | None = None,
) -> int:
    """Rows per micro step: the recipe's number, or for `auto` the largest power of two that divides the rows of a step
    and process and whose training needs at most 0.8 of the free memory; 1 if none does, and at most 8 on a CPU.

    Args:
        recipe: Model, quantization, adapter, rows per step.
        size: Of the model.
        free: Bytes of memory, before the model is loaded.
        on_gpu: Whether it runs on a GPU.
        bfloat16: Whether the device computes in bfloat16.
        processes: Among which the rows of a step are divided.
        tokens: Of a row; assumed by default.
    """
    given = recipe.train.rows_per_micro_step
    if given != "auto":
        return given
    rows, own = 1, recipe.train.rows_per_step // processes
    while own % (2 * rows) == 0 and (on_gpu or rows < _CPU_ROWS):
        need = need_bytes(recipe, size, rows=2 * rows, on_gpu=on_gpu, bfloat16=bfloat16, tokens=tokens)
        if need.total > _FILLED * free:
            break
        rows *= 2
    return rows


def need_bytes(
    recipe: Recipe, size: Size, *, rows: int, on_gpu: bool, bfloat16: bool, tokens: RowTokens | None = None
) -> Need:
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
        tokens: Of a row; assumed by default.
    """
    student, tokens = recipe.student, tokens or assumed_tokens(recipe)
    wide = 4 if student.dtype == "float32" or (student.dtype == "auto" and not bfloat16) else 2
    linear = size.parameters - size.embeddings
    at_once = rows * (tokens.high(rows) + _trained_slots(recipe, tokens))
    activations = at_once * _ACTIVATION_BYTES * (wide / 2) * (size.parameters / 7.25e9) ** (2 / 3)
    return Need(
        linear * _WEIGHT_BYTES.get(student.quantization, wide) + size.embeddings * wide,
        student.lora.rank * _ADAPTER_SHARE * linear * 16,
        activations * (_CHECKPOINTED if recipe.train.gradient_checkpointing else 1.0),
        _GPU_OVERHEAD_BYTES if on_gpu else _CPU_OVERHEAD_BYTES,
    )


def estimate(
    recipe: Recipe, size: Size, card: Card, *, train_rows: int, valid_rows: int, tokens: RowTokens | None = None
) -> Estimate:
    """Memory, speed and time of a whole run: all epochs, each with its evaluation.

    Args:
        recipe: The experiment.
        size: Of its model.
        card: Where it runs.
        train_rows: Rows of an epoch.
        valid_rows: Rows decoded after each.
        tokens: Of a row; assumed by default.
    """
    tokens = tokens or assumed_tokens(recipe)
    bfloat16 = card.is_gpu
    rows = fitting_rows(recipe, size, card.memory, on_gpu=card.is_gpu, bfloat16=bfloat16, tokens=tokens)
    linear = size.parameters - size.embeddings
    used = _GPU_UTILIZATION if card.is_gpu else _CPU_UTILIZATION
    passes_per_token = 6 if recipe.train.gradient_checkpointing else 4
    unpacking = _UNPACKED_BYTES * linear / card.bandwidth if recipe.student.quantization != "none" else 0.0
    step_s = (tokens.mean(rows) + _trained_slots(recipe, tokens)) * passes_per_token * linear / (card.flops * used)
    step_s += unpacking * passes_per_token / 2 / rows
    scored = tokens.request + 2 * tokens.answer + tokens.slots
    row_s = scored * 2 * linear / ((card.exact_flops or card.flops) * used)
    row_s += unpacking * 9 / recipe.evaluate.batch_rows
    epochs = recipe.train.epochs
    need = need_bytes(recipe, size, rows=rows, on_gpu=card.is_gpu, bfloat16=bfloat16, tokens=tokens)
    return Estimate(card, need, 1 / step_s, epochs * train_rows * step_s, epochs * valid_rows * row_s)


class Data(NamedTuple):
    """What is known of a recipe's rows."""

    train_rows: int
    valid_rows: int
    tokens: RowTokens
    known_from: str
    """Where the numbers are from, in words."""


def expected_data(recipe: Recipe, data_dir: Path) -> Data:
    """Rows and their tokens: counted in the data set where it has been built, else rows by what the recipe asks for or
    imports, before any filter, and tokens by assumption.

    Raises:
        DataError: The data set or an imported file cannot be read.
    """
    if (data_dir / "manifest.json").is_file():
        rows = {name: read_rows(split_path(data_dir, name), recipe.task) for name in _TRAINED_ON}
        counts = [len(some) for some in rows.values()]
        try:
            tokenizer = load_tokenizer(resolve_tokenizer(recipe.student))
            sample = rows["train"][:: max(1, counts[0] // _SAMPLED_ROWS)]
            encoded = encode_rows(sample, recipe.task, tokenizer, recipe.student.max_tokens).encoded
        except ModelError as error:
            told = f"rows counted in {data_dir}; tokens assumed: {error}"
            return Data(counts[0], counts[1], assumed_tokens(recipe), told)
        if encoded:
            told = f"rows counted in {data_dir}, tokens in {len(encoded)} of them"
            return Data(counts[0], counts[1], counted_tokens(recipe, encoded), told)
    train, valid = _asked_rows(recipe)
    told = f"{data_dir} is not built: rows by the recipe, before any filter, and tokens of a row assumed"
    return Data(train, valid, assumed_tokens(recipe), told)


def _asked_rows(recipe: Recipe) -> tuple[int, int]:
    split, source = recipe.data.split, recipe.data.source
    shares: dict[SplitName, float] = {"train": 1 - split.valid - split.test, "valid": split.valid}
    if isinstance(source, GenerateSource):
        counts = {name: round(source.rows * share) for name, share in shares.items()}
    else:
        imported = read_import(source, recipe.task, "data.source")
        official = Counter(imported.splits or ())
        counts = {
            name: official[name] if imported.splits else round(len(imported.rows) * share)
            for name, share in shares.items()
        }
    train, valid = (min(counts[name], split.max_rows.get(name, counts[name])) for name in _TRAINED_ON)
    return train, valid


def this_machine(matmul: str = "highest") -> Card:
    """The first GPU with the speed of its kind (of an A100 where the kind is not among `CARDS`; the name says so), or
    this CPU with the FLOP/s that matrix products reach (takes a second).

    Args:
        matmul: Their precision in training (recipe key `train.matmul`): bfloat16 is up to ten times faster on a CPU.
    """
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        known = next((card for card in CARDS if _kind(card.name) in properties.name), None)
        name = properties.name if known else f"{properties.name} (speed of an A100)"
        return (known or CARDS[2])._replace(name=name, memory=float(properties.total_memory))
    memory, exact = float(psutil.virtual_memory().available), _cpu_flops("highest")
    return Card("this CPU", memory, _cpu_flops(matmul), 20e9, is_gpu=False, exact_flops=exact)


def _cpu_flops(matmul: str) -> float:
    """FLOP/s of the fastest of many products: what else runs slows most of them down, and is gone when it ends."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul)
    try:
        factor = torch.ones(1024, 1024)
        factor @ factor
        fastest, until = float("inf"), time.perf_counter() + 0.5
        while time.perf_counter() < until:
            started = time.perf_counter()
            factor @ factor
            fastest = min(fastest, time.perf_counter() - started)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * 1024**3 / fastest


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


def _trained_slots(recipe: Recipe, tokens: RowTokens) -> float:
    return tokens.slots if recipe.train.objective.reads_numbers else 0
