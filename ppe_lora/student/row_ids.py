"""Prompt and completion ids of many rows, the same as `StudentTokenizer.row_ids` makes them one by one, but faster.

    fixed ids of the instruction | ids of the request | fixed ids | ids of the answer, end token

Rows of one instruction differ in the request and the answer only. Special tokens part these from what is fixed, and no
tokenizer joins text over a special token, so that only the request and the answer of a row have to be tokenized. That
this holds for a tokenizer and its chat template is not believed but tried: on 200 rows of each instruction. Where one
of them comes out otherwise, and where the template changes a request, rows are encoded whole.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ppe_lora.errors import ModelError
from ppe_lora.student.tokenizer import Frame, Message, StudentTokenizer

_TRIED_ROWS = 200
_CHUNK_ROWS = 1000
"""Rows that are tokenized together."""

Ids = tuple[list[int], list[int]]
"""Of the prompt and of the completion."""


class Asked(NamedTuple):
    """A row in text."""

    system: str
    request: str
    answer: str

    @property
    def messages(self) -> list[Message]:
        """The conversation that the answer follows."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.request}]


def many_row_ids(asked: Sequence[Asked], tokenizer: StudentTokenizer) -> list[Ids | ModelError]:
    """Ids of rows in their order; in place of those that cannot be encoded the error that says why."""
    of_system: dict[str, list[int]] = {}
    for index, one in enumerate(asked):
        of_system.setdefault(one.system, []).append(index)
    found: dict[int, Ids | ModelError] = {}
    for indices in of_system.values():
        found |= zip(indices, _alike([asked[index] for index in indices], tokenizer), strict=True)
    return [found[index] for index in range(len(asked))]


def _alike(rows: Sequence[Asked], tokenizer: StudentTokenizer) -> list[Ids | ModelError]:
    """Ids of rows of one instruction."""
    tried = range(0, len(rows), max(1, len(rows) // _TRIED_ROWS))
    whole = {index: _whole(rows[index], tokenizer) for index in tried}
    if len(whole) == len(rows):
        return list(whole.values())
    parts = _parts([rows[index] for index in tried], list(whole.values()), tokenizer)
    if parts is None:
        return [whole[index] if index in whole else _whole(row, tokenizer) for index, row in enumerate(rows)]
    found: list[Ids | ModelError] = []
    for start in range(0, len(rows), _CHUNK_ROWS):
        found += parts.encode(rows[start : start + _CHUNK_ROWS], tokenizer)
    return found


def _whole(row: Asked, tokenizer: StudentTokenizer) -> Ids | ModelError:
    try:
        return tokenizer.row_ids(row.messages, row.answer)
    except ModelError as error:
        return error


class _Parts(NamedTuple):
    """What the rows of one instruction have in common."""

    frame: Frame
    head: list[int]
    tail: list[int]
    answer_from: int
    """How many ids the text joined with an answer takes of the tail's end."""
    end: int

    def encode(self, rows: Sequence[Asked], tokenizer: StudentTokenizer) -> list[Ids | ModelError]:
        """Ids of rows; those that do not stand unchanged in the frame are encoded whole."""
        fits = tokenizer.fits(self.frame, rows[0].system, [row.request for row in rows])
        inner = tokenizer.text_ids([f"{self.frame.before}{row.request}{self.frame.after}" for row in rows])
        answers = tokenizer.text_ids([f"{self.frame.before_answer}{row.answer}" for row in rows])
        lead = self.tail[len(self.tail) - self.answer_from :]
        return [
            ([*self.head, *own, *self.tail], [*answer[self.answer_from :], self.end])
            if fit and answer[: self.answer_from] == lead
            else _whole(row, tokenizer)
            for row, fit, own, answer in zip(rows, fits, inner, answers, strict=True)
        ]


def _parts(rows: Sequence[Asked], whole: Sequence[Ids | ModelError], tokenizer: StudentTokenizer) -> _Parts | None:
    """The parts from which these rows come out as they do whole; None where no frame fits them all."""
    example = next(((row, ids) for row, ids in zip(rows, whole, strict=True) if not isinstance(ids, ModelError)), None)
    if example is None:
        return None
    row, (prompt, completion) = example
    for frame in tokenizer.frames(row.system):
        (own,) = tokenizer.text_ids([f"{frame.before}{row.request}{frame.after}"])
        (lead,) = tokenizer.text_ids([frame.before_answer]) if frame.before_answer else ([],)
        for place in range(1, len(prompt) - len(own)):
            head, middle, tail = prompt[:place], prompt[place : place + len(own)], prompt[place + len(own) :]
            fixed, joined = tail[: len(tail) - len(lead)], tail[len(tail) - len(lead) :]
            if middle != own or joined != lead or not fixed:
                continue
            parts = _Parts(frame, head, tail, len(lead), completion[-1])
            borders = (head[-1], fixed[0], fixed[-1])
            if all(map(tokenizer.is_special, borders)) and _same(parts.encode(rows, tokenizer), whole):
                return parts
    return None


def _same(one: Sequence[Ids | ModelError], other: Sequence[Ids | ModelError]) -> bool:
    """Whether the same rows have ids, and the same ones."""
    return all(
        isinstance(first, ModelError) if isinstance(second, ModelError) else first == second
        for first, second in zip(one, other, strict=True)
    )
