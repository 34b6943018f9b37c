"""The situations people ask from, in both languages: every teacher draws from the same ones."""

from collections.abc import Mapping

from ppe_lora.corpus.teachers import phrasebook_en, phrasebook_ja
from ppe_lora.corpus.teachers.base import Ask
from ppe_lora.corpus.teachers.phrases import Dice, Occasion
from ppe_lora.recipe.schema import Style
from ppe_lora.tasks.scores import Language

_OCCASIONS: Mapping[Language, tuple[Occasion, ...]] = {"en": phrasebook_en.OCCASIONS, "ja": phrasebook_ja.OCCASIONS}
_SHARE: Mapping[Style, float] = {"polite": 0.6, "casual": 0.6, "short": 0.35, "long": 0.8}


def draw_occasion(ask: Ask, energy_norm: float, dice: Dice) -> Occasion | None:
    """A situation that fits the row, or None: a person does not always name one.

    Args:
        ask: Its language, style and context decide which situations fit, and how often one is named.
        energy_norm: Energy on the unit scale; 0.5 for tasks without that key.
        dice: The row's random choices.
    """
    if not dice.chance(_SHARE[ask.style]):
        return None
    fitting = [occasion for occasion in _OCCASIONS[ask.language] if occasion.fits(energy_norm, ask.context)]
    return dice.pick(fitting) if fitting else None
