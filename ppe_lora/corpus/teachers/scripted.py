"""An offline teacher: it phrases a vector of the music profile from a phrase book.

A person says what stands out, so the chance that a score is mentioned grows with its distance from the middle. The
grade of a phrase tells the score to about an eighth of the range; the teacher misreads each score a little first.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from ppe_lora.console import progress
from ppe_lora.corpus.seeding import row_rng
from ppe_lora.corpus.teachers import compose_en, compose_ja, occasions, phrasebook_en, phrasebook_ja, phrases
from ppe_lora.corpus.teachers.base import Ask, Phrased, extreme_tags
from ppe_lora.corpus.teachers.occasions import draw_occasion
from ppe_lora.corpus.teachers.phrases import BANDS, Band, Dice, Pick
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import Style
from ppe_lora.tasks.scores import Language, ScoresTask

_PHRASES: Mapping[Language, Mapping[str, tuple[Band, ...]]] = {"en": phrasebook_en.PHRASES, "ja": phrasebook_ja.PHRASES}
_COMPOSE = {"en": compose_en.compose, "ja": compose_ja.compose}
_SLOT_WEIGHTS = {"adj": 6, "with_": 4, "should": 2.5, "feel": 1, "rentai": 4, "te": 3, "sound": 2.5, "yo": 1.5}


class ScriptedTeacher:
    """Phrases the six keys of the default task in Japanese and English, without a model or a network."""

    name = "scripted"

    def __init__(self, task: ScoresTask, noise: float, seed: int) -> None:
        """Check the task's keys.

        Args:
            task: Its keys must be ones the phrase book has phrases for; the range is free.
            noise: Standard deviation of the misreading of each score, in task units.
            seed: The recipe's seed.

        Raises:
            DataError: The task has keys without phrases.
        """
        known = tuple(phrasebook_en.PHRASES)
        unknown = [key for key in task.keys if key not in known]
        if unknown:
            raise DataError(
                f"task.keys: the scripted teacher only knows {', '.join(known)}; got {', '.join(unknown)}; "
                "use an import or another teacher"
            )
        self._task = task
        self._noise = noise
        self._seed = seed
        self.version = _version()

    def phrase(self, asks: Sequence[Ask]) -> list[Phrased]:
        """Phrase each ask by itself: its text depends on the seed and on the ask only."""
        phrased = []
        with progress("phrasing", len(asks)) as advance:
            for ask in asks:
                phrased.append(self._phrase(ask))
                advance()
        return phrased

    def _phrase(self, ask: Ask) -> Phrased:
        rng = row_rng(self._seed, "phrasing", ask.number)
        dice = Dice(rng)
        read = [
            (ask.target[key] + rng.normal(0.0, self._noise) - self._task.low) / self._task.span
            for key in self._task.keys
        ]
        read_norm = dict(zip(self._task.keys, np.clip(read, 0.0, 1.0).tolist(), strict=True))
        picks = [_phrase_of(ask, key, read_norm[key], dice) for key in mentioned(read_norm, ask.style, dice)]
        occasion = draw_occasion(ask, read_norm.get("energy", 0.5), dice)
        tags = set(extreme_tags(ask.target, self._task.low, self._task.high))
        tags.update(occasion.tags if occasion else ())
        return Phrased(_COMPOSE[ask.language](ask.style, picks, occasion, dice), tuple(sorted(tags)))


def mentioned(read_norm: Mapping[str, float], style: Style, dice: Dice) -> list[str]:
    """The keys a person would mention, in random order.

    Args:
        read_norm: Each score as the teacher read it, on the unit scale.
        style: `long` mentions every key, `short` the two or three that stand out most, the others mention a key
            with a chance that rises from 0.5 in the middle of the range to 1 at its ends.
        dice: The row's random choices.
    """
    keys = dice.shuffled(list(read_norm))
    if style == "long":
        return keys
    distance = {key: abs(read_norm[key] - 0.5) * 2 for key in keys}
    by_distance = sorted(keys, key=lambda key: -distance[key])
    if style == "short":
        return [key for key in keys if key in by_distance[: dice.pick((2, 3, 3))]]
    chosen = {key for key in keys if dice.chance(0.5 + 0.5 * distance[key])} | set(by_distance[:2])
    return [key for key in keys if key in chosen]


def _phrase_of(ask: Ask, key: str, value_norm: float, dice: Dice) -> Pick:
    band = _PHRASES[ask.language][key][min(int(value_norm * BANDS), BANDS - 1)]
    slots = [slot for slot in band if not (ask.style == "short" and slot == "should")]
    weights = np.array([_SLOT_WEIGHTS[slot] for slot in slots])
    slot = slots[int(dice.rng.choice(len(slots), p=weights / weights.sum()))]
    return Pick(slot, dice.pick(band[slot]))


@cache
def _version() -> str:
    """Hash of the phrase books and of the code that turns them into sentences."""
    modules = (phrasebook_en, phrasebook_ja, compose_en, compose_ja, phrases, occasions)
    sources = [inspect.getsource(module) for module in modules] + [inspect.getsource(ScriptedTeacher)]
    sources += [inspect.getsource(mentioned), inspect.getsource(_phrase_of)]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]
