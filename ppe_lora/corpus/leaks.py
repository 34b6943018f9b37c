"""Requests that give their numbers or key names away: the student would learn to copy instead of to understand."""

import re
from functools import lru_cache
from unicodedata import category, normalize, numeric

from ppe_lora.tasks.scores import ScoresTask

_ENGLISH_NUMBER = re.compile(
    r"\b(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|percent|per cent"
    r"|one (?:out of|point|percent|per cent|hundred|thousand)|(?:level|score|rating|number) one)s?\b"
)
_DIGIT_KANJI = "〇一二三四五六七八九十百千万零"
_HARMLESS_KANJI = re.compile(
    "一緒|一番|一日|一人|二人|一つ|一度|一瞬|一気|一杯|一言|一方|一層|一体|一息|一面|一定|一般|一部|一歩|一見|一曲|一晩|一生|一夜"
    "|一際|一切|一転|一味|一途|一段|一本|一年|一時|一音|一枚|一輪|一筋|一員|一新|一致|一点の|一目|唯一|統一|万一|万が一|均一|単一|逐一"
    "|二度と|二胡|二の次|無二|三味線|三角|三日月|四季|四六時中|五感|五線|六弦|七夕|七色|八重|十分|十代|不十分|百合|千鳥|千代"
    "|万華鏡|万能|万人|万全|千一夜|百貨店|八百屋|万年筆|三拍子|四拍子|二重|三重|四重奏|真っ二つ|十五夜|十六夜|千夜一夜"
)
_JAPANESE_NUMBER = re.compile(
    f"[{_DIGIT_KANJI}](?:パーセント|ポイント|段階|以上|以下|程度|前後|くらい|ぐらい|点|割|倍|つ星)"
    f"|[{_DIGIT_KANJI}]{{2,}}|[〇二三四五六七八九十百千万零]"
    "|(?:レベル|スコア|点数|数値)[はがをに]?一"
    "|(?:に|さん|よん|ご|ろく|なな|はち|きゅう)じゅう(?:点|てん|パーセント|くらい|ぐらい|いち|に|さん|よん|ご|ろく|なな|はち|きゅう)"
    "|(?:よん|ろく|なな|はち|きゅう)じゅう|(?:ひゃく|ゼロ|れい)(?:点|てん|パーセント)|パーセント|ゼロ(?!から)"
)
_SUFFIXES = (("ness", ""), ("ity", ""), ("th", ""), ("ia", "ic"), ("y", "etic"))
"""How English makes a noun of an adjective: the key `warmth` is made from `warm`, `nostalgia` goes with `nostalgic`."""


def find_number(request: str) -> str | None:
    """The first numeral, number word or percent sign of a request, or None.

    Digits of any script and width count, and so do number words and kanji numerals, but for words that only contain
    one, such as 一緒 or 一番, and for `one` where it counts nothing.

    Example:
        >>> find_number("energy about seventy"), find_number("one of those songs"), find_number("八十くらい")
        ('seventy', None, '八十')
    """
    for char in request:
        kanji = char in _DIGIT_KANJI or category(char) == "Lo"
        if char in "%％٪‰" or (not kanji and numeric(char, None) is not None):
            return char
    plain = normalize("NFKC", request).lower()
    found = _ENGLISH_NUMBER.search(plain)
    if found is None:
        found = _JAPANESE_NUMBER.search(_HARMLESS_KANJI.sub(" ", plain))
    return found.group() if found else None


def find_key(request: str, task: ScoresTask) -> str | None:
    """The first word of a request that names a key of the task, or None.

    A key is named by itself (underscores as spaces or hyphens), by an alias, by its plural, and by the word it is
    made from and that word's own forms: `warmth` by warm, warmer, warmly. Keys of one or two letters are ordinary
    words, so they count only before `=` or `:`. Japanese aliases count anywhere, adjectives in any form.

    Example:
        >>> find_key("Something warmer", ScoresTask()), find_key("a warming stove", ScoresTask())
        ('warmer', None)
    """
    found = _key_pattern(_names(task)).search(normalize("NFKC", request).lower())
    return found.group() if found else None


def _names(task: ScoresTask) -> tuple[str, ...]:
    aliases = [name for names in task.aliases.values() for several in names.values() for name in several]
    return (*task.keys, *aliases)


@lru_cache(maxsize=64)
def _key_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    patterns = []
    for name in (normalize("NFKC", name).lower() for name in names if name.strip()):
        if not name.isascii():
            patterns.append(_japanese_forms(name))
        elif len(name) < 3:
            patterns.append(rf"\b{re.escape(name)}\s*[:=]")
        else:
            patterns += [rf"(?<![a-z]){form}(?![a-z])" for form in _english_forms(name)]
    return re.compile("|".join(patterns) or "(?!)")


def _english_forms(name: str) -> list[str]:
    words = re.split(r"[_\s-]+", name.strip("_ "))
    own = r"[_\s-]".join(map(re.escape, words))
    forms = [f"{own}(?:'?s)?"] + ([f"{own[:-1]}ies"] if own.endswith("y") else [])
    for suffix, ending in _SUFFIXES if len(words) == 1 else ():
        stem = name.removesuffix(suffix)
        if stem != name and len(stem) >= 4:
            forms.append(f"{re.escape(stem + ending)}(?:er|est|ly|ally|ish|en|ened|ens)?")
    return forms


def _japanese_forms(name: str) -> str:
    if len(name) >= 3 and name[-1] in "いさみ":
        return re.escape(name[:-1]) + "(?:い|く|さ|み|め|かっ|けれ|そう|げ|し|む|ん)"
    return re.escape(name)
