"""Data rows to token ids, and what of them is supervised."""

from collections.abc import Sequence
from typing import NamedTuple

from ppe_lora.corpus.rows import Row
from ppe_lora.errors import ModelError
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.tasks.scores import ScoresTask


class EncodedRow(NamedTuple):
    """One row as the model sees it: the prompt, then the completion, of which every token is supervised."""

    id: str
    prompt_ids: list[int]
    completion_ids: list[int]
    shared: int = 0
    """How many of the first prompt ids all rows of its language have in common: the instruction."""


class EncodedRows(NamedTuple):
    """The rows that fit, in order, and those left out: row id and length in tokens."""

    encoded: list[EncodedRow]
    too_long: list[tuple[str, int]]


class ShownToken(NamedTuple):
    """One token of a row for a person to check: its text, its id, and whether the loss counts it."""

    piece: str
    id: int
    supervised: bool


def encode_rows(rows: Sequence[Row], task: ScoresTask, tokenizer: StudentTokenizer, max_tokens: int) -> EncodedRows:
    """Encode rows: the request's conversation as the prompt, the canonical answer and its end token as the completion.

    A row longer than `max_tokens` is left out and reported, never cut: a cut row would teach an answer without end,
    or the answer to half a request.

    Raises:
        ModelError: A row cannot be encoded, or its end token is not supervised; the message starts with the row's id.
    """
    encoded: list[EncodedRow] = []
    too_long: list[tuple[str, int]] = []
    for row in rows:
        prompt, completion = _encode(row, task, tokenizer)
        n_tokens = len(prompt) + len(completion)
        if n_tokens > max_tokens:
            too_long.append((row.id, n_tokens))
        else:
            encoded.append(EncodedRow(row.id, prompt, completion))
    languages = {row.id: row.language for row in rows}
    return EncodedRows(_with_shared([languages[row.id] for row in encoded], encoded), too_long)


def alike(rows: Sequence[EncodedRow], batch_rows: int) -> list[list[int]]:
    """Indices of rows, batched: those of a batch have their instruction in common, and are of similar length."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].prompt_ids)):
        groups.setdefault(tuple(rows[index].prompt_ids[: rows[index].shared]), []).append(index)
    return [
        group[start : start + batch_rows] for group in groups.values() for start in range(0, len(group), batch_rows)
    ]


def token_lengths(rows: Sequence[Row], task: ScoresTask, tokenizer: StudentTokenizer) -> dict[str, int]:
    """Length of every row in tokens, prompt and answer together, by row id.

    Raises:
        ModelError: A row cannot be encoded.
    """
    return {row.id: sum(map(len, _encode(row, task, tokenizer))) for row in rows}


def show_row(row: Row, task: ScoresTask, tokenizer: StudentTokenizer) -> list[ShownToken]:
    """Every token of a training row in order, with what the loss counts.

    Raises:
        ModelError: The row cannot be encoded.
    """
    prompt, completion = _encode(row, task, tokenizer)
    pieces = [ShownToken(tokenizer.piece(token_id), token_id, False) for token_id in prompt]
    return pieces + [ShownToken(tokenizer.piece(token_id), token_id, True) for token_id in completion]


def _with_shared(languages: Sequence[str], rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """The rows with `shared` filled in; at least one token of a prompt is left to the row itself."""
    first: dict[str, list[int]] = {}
    shared: dict[str, int] = {}
    for language, row in zip(languages, rows, strict=True):
        common = first.setdefault(language, row.prompt_ids)
        longest = min(shared.get(language, len(common)), len(row.prompt_ids) - 1)
        differing = (place for place in range(longest) if common[place] != row.prompt_ids[place])
        shared[language] = next(differing, longest)
    return [row._replace(shared=shared[language]) for language, row in zip(languages, rows, strict=True)]


def _encode(row: Row, task: ScoresTask, tokenizer: StudentTokenizer) -> tuple[list[int], list[int]]:
    try:
        prompt, completion = tokenizer.row_ids(
            task.messages(row.request, row.language, row.context), task.render(row.target)
        )
    except ModelError as error:
        raise ModelError(f"row {row.id}: {error}") from error
    if not completion or completion[-1] not in tokenizer.end_ids:
        raise ModelError(
            f"row {row.id}: expected the completion to end with one of the end tokens {list(tokenizer.end_ids)}; "
            f"got {completion[-1:]}; the model would never learn to stop"
        )
    return prompt, completion
