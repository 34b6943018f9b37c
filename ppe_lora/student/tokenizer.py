"""Conversations to token ids and back, the same way at training, evaluation and serving time.

Mistral models are encoded by mistral-common, the source of truth for their prompt format; other models by their own
chat template. Either way ids are the truth: a plain-string round trip would drop special tokens.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import AutoTokenizer

from ppe_lora.artifacts import hash_file, hash_json, read_json
from ppe_lora.errors import ModelError
from ppe_lora.student.chat_template import DAY, pin_dates
from ppe_lora.student.foreign import check_folder, reading_model
from ppe_lora.student.own_code import refuse_own_code
from ppe_lora.student.tokenizer_files import (
    PROBE_TEXTS,
    differing_text,
    mistral_file,
    save_tokenizer_files,
    tokenizer_files,
)

logger = logging.getLogger(__name__)

Message = dict[str, str]

_MARKER = "the request"
_MISTRAL_FAMILY = re.compile(r"(?:mistral|ministral|mixtral)")


class Frame(NamedTuple):
    """Which text around a request, and before an answer, is tokenized together with it. What lies beyond is special
    tokens, over which nothing is joined."""

    before: str = ""
    after: str = ""
    before_answer: str = ""
    prompt: tuple[str, str] | None = None
    """The prompt's whole text up to the request, and behind it; None where there is no such text."""


class StudentTokenizer(ABC):
    """How one model reads a conversation and writes an answer. Made by `load_tokenizer`.

    Attributes:
        folder: Where its files are.
        vocab_size: Number of token ids; a model's embedding may be larger.
        pad_id: Fills up batches. It carries no meaning: padded positions are masked and never supervised.
        end_ids: Token ids that end an answer.
        begin_id: The token that the tokenizer puts in front of any text by itself; None where it does not.
    """

    folder: Path
    vocab_size: int
    pad_id: int
    end_ids: tuple[int, ...]
    begin_id: int | None

    @abstractmethod
    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids from which the model generates the next assistant message, special tokens included.

        Raises:
            ModelError: The model's prompt format cannot express the conversation.
        """

    @abstractmethod
    def _full_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """The ids of the conversation with the answer as its last message."""

    @abstractmethod
    def frames(self, system: str) -> list[Frame]:
        """The frames that a request behind this instruction may have; whether one fits, `row_ids` tells."""

    @abstractmethod
    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts as they are, special tokens neither added nor known."""

    @abstractmethod
    def fits(self, frame: Frame, system: str, requests: Sequence[str]) -> list[bool]:
        """Which requests stand unchanged in their frame."""

    @abstractmethod
    def _run_text(self, ids: list[int]) -> str:
        """Text of a run of ids without special tokens, all below `vocab_size`."""

    @abstractmethod
    def is_special(self, token_id: int) -> bool:
        """Whether it stands for no text, but for a role, a beginning or an end."""

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """One token as a person may read it; part of a character is shown as the vocabulary writes it."""

    def row_ids(self, messages: Sequence[Message], answer: str) -> tuple[list[int], list[int]]:
        """Prompt ids and completion ids of a training row; see `prompt_ids` and `completion_ids`."""
        prompt = self.prompt_ids(messages)
        full = self._full_ids(messages, answer)
        if full[: len(prompt)] != prompt:
            raise ModelError(
                f"{self.folder}: expected the prompt's ids at the start of prompt and answer; got other ids from "
                f"position {_first_difference(prompt, full)}; training would see prompts that serving never sends: "
                "correct the model's chat template"
            )
        completion = full[len(prompt) :]
        end = next((i for i, token_id in enumerate(completion) if token_id in self.end_ids), None)
        if end is None:
            raise ModelError(
                f"{self.folder}: expected an end token after the answer; got none of the ids {list(self.end_ids)}; the "
                "model would never learn to stop: set eos_token_id in generation_config.json to the chat template's"
            )
        completion = completion[: end + 1]
        if self.decode(completion).strip() != answer.strip():
            raise ModelError(
                f"{self.folder}: expected the answer {answer!r} back; got {self.decode(completion)!r}; "
                "the chat template changes the answer"
            )
        return prompt, completion

    def completion_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """The supervised ids: the answer and the token that ends it, to be put right behind `prompt_ids(messages)`.

        Raises:
            ModelError: Prompt and full row do not agree, no end token follows the answer, or the ids do not decode to
                the answer.
        """
        return self.row_ids(messages, answer)[1]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids up to the first end token. Special tokens before it stay visible, as garbage should."""
        end = next((i for i, token_id in enumerate(ids) if token_id in self.end_ids), len(ids))
        return self.text(ids[:end])

    def text(self, ids: Sequence[int]) -> str:
        """Text of all ids, special tokens as they are written."""
        runs = groupby(map(int, ids), key=lambda i: i >= self.vocab_size or self.is_special(i))
        return "".join("".join(map(self.piece, run)) if apart else self._run_text(list(run)) for apart, run in runs)

    def fingerprint(self) -> str:
        """Stable hash of what the tokenizer does: its files, and the ids of a few conversations."""
        files = {file.name: hash_file(file) for file in tokenizer_files(self.folder)}
        rows = [self.row_ids(_conversation(text), '{"a":42,"b":100}') for text in PROBE_TEXTS]
        return hash_json([type(self).__name__, files, rows, self.vocab_size, self.pad_id, self.end_ids])

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's files as they are, for `AutoTokenizer` and serving engines.

        A `tokenizer.json` that disagrees with `tekken.json` stays behind: an engine reading it would see other ids.
        """
        save_tokenizer_files(self.folder, folder)


