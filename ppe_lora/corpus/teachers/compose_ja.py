"""Japanese sentences from chosen phrases."""

import re
from collections.abc import Sequence

from ppe_lora.corpus.teachers import phrasebook_ja as book
from ppe_lora.corpus.teachers.phrases import Dice, Occasion, Pick
from ppe_lora.recipe.schema import Style

_TE_RULES = (
    (r"がある$|のある$", "があって"),
    (r"い$", "くて"),
    (r"[なの]$", "で"),
    (r"た$", "ていて"),
    (r"だ$", "でいて"),
)


def joined(rentai: str) -> str:
    """The form of a noun modifier that lets another one follow.

    Example:
        >>> joined("静かな"), joined("影のある"), joined("暗い"), joined("澄んだ")
        ('静かで', '影があって', '暗くて', '澄んでいて')
    """
    plain, _, given = rentai.partition("/")
    if given:
        return given
    for pattern, ending in _TE_RULES:
        if re.search(pattern, plain):
            return re.sub(pattern, ending, plain)
    raise ValueError(f"no joining form for {plain}: write it after a slash")


def compose(style: Style, picks: Sequence[Pick], occasion: Occasion | None, dice: Dice) -> str:
    """One request that says all `picks`, in their order where the grammar allows it."""
    modifiers, requests = _forms(style, picks, dice)
    if style == "short":
        return _short(modifiers, requests, occasion, dice)
    register = "casual" if style == "casual" or (style == "long" and dice.chance(0.3)) else "polite"
    sentences = []
    if style == "long":
        sentences = [dice.pick(book.BACKGROUNDS[register])] if dice.chance(0.75) else []
        if occasion:
            sentences.append(dice.pick(book.REASONS[register]).format(occasion=occasion.text))
        occasion = None
    elif dice.chance(0.6):
        sentences = [dice.pick(book.OPENERS[register])]
    sentences += _body(register, modifiers, requests, occasion, dice)
    if dice.chance(0.6 if style == "long" else 0.3):
        sentences.append(dice.pick(book.CLOSINGS[register]))
    return "".join(sentences)


def _forms(style: Style, picks: Sequence[Pick], dice: Dice) -> tuple[list[str], list[str]]:
    """Phrases as noun modifiers (with their joining form after a slash) and as requests in the te-form."""
    modifiers, requests = [], []
    simile = "みたいな" if style == "casual" and dice.chance(0.7) else "のような"
    for slot, text in picks:
        if slot == "te":
            requests.append(text)
        elif slot == "rentai":
            modifiers.append(text)
        elif slot == "sound" and style != "short" and dice.chance(0.4):
            requests.append(text + dice.pick(("を入れて", "を聴かせて", "を響かせて")))
        elif slot == "yo" and style != "short" and dice.chance(0.3):
            requests.append(f"{text}{simile}{dice.pick(('雰囲気', '感じ', '空気'))}にして")
        else:
            plain, joining = dice.pick(_HEARD if slot == "sound" else (*_LIKE, (simile, simile[:-1] + "で")))
            modifiers.append(f"{text}{plain}/{text}{joining}")
    return modifiers, requests


_HEARD = (
    ("が聞こえる", "が聞こえて"),
    ("が印象的な", "が印象的で"),
    ("が主役の", "が主役で"),
    ("が際立つ", "が際立って"),
    ("を活かした", "を活かしていて"),
)
_LIKE = (("を思わせる", "を思わせて"), ("が目に浮かぶ", "が目に浮かんで"))


def _body(
    register: str, modifiers: Sequence[str], requests: Sequence[str], occasion: Occasion | None, dice: Dice
) -> list[str]:
    size = dice.pick((1, 2, 2, 3))
    sentences = []
    if modifiers or occasion:
        noun = dice.pick(book.HEADS[register])
        place = _place(book.OCCASION_LINKS, modifiers, occasion, dice)
        sentences.append(place + _chain(modifiers[:size]) + noun + dice.pick(book.NOUN_ENDS[register]))
    more = []
    more_ends, te_ends = dice.shuffled(book.MORE_ENDS[register]), dice.shuffled(book.TE_ENDS[register])
    for start in range(size, len(modifiers), 2):
        noun = dice.pick(("曲", "感じ", "雰囲気", "もの"))
        more.append(_chain(modifiers[start : start + 2]) + noun + more_ends.pop())
    for start in range(0, len(requests), 2):
        more.append("、".join(requests[start : start + 2]) + te_ends.pop())
    joiners = dice.shuffled(book.JOINERS[register])
    for sentence in dice.shuffled(more):
        sentences.append((joiners.pop() if sentences else "") + sentence)
    return sentences


def _short(modifiers: Sequence[str], requests: Sequence[str], occasion: Occasion | None, dice: Dice) -> str:
    parts = []
    if modifiers or occasion:
        place = _place((*book.OCCASION_LINKS, "用の", "向けの"), modifiers, occasion, dice)
        parts.append(place + _chain(modifiers) + dice.pick(book.HEADS["short"]) + dice.pick(book.NOUN_ENDS["short"]))
    if requests:
        parts.append("、".join(requests) + dice.pick(book.TE_ENDS["short"]))
    return "、".join([*(part.removesuffix("。") for part in parts[:-1]), parts[-1]])


def _place(links: Sequence[str], modifiers: Sequence[str], occasion: Occasion | None, dice: Dice) -> str:
    return f"{occasion.text}{dice.pick(links)}{'、' if modifiers else ''}" if occasion else ""


def _chain(modifiers: Sequence[str]) -> str:
    if not modifiers:
        return ""
    return "".join(f"{joined(m)}、" for m in modifiers[:-1]) + modifiers[-1].partition("/")[0]
