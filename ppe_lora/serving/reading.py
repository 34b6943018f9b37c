"""From a request to a prompt, and from a decoded row to a reply: one way for a model here and one behind an engine."""

from pathlib import Path

from ppe_lora.errors import ModelError
from ppe_lora.evaluation.calibration import Calibration, read_calibration
from ppe_lora.export.contract import Contract
from ppe_lora.serving.backend import ApiError, Ask, Reply, Spread
from ppe_lora.student.decode import Decoded, answer_token_limit
from ppe_lora.student.read_out import Reading, read_answer
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.student.trie import build_trie
from ppe_lora.tasks.scores import ScoresTask


def find_calibration(folder: Path, task: ScoresTask, *, with_head: bool = True) -> Calibration | None:
    """The calibration beside a model, or the one for what does not read the head; None where it has none.

    Raises:
        ModelError: It is of another task, is no calibration, or there is none without the head.
    """
    path = folder / "calibration.json"
    return read_calibration(path, task, with_head=with_head) if path.is_file() else None


class Reader:
    """Writes a model's prompts and reads its answers.

    Args:
        contract: What it was trained to be asked.
        tokenizer: Its tokenizer.
        calibration: Its correction and intervals; None for the distributions as they are.

    Raises:
        ModelError: The tokenizer does not write scores as the decoder needs.
    """

    def __init__(self, contract: Contract, tokenizer: StudentTokenizer, calibration: Calibration | None) -> None:
        self.tokenizer = tokenizer
        self.trie = build_trie(contract.task, tokenizer, contract.slots)
        self.limit = answer_token_limit(contract.task, tokenizer)
        """Longest answer in tokens."""
        self._contract = contract
        self._calibration = calibration

    def prompt(self, ask: Ask) -> list[int]:
        """The ids of a request's prompt.

        Raises:
            ApiError: It contains the model's special tokens, or is longer than the rows the model was trained on.
        """
        try:
            ids = self.tokenizer.prompt_ids(self._contract.task.messages(ask.request, ask.language, ask.context))
        except ModelError as error:
            reason = str(error).removeprefix(f"{self.tokenizer.folder}: ")
            raise ApiError(422, "invalid_request_error", f"request: {reason}") from error
        longest = self._contract.max_tokens - self.limit
        if len(ids) > longest:
            said = f"request: expected at most {longest} tokens, as in training; got {len(ids)}"
            raise ApiError(422, "invalid_request_error", said)
        return ids

    def read(self, decoded: Decoded) -> Reading:
        """The answer that the contract's read-out gives to a row decoded by force."""
        task, read_out = self._contract.task, self._contract.read_out
        return read_answer(decoded, task, self.tokenizer, self.trie, read_out, self._calibration)

    def reply(self, prompt_tokens: int, reading: Reading) -> Reply:
        """What the client is told."""
        keys = self._contract.task.keys
        spreads = map(Spread, reading.sd_K, reading.low_K, reading.high_K)
        return Reply(
            dict(zip(keys, reading.values_K, strict=True)),
            dict(zip(keys, spreads, strict=True)),
            self._calibration is not None,
            prompt_tokens,
            len(self.trie.completion(reading.values_K)),
        )
