"""A model in this process: forced decoding, so that every answer is valid, with the distribution of every score."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ppe_lora.corpus.rows import Row
from ppe_lora.errors import ModelError
from ppe_lora.evaluation.calibration import Calibration
from ppe_lora.evaluation.runs import check_measured, check_training
from ppe_lora.export.contract import Contract
from ppe_lora.export.parity import check_files
from ppe_lora.recipe import Recipe
from ppe_lora.recipe.schema import Student
from ppe_lora.serving.aside import aside
from ppe_lora.serving.backend import ApiError, Ask, Reply
from ppe_lora.serving.batching import Batcher, QueueFull
from ppe_lora.serving.reading import Reader, find_calibration
from ppe_lora.serving.settings import Settings
from ppe_lora.student.base import resolve_base, resolve_trained_base
from ppe_lora.student.collate import packs_exactly
from ppe_lora.student.decode import Decoder
from ppe_lora.student.encode import EncodedRow, encode_rows
from ppe_lora.student.head import Head
from ppe_lora.student.load import StudentModel, load_adapter, load_base
from ppe_lora.student.read_out import Reading
from ppe_lora.student.tokenizer import StudentTokenizer, load_tokenizer
from ppe_lora.tasks.scores import Language

DEVICE = threading.Lock()
"""One batch at a time: models in one process share the processor or the GPU."""

_PROBES: dict[Language, tuple[str, str]] = {"en": ("a calm song", "Loud!"), "ja": ("静かな曲", "うるさく！")}


class Loaded(NamedTuple):
    """A model in memory, and what it was trained to be asked."""

    kind: str
    contract: Contract
    model: StudentModel
    tokenizer: StudentTokenizer
    calibration: Calibration | None
    head: Head | None


def load_merged(folder: Path, contract: Contract) -> Loaded:
    """Load an exported folder, which holds all that is needed.

    Raises:
        ModelError: The weights or the tokenizer cannot be used, or the files are not those that were proven.
    """
    check_files(folder)
    calibration = _calibration(folder, contract)
    model = load_base(Student(model=str(folder)), folder, _device())
    return Loaded("merged", contract, model, load_tokenizer(folder), calibration, Head.load(folder))


def load_run(folder: Path, recipe: Recipe, contract: Contract) -> Loaded:
    """Load a run's selected adapter on its base model.

    Raises:
        ModelError: The base model, the adapter or the tokenizer cannot be used.
        FileError: They, or the run's files, are not those that were trained and measured.
        RunError: The run's evaluation has not ended.
    """
    check_training(folder)
    check_measured(folder)
    calibration = _calibration(folder, contract)
    base = resolve_trained_base(recipe.student, folder)
    model = load_adapter(load_base(recipe.student, base, _device()), folder / "best")
    return Loaded("adapter", contract, model, load_tokenizer(base), calibration, Head.load(folder))


def load_untuned(name: str, contract: Contract) -> Loaded:
    """Load a base model without any tuning, to be asked another model's task.

    Args:
        name: A folder, a Hub repository or `smollm2-135m`.
        contract: Of the model whose task it is asked.

    Raises:
        ModelError: It cannot be used.
    """
    student = Student(model=name)
    base = resolve_base(student)
    asked = contract.model_copy(update={"slots": "answers"})
    return Loaded("base", asked, load_base(student, base, _device()), load_tokenizer(base), None, None)


class LocalBackend:
    """Answers with a loaded model; requests of many clients are decoded together."""

    def __init__(self, loaded: Loaded, settings: Settings, observe: Callable[[int], None] = lambda rows: None) -> None:
        """Build the decoder, try it, and start its thread.

        Raises:
            ModelError: The tokenizer does not write scores as the decoder needs, or the model does not compute packed
                rows exactly, so that answers cannot be forced.
        """
        self.kind, self._contract, self._model, self._tokenizer, calibration, head = loaded
        self.task = self._contract.task
        self._timeout_s = settings.answer_timeout_s
        self._reader = Reader(self._contract, self._tokenizer, calibration)
        self._decoder = Decoder(self._model, self._tokenizer, self._reader.trie, self._reader.limit, head)
        self._instruction: dict[Language, list[int]] = {}
        for language in _PROBES:
            self._instruction[language] = self._check(language)
        self._batcher: Batcher[EncodedRow, Reading] = Batcher(
            self._decode, settings.batch_rows, settings.queue_rows, DEVICE, observe
        )

    def _check(self, language: Language) -> list[int]:
        """The ids of the instruction, which all prompts in a language begin with."""
        middle = {key: self.task.round((self.task.low + self.task.high) / 2) for key in self.task.keys}
        rows = [Row(id=text, request=text, target=middle, language=language) for text in _PROBES[language]]
        encoded = encode_rows(rows, self.task, self._tokenizer, self._contract.max_tokens).encoded
        if len(encoded) < len(rows):
            raise ModelError(
                f"{self._tokenizer.folder}: expected room for a request within max_tokens={self._contract.max_tokens}; "
                "the instruction and the answer leave none"
            )
        if not packs_exactly(self._model, encoded, self._tokenizer.pad_id):
            raise ModelError(
                f"{self._tokenizer.folder}: expected a model that computes packed rows exactly; answers cannot be "
                "forced with this one: serve it with vLLM, llama.cpp or Ollama, and name the folder as FOLDER@URL"
            )
        self._decode([row._replace(completion_ids=[]) for row in encoded])  # the instruction is encoded from here on
        return list(encoded[0].prompt_ids[: encoded[0].shared])

    @torch.inference_mode()
    def _decode(self, rows: Sequence[EncodedRow]) -> list[Reading]:
        decoded = self._decoder.decode(rows, batch_rows=len(rows), forced=True)
        return list(map(self._reader.read, decoded))

    def encode(self, ask: Ask) -> EncodedRow:
        """The prompt of a request.

        Raises:
            ApiError: See `Reader.prompt`.
        """
        ids = self._reader.prompt(ask)
        instruction = self._instruction[ask.language]
        # A tokenizer may join the instruction's end with the request's beginning: such a request is encoded whole.
        shared = len(instruction) if ids[: len(instruction)] == instruction and len(ids) > len(instruction) else 0
        return EncodedRow("", ids, [], shared)

    async def answer(self, asks: list[Ask]) -> list[Reply]:
        """See `Backend.answer`."""
        rows = await aside(lambda: [self.encode(ask) for ask in asks])
        try:
            futures = self._batcher.submit(rows)
        except QueueFull:
            raise ApiError(503, "overloaded", "too many requests are waiting; try again", retry_after_s=1) from None
        try:
            async with asyncio.timeout(self._timeout_s):
                readings = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except TimeoutError:
            raise ApiError(504, "timeout", f"no answer within {self._timeout_s:g} s", retry_after_s=1) from None
        finally:
            for future in futures:
                future.cancel()  # what is still waiting, nobody waits for
        return [self._reader.reply(len(row.prompt_ids), reading) for row, reading in zip(rows, readings, strict=True)]

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._batcher.waiting

    def is_alive(self) -> bool:
        """See `Backend.is_alive`."""
        return self._batcher.is_alive()

    async def close(self) -> None:
        """See `Backend.close`."""
        await asyncio.to_thread(self._batcher.close)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _calibration(folder: Path, contract: Contract) -> Calibration | None:
    calibration = find_calibration(folder, contract.task)
    if calibration is not None and calibration.uses_head and Head.load(folder) is None:
        raise ModelError(
            f"{folder}: expected the head that calibration.json uses; got none; run `ppe-lora evaluate RECIPE`"
        )
    return calibration
