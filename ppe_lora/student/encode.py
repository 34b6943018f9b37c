"""Data rows to token ids, and what of them is supervised."""

from collections.abc import Sequence
from typing import NamedTuple, Self

from ppe_lora.corpus.rows import Row
from ppe_lora.errors import ModelError
from ppe_lora.student.row_ids import Asked, Ids, many_row_ids
from ppe_lora.student.tokenizer import StudentTokenizer
from ppe_lora.tasks.scores import ScoresTask

MOST_SHOWN = 20
"""Rows that an error lists."""


class EncodedRow(NamedTuple):
    """One row as the model sees it: the prompt, then the completion, of which every token is supervised."""

    id: str
    prompt_ids: list[int]
    completion_ids: list[int]
    shared: int = 0
    """How many of the first prompt ids all rows of its language have in common: the instruction."""


class Unusable(NamedTuple):
    """A row that cannot be encoded, and why."""

    id: str
    reason: str


class EncodedRows(NamedTuple):
    """The rows that fit, in order, and those left out."""

    encoded: Sequence[EncodedRow]
    too_long: list[tuple[str, int]]
    """Row id and length in tokens."""
    unusable: list[Unusable]

    def checked(self) -> Self:
        """These rows, if all could be encoded.

        Raises:
            ModelError: Some cannot; a line for each of the first ones, which starts with the row's id.
        """
        if self.unusable:
            raise ModelError("\n".join(f"row {row.id}: {row.reason}" for row in self.unusable[:MOST_SHOWN]))
        return self


class ShownToken(NamedTuple):
    """One token of a row for a person to check: its text, its id, and whether the loss counts it."""

    piece: str
    id: int
    supervised: bool


def encode_rows(rows: Sequence[Row], task: ScoresTask, tokenizer: StudentTokenizer, max_tokens: int) -> EncodedRows:
    """Encode rows: the request's conversation as the prompt, the canonical answer and its end token as the completion.

    A row longer than `max_tokens` is left out and reported, never cut: a cut row would teach an answer without end,
    or the answer to half a request. So is one that the model's prompt format cannot express.
    """
    encoded: list[EncodedRow] = []
    languages: list[str] = []
    too_long: list[tuple[str, int]] = []
    unusable: list[Unusable] = []
    for row, ids in zip(rows, _ids(rows, task, tokenizer), strict=True):
        if isinstance(ids, ModelError):
            unusable.append(Unusable(row.id, str(ids)))
        elif len(ids[0]) + len(ids[1]) > max_tokens:
            too_long.append((row.id, len(ids[0]) + len(ids[1])))
        else:
            encoded.append(EncodedRow(row.id, *ids))
            languages.append(row.language)
    return EncodedRows(_with_shared(languages, encoded), too_long, unusable)


def alike(rows: Sequence[EncodedRow], batch_rows: int) -> list[list[int]]:
    """Indices of rows, batched: those of a batch have their instruction in common, and are of similar length."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].prompt_ids)):
        groups.setdefault(tuple(rows[index].prompt_ids[: rows[index].shared]), []).append(index)
    return [
        group[start : start + batch_rows] for group in groups.values() for start in range(0, len(group), batch_rows)
    ]


def token_lengths(rows: Sequence[Row], task: ScoresTask, tokenizer: StudentTokenizer) -> dict[str, int]:
    """Length of every row in tokens, prompt and answer together, by row id; rows that cannot be encoded have none."""
    return {
        row.id: len(ids[0]) + len(ids[1])
        for row, ids in zip(rows, _ids(rows, task, tokenizer), strict=True)
        if not isinstance(ids, ModelError)
    }


def show_row(row: Row, task: ScoresTask, tokenizer: StudentTokenizer) -> list[ShownToken]:
    """Every token of a training row in order, with what the loss counts.

    Raises:
        ModelError: The row cannot be encoded.
    """
    (ids,) = _ids([row], task, tokenizer)
    if isinstance(ids, ModelError):
        raise ModelError(f"row {row.id}: {ids}")
    pieces = [ShownToken(tokenizer.piece(token_id), token_id, False) for token_id in ids[0]]
    return pieces + [ShownToken(tokenizer.piece(token_id), token_id, True) for token_id in ids[1]]


def _with_shared(languages: Sequence[str], rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """The rows with `shared` filled in; at least one token of a prompt is left to the row itself."""
    first: dict[str, list[int]] = {}
    shared: dict[str, int] = {}
    for language, row in zip(languages, rows, strict=True):
        common = first.setdefault(language, row.prompt_ids)
        longest = min(shared.get(language, len(common)), len(row.prompt_ids) - 1)
        if common[:longest] != row.prompt_ids[:longest]:
            longest = next(place for place in range(longest) if common[place] != row.prompt_ids[place])
        shared[language] = longest
    return [row._replace(shared=shared[language]) for language, row in zip(languages, rows, strict=True)]


def _ids(rows: Sequence[Row], task: ScoresTask, tokenizer: StudentTokenizer) -> list[Ids | ModelError]:
    asked = []
    for row in rows:
        system, user = task.messages(row.request, row.language, row.context)
        asked.append(Asked(system["content"], user["content"], task.render(row.target)))
    return many_row_ids(asked, tokenizer)
