"""What a teacher is: it phrases target vectors as requests."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ppe_lora.recipe.schema import Style
from ppe_lora.tasks.scores import Language


class Ask(NamedTuple):
    """One request to be phrased."""

    number: int
    """The row's place in the generation. With the seed it decides everything random about the row."""
    target: Mapping[str, float]
    """One value per key of the task, in task units."""
    language: Language
    style: Style
    context: Mapping[str, str] | None
    """What the game knows beside the request (weather, time, ...), in the row's language."""


class Phrased(NamedTuple):
    """A teacher's answer to one ask."""

    text: str
    """The request, unfiltered: it may be empty or break a rule."""
    scenario: tuple[str, ...]
    """Tags of the situation, sorted: `rainy`, `night`, `high_nostalgia`, ..."""
    fault: str | None = None
    """Where the teacher answered with something else than a request: what it said. The text is then empty."""


class Teacher(Protocol):
    """Phrases asks. Implementations differ in where the words come from, never in what they promise."""

    name: str
    """Stands in every row it phrased."""
    version: str
    """Changes whenever equal asks would be phrased differently: prompt, phrase book or model."""

    def phrase(self, asks: Sequence[Ask]) -> list[Phrased]:
        """One `Phrased` per ask, in the same order, with progress shown. Which asks come together changes nothing."""
        ...


def extreme_tags(target: Mapping[str, float], low: float, high: float) -> list[str]:
    """`low_<key>` or `high_<key>` for every score in the outer 15 % of the range [low, high].

    Example:
        >>> extreme_tags({"energy": 10, "warmth": 50, "nostalgia": 85}, 0, 100)
        ['low_energy', 'high_nostalgia']
    """
    margin = 0.15 * (high - low)
    tags = []
    for key, value in target.items():
        if value <= low + margin:
            tags.append(f"low_{key}")
        elif value >= high - margin:
            tags.append(f"high_{key}")
    return tags