class MistralStudentTokenizer(StudentTokenizer):
    """mistral-common, in "test" mode for prompts and in "finetuning" mode for whole rows."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder = folder
        self._prompts = MistralTokenizer.from_file(file, mode=ValidationMode.test)
        instruct = self._prompts.instruct_tokenizer
        self._core = core = instruct.tokenizer
        self._rows: MistralTokenizer[Any, Any, Any, Any, Any] = MistralTokenizer(
            instruct,
            validator=get_validator(core.version, mode=ValidationMode.finetuning),
            request_normalizer=get_normalizer(core.version, core.model_settings_builder),
        )
        self.vocab_size = core.n_words
        self.end_ids = (core.eos_id,)
        self.begin_id = core.bos_id
        # SentencePiece vocabularies have no padding token (-1). Not the end token in its place: who masks padding by
        # id would stop supervising the end.
        self.pad_id = core.pad_id if core.pad_id >= 0 else core.unk_id

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(self._prompts, list(messages))

    def _full_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        return self._encode(self._rows, [*messages, {"role": "assistant", "content": answer}])

    def _encode(self, tokenizer: MistralTokenizer[Any, Any, Any, Any, Any], messages: list[Message]) -> list[int]:
        try:
            request: ChatCompletionRequest[Any] = ChatCompletionRequest(messages=messages)
            return list(tokenizer.encode_chat_completion(request).tokens)
        except MistralCommonException as error:
            raise ModelError(f"{self.folder}: expected a conversation that mistral-common accepts; {error}") from error

    def frames(self, system: str) -> list[Frame]:
        return [Frame(), Frame(before=f"{system}\n\n")]  # versions before 7 put the instruction into the request

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._core.encode(text, bos=False, eos=False) for text in texts]

    def fits(self, frame: Frame, system: str, requests: Sequence[str]) -> list[bool]:
        return [bool(request.strip()) for request in requests]

    def _run_text(self, ids: list[int]) -> str:
        return self._core.decode(ids)

    def is_special(self, token_id: int) -> bool:
        return self._core.is_special(token_id)

    def piece(self, token_id: int) -> str:
        if token_id >= self.vocab_size:
            return f"<unknown id {token_id}>"
        piece = self._core.id_to_piece(token_id)
        if "\ufffd" in piece and isinstance(self._core, Tekkenizer):
            return "".join(f"<0x{byte:02X}>" for byte in self._core.id_to_byte_piece(token_id))
        return piece


class TemplateStudentTokenizer(StudentTokenizer):
    """The model's own Hugging Face tokenizer and chat template."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._core = AutoTokenizer.from_pretrained(folder, mistral_format=False, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder}: expected tokenizer files; got {str(error).splitlines()[0]}") from error
        if not self._core.chat_template:
            raise ModelError(f"{folder}: expected a chat template; got none; use the model's Instruct version")
        pinned = pin_dates(self._core.chat_template, folder)
        if pinned != self._core.chat_template:
            logger.warning("%s: the chat template writes today's date; %s is written instead", folder, DAY)
            self._core.chat_template = pinned
        self.vocab_size = len(self._core)
        self.end_ids = tuple(sorted(self._find_end_ids()))
        if not self.end_ids:
            raise ModelError(f"{folder}: expected eos_token_id in generation_config.json; got none; set it")
        bos_id = self._core.bos_token_id
        self.begin_id = bos_id if bos_id is not None and self._core("x")["input_ids"][0] == bos_id else None
        pad_id = self._core.pad_token_id
        self.pad_id = pad_id if pad_id is not None else self.end_ids[0]
        added = self._core.added_tokens_decoder.items()
        self._special_ids = frozenset(self._core.all_special_ids) | {i for i, token in added if token.special}
        self._special_texts = [str(self._core.convert_ids_to_tokens(i)) for i in self._special_ids]

    def _find_end_ids(self) -> set[int]:
        path = self.folder / "generation_config.json"
        eos = read_json(path).get("eos_token_id") if path.is_file() else None
        found = eos if isinstance(eos, list) else [] if eos is None else [eos]
        if not all(isinstance(one, int) for one in found):
            raise ModelError(f"{path}: eos_token_id: expected ids; got {eos!r}; correct it, or delete it")
        return {*found} | ({self._core.eos_token_id} - {None})

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._apply(list(messages), add_generation_prompt=True)

    def _full_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        return self._apply([*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)

    def frames(self, system: str) -> list[Frame]:
        before, found, after = self._prompts(system, [_MARKER])[0].rpartition(_MARKER)
        special = re.compile("|".join(map(re.escape, self._special_texts)))
        left, right = list(special.finditer(before)), list(special.finditer(after))
        if not (found and left and right):
            return []
        return [Frame(before[left[-1].end() :], after[: right[0].start()], after[right[-1].end() :], (before, after))]

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        fast = getattr(self._core, "backend_tokenizer", None)
        if fast is None:
            return list(self._core(list(texts), add_special_tokens=False)["input_ids"])
        return [one.ids for one in fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    def fits(self, frame: Frame, system: str, requests: Sequence[str]) -> list[bool]:
        assert frame.prompt is not None
        before, after = frame.prompt
        try:
            texts = self._prompts(system, requests)
        except TemplateError:  # of one of them
            return [False] * len(requests)
        return [
            text == before + request + after and not any(special in request for special in self._special_texts)
            for request, text in zip(requests, texts, strict=True)
        ]

    def _prompts(self, system: str, requests: Sequence[str]) -> list[str]:
        """The texts of prompts, not yet ids."""
        conversations = [
            [{"role": "system", "content": system}, {"role": "user", "content": request}] for request in requests
        ]
        texts: Any = self._core.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        return list(texts)

    def _apply(self, messages: list[Message], add_generation_prompt: bool) -> list[int]:
        for message in messages:
            # Template and content are tokenized as one text: a special token in a request would end the request.
            special = next((text for text in self._special_texts if text in message["content"]), None)
            if special is not None:
                raise ModelError(
                    f"{message['content'][:60]!r}: expected text without the model's special tokens; got {special!r}"
                )
        try:
            return list(
                self._core.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, return_dict=False)
            )
        except TemplateError as error:
            raise ModelError(
                f"{self.folder}: expected a chat template for system and user messages; it says: {error}"
            ) from error

    def _run_text(self, ids: list[int]) -> str:
        return str(self._core.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def piece(self, token_id: int) -> str:
        if token_id >= self.vocab_size:
            return f"<unknown id {token_id}>"
        text = self._run_text([token_id])
        return text if "\ufffd" not in text else str(self._core.convert_ids_to_tokens(token_id))


def load_tokenizer(folder: Path) -> StudentTokenizer:
    """The tokenizer of a model folder, checked to write scores digit by digit.

    mistral-common reads `tekken.json` or a versioned SentencePiece file (`tokenizer.model.v3`) of a model of a Mistral
    family. A bare `tokenizer.model` does not say its version, so the chat template decides there, as for others.

    Raises:
        ModelError: No usable tokenizer or chat template, a prompt that is not the start of its row, an answer without
            an end token, numbers that are not one token per digit, ids beyond the model's vocabulary, or code of the
            model's own.
    """
    check_folder(folder)
    refuse_own_code(folder)
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    with reading_model(folder, "a tokenizer, chat template and configuration that work", "download them again"):
        decisive = mistral_file(folder) if _MISTRAL_FAMILY.match(config.get("model_type", "")) else None
        tokenizer = MistralStudentTokenizer(folder, decisive) if decisive else TemplateStudentTokenizer(folder)
        check_digits(tokenizer)
        _check_vocabulary(tokenizer, config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size"))
        differing = differing_text(folder)
    if differing is not None:
        logger.warning(
            "%s: tokenizer.json splits %r otherwise than tekken.json does. tekken.json is used, and tokenizer.json "
            "is left out of saved models.", folder, differing,
        )  # fmt: skip
    return tokenizer


def check_digits(tokenizer: StudentTokenizer) -> None:
    """Check that every number from 0 to 100 in an answer is one token per digit, the same one for the same digit.

    Raises:
        ModelError: A token holds several digits, or a digit and something else, or a digit has two tokens.
    """
    messages = _conversation(PROBE_TEXTS[0])
    id_of: dict[str, int] = {}
    for answer in (*(f'{{"a":{number}}}' for number in range(101)), '{"a":100,"b":99.5}'):
        for token_id in tokenizer.completion_ids(messages, answer)[:-1]:
            piece = tokenizer.text([token_id])
            if not any(character.isdigit() for character in piece):
                continue
            if len(piece) > 1 or id_of.setdefault(piece, token_id) != token_id:
                raise ModelError(
                    f"{tokenizer.folder}: tokenizer splits numbers into multi-digit tokens: expected one token per "
                    f"digit in {answer}; got the token {piece!r}; choose a model that has one token per digit, such as "
                    "any Mistral, Ministral or SmolLM2"
                )


def _check_vocabulary(tokenizer: StudentTokenizer, vocab_size: int | None) -> None:
    highest = max(max(tokenizer.prompt_ids(_conversation(text))) for text in PROBE_TEXTS)
    if vocab_size is not None and highest >= vocab_size:
        raise ModelError(
            f"{tokenizer.folder}: expected token ids below the model's vocab_size {vocab_size}; got {highest}; "
            "the tokenizer belongs to another model"
        )


def _conversation(request: str) -> list[Message]:
    return [{"role": "system", "content": "Answer with JSON."}, {"role": "user", "content": request}]


def _first_difference(prompt: list[int], full: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
