"""How many tokens a row takes: counted in rows where there are some, else from the task and stated assumptions."""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np

from ppe_lora.recipe.schema import Recipe
from ppe_lora.student.encode import EncodedRow
from ppe_lora.tasks.scores import ScoresTask

INSTRUCTION_TOKENS, REQUEST_TOKENS = 60, 64
"""What is assumed without rows: of the instruction, which a micro step has once, and of a request."""
_LETTERS_A_TOKEN = 4
_SAMPLED_ROWS = 5000
_DEVIATIONS = 3
"""A micro step's mean lies so many standard deviations above that of all rows in one of some 700."""


class RowTokens(NamedTuple):
    """Tokens of a row, by part."""

    instruction: float
    request: float
    answer: float
    slots: float
    """Laid out for the distributions of the scores: the branches, and the starts of answers of one key."""
    spread: float = 0.0
    """Standard deviation of request and answer together."""
    longest: float = float("inf")
    """Most of request and answer together."""

    def mean(self, rows: int) -> float:
        """Tokens per row of a pack of rows, those of the slots left out."""
        return self.instruction / rows + self.request + self.answer

    def high(self, rows: int) -> float:
        """The same for the longest packs, which decide the memory."""
        own = self.request + self.answer + _DEVIATIONS * self.spread / sqrt(rows)
        return self.instruction / rows + min(own, self.longest)


def assumed_tokens(recipe: Recipe) -> RowTokens:
    """Tokens of a row that nobody has seen yet."""
    longest = max(1, recipe.student.max_tokens - INSTRUCTION_TOKENS)
    answer = answer_tokens(recipe.task)
    return RowTokens(INSTRUCTION_TOKENS, REQUEST_TOKENS, answer, slot_tokens(recipe), longest=longest)


def counted_tokens(recipe: Recipe, rows: Sequence[EncodedRow]) -> RowTokens:
    """Tokens of some rows as they are, at most 5,000 of them."""
    some = [rows[index] for index in range(0, len(rows), max(1, len(rows) // _SAMPLED_ROWS))]
    instruction_N, prompt_N, answer_N = np.array(
        [(row.shared, len(row.prompt_ids), len(row.completion_ids)) for row in some], dtype=float
    ).T
    own_N = prompt_N - instruction_N + answer_N
    return RowTokens(
        float(instruction_N.max()),
        float((prompt_N - instruction_N).mean()),
        float(answer_N.mean()),
        slot_tokens(recipe),
        float(own_N.std()),
        float(own_N.max()),
    )


def slot_tokens(recipe: Recipe) -> int:
    """Tokens that a row takes for the distributions of its scores."""
    task = recipe.task
    starts = sum(_key_tokens(key) - 1 for key in task.keys) if recipe.train.objective.slots == "request" else 0
    return len(task.keys) * branch_tokens(task) + starts


def branch_tokens(task: ScoresTask) -> int:
    """Tokens laid out behind a score so that all its choices can be read (`trie.Branch`), with a token a sign, which
    every tokenizer is checked for.

    Example:
        >>> branch_tokens(ScoresTask()), branch_tokens(ScoresTask(high=1000))
        (10, 100)
    """
    following: dict[str, set[str]] = {}
    for text in _values(task):
        for depth, sign in enumerate(f"{text}|"):  # the end is a choice, too
            following.setdefault(text[:depth], set()).add(sign)
    choices = [text for text, signs in following.items() if len(signs) > 1]
    return len({text[:depth] for text in choices for depth in range(1, len(text) + 1)})


def answer_tokens(task: ScoresTask) -> int:
    """Tokens of an answer: a token a digit, four letters of a key a token, three signs a key, a brace and the end."""
    values = _values(task)
    digits = len(task.keys) * sum(map(len, values)) / len(values)
    return sum(map(_key_tokens, task.keys)) + ceil(digits) + 2


def _values(task: ScoresTask) -> list[str]:
    """Every score as it is written."""
    factor = 10**task.decimals
    return [task.render_value(step / factor) for step in range(task.low * factor, task.high * factor + 1)]


def _key_tokens(key: str) -> int:
    """The key with the sign in front of it, its colon, and the comma behind its value."""
    return ceil(len(key) / _LETTERS_A_TOKEN) + 3
