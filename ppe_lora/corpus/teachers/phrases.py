"""The parts of a phrase book and of the sentences made from it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

BANDS = 8
"""Grades per key, from very low to very high; each covers an eighth of the range."""

Band = Mapping[str, tuple[str, ...]]
"""Phrases of one grade of one key by slot: the grammatical place they fit."""


def band(**slots: str) -> Band:
    """A band from phrases separated by `|`, by slot."""
    return {slot: tuple(phrase.strip() for phrase in phrases.split("|")) for slot, phrases in slots.items()}


class Pick(NamedTuple):
    """A phrase chosen for one key."""

    slot: str
    text: str


class Occasion(NamedTuple):
    """A situation a person names, and where it fits."""

    text: str
    tags: tuple[str, ...]
    energy_low: float = 0.0
    """Lowest energy on the unit scale with which it makes sense: nobody goes running to a lullaby."""
    energy_high: float = 1.0
    weather: str | None = None
    """The weather it implies, as the language's contexts write it; None fits every weather."""
    time: str | None = None

    def fits(self, energy_norm: float, context: Mapping[str, str] | None) -> bool:
        """Whether it agrees with the score and with what the game says about weather and time."""
        stated = context or {}
        return (
            self.energy_low <= energy_norm <= self.energy_high
            and self.weather in (None, stated.get("weather", self.weather))
            and self.time in (None, stated.get("time", self.time))
        )


class Dice:
    """The random choices of one row."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, evenly."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order."""
        return [items[i] for i in self.rng.permutation(len(items))]
