"""English sentences from chosen phrases."""

from collections.abc import Sequence

from ppe_lora.corpus.teachers import phrasebook_en as book
from ppe_lora.corpus.teachers.phrases import Dice, Occasion, Pick
from ppe_lora.recipe.schema import Style


def compose(style: Style, picks: Sequence[Pick], occasion: Occasion | None, dice: Dice) -> str:
    """One request that says all `picks`, in their order where the grammar allows it."""
    if style == "short":
        return _short(picks, occasion, dice)
    if style == "long":
        return _long(picks, occasion, dice)
    return _plain(style, picks, occasion, dice)


def _plain(style: Style, picks: Sequence[Pick], occasion: Occasion | None, dice: Dice) -> str:
    by_slot = _by_slot(picks)
    where = f" for {occasion.text}" if occasion else ""
    sentences = [_ask(style, by_slot, where, dice), *_details(style, by_slot, dice)]
    if dice.chance(0.3):
        sentences.append(dice.pick(book.CLOSINGS[style]))
    if style == "casual" and dice.chance(0.4):
        return " ".join(sentences).lower()
    return " ".join(_capital(sentence) for sentence in sentences)


def _long(picks: Sequence[Pick], occasion: Occasion | None, dice: Dice) -> str:
    by_slot = _by_slot(picks)
    opening = [dice.pick(book.BACKGROUNDS)] if dice.chance(0.6) else []
    if occasion:
        opening.append(dice.pick(book.REASONS).format(occasion=occasion.text))
    sentences = [*dice.shuffled(opening), _ask("polite", by_slot, "", dice), *_details("polite", by_slot, dice)]
    if dice.chance(0.6):
        sentences.append(dice.pick(book.CLOSINGS["polite"]))
    return " ".join(sentences)


def _short(picks: Sequence[Pick], occasion: Occasion | None, dice: Dice) -> str:
    by_slot = _by_slot(picks)
    adjectives = by_slot["adj"]
    head = ""
    if adjectives and dice.chance(0.5):
        link = dice.pick((", ", " but ", " and ")) if len(adjectives) == 2 else ", "
        head = link.join(adjectives)
    elif adjectives or dice.chance(0.5):
        opener = dice.pick(book.OPENERS["short"])
        head = f"{opener} {_noun_phrase(adjectives, dice)}".strip()
    rest = [f"with {p}" if head and dice.chance(0.6) else p for p in by_slot["with_"]]
    rest += [f"{dice.pick(('like', 'think', 'feels like', 'sort of like'))} {p}" for p in by_slot["feel"]]
    text = dice.pick((", ", ", ", "; ", " - ")).join([head] * bool(head) + dice.shuffled(rest))
    if occasion:
        text = f"{text}, for {occasion.text}" if dice.chance(0.7) else f"for {occasion.text}: {text}"
    end = dice.pick(("", "", ".", ", please", "!"))
    return (_capital(text) if dice.chance(0.5) else text) + end


def _by_slot(picks: Sequence[Pick]) -> dict[str, list[str]]:
    return {slot: [p.text for p in picks if p.slot == slot] for slot in ("adj", "with_", "should", "feel")}


def _ask(style: Style, by_slot: dict[str, list[str]], where: str, dice: Dice) -> str:
    """The sentence that asks; it takes phrases out of `by_slot`."""
    opener = dice.pick(book.OPENERS[style])
    text = f"{opener} {_noun_phrase(_take(by_slot['adj'], dice.pick((1, 2, 3))), dice)}{where}"
    if by_slot["with_"] and dice.chance(0.6):
        text += f" with {_both(_take(by_slot['with_'], 2))}"
    if by_slot["feel"] and dice.chance(0.4):
        text += f" that feels like {_take(by_slot['feel'], 1)[0]}"
    end = "?" if opener.startswith(book.QUESTIONS) else "."
    return text + end


def _details(style: Style, by_slot: dict[str, list[str]], dice: Dice) -> list[str]:
    """Sentences for what the asking sentence left over."""
    should, predicate, heard, feel = _LEADS[style]
    sentences = []
    for slot, leads in (("adj", predicate), ("should", should), ("with_", heard), ("feel", feel)):
        size = 1 if slot == "feel" else 2
        while by_slot[slot]:
            sentences.append(dice.pick(leads).format(_both(_take(by_slot[slot], size))))
    return dice.shuffled(sentences)


_LEADS: dict[str, tuple[tuple[str, ...], ...]] = {
    "polite": (
        ("It should {}.", "Ideally it would {}.", "Please let it {}.", "I would like it to {}.", "I want it to {}."),
        ("Overall it should be {}.", "I would prefer it to be {}.", "Please keep it {}.", "To my mind it is {}."),
        ("There should be {}.", "I imagine it with {}.", "It should come with {}."),
        ("It should feel like {}.", "I imagine {}.", "Please picture {}.", "The mood I have in mind: {}."),
    ),
    "casual": (
        ("It should {}.", "I want it to {}.", "It's gotta {}.", "Just let it {}.", "It needs to {}."),
        ("Keep it {}.", "Should be {}.", "Basically {}.", "I like it {}."),
        ("With {}, please.", "There should be {}.", "I'm thinking {}.", "And give it {}."),
        ("Think {}.", "Kind of like {}.", "Picture {}.", "It should feel like {}."),
    ),
}


def _noun_phrase(adjectives: Sequence[str], dice: Dice) -> str:
    noun = dice.pick(book.NOUNS)
    if not adjectives:
        return dice.pick((f"a {noun}", "some music", "something"))
    if dice.chance(0.4):
        return f"something {_series(adjectives)}"
    article = "an" if adjectives[0][0] in "aeiou" else "a"
    return f"{article} {', '.join(adjectives)} {noun}"


def _take(phrases: list[str], count: int) -> list[str]:
    taken = phrases[:count]
    del phrases[:count]
    return taken


def _series(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _both(phrases: Sequence[str]) -> str:
    link = ", and " if any("," in phrase or " and " in phrase for phrase in phrases) else " and "
    return link.join(phrases)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
