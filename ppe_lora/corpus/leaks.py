"""Requests that give their numbers or key names away: the student would learn to copy instead of to understand."""

import re
from functools import lru_cache
from unicodedata import category, normalize, numeric

from ppe_lora.tasks.scores import ScoresTask

_ENGLISH_NUMBER = re.compile(
    r"\b(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|percent|percentile|per cent"
    r"|nought|nil|one (?:out of|on (?:a|the)|point|percent|per cent|hundred|thousand)"
    r"|(?:level|score|rating|number) one)(?:s|ish)?\b"
    r"|\b(?:low|mid|middle|high|upper|late|early)[ -](?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)ies\b"
    r"|\ba (?:quarter|third|fifth|tenth) (?:of|as|more|less|full|up)\b"
    r"|\b(?:quart|dec)iles?\b|\bone[ -](?:half|quarter|third|fifth|tenth)\b|\bmid-?point\b"
    r"|\bhalf[ -]?way (?:up|mark|point|down)\b|\bhalf of (?:the|its|your)\b"
    r"|\bhalf[ -](?:full|strength|power|speed|volume|marks)\b"
    r"|\b(?:about|around|over|under|roughly|exactly|than|almost|nearly) half\b(?! (?:an|a|past|asleep|awake)\b)"
    r"|\b(?:single|double|triple) digits?\b|\b(?:full|top) marks\b|\bperfect score\b"
    r"|\b(?:top|bottom|middle|cent(?:re|er)|half|end) (?:of )?the (?:scale|range|meter|dial|gauge|slider)\b"
)
_ROMAN_NUMERAL = re.compile(
    r"(?<![A-Za-z])(?=[IVX]{2})X{0,3}(?:IX|IV|V?I{0,3})(?![A-Za-z])"
    r"|(?:\b(?i:level|grade|rank|tier) |レベル|ランク)[IVX](?![A-Za-z])"
)
_RATING_SIGNS = re.compile(
    "[★☆⭐🌟✦✧●○◉◆◇■□▮▯█░▓]{2,}|💯|(?<![ァ-ヶー])(?:スリー|ファイブ|シックス|セブン|エイト|ナイン)(?![ァ-ヶー])"
)
_DIGIT_KANJI = "〇一二三四五六七八九十百千万零"
_COUNTERS = "[人日月年曲回時週泊階杯匹冊着軒駅畳歳代色季章幕枚羽輪足箱個]|丁目|番目|通り|種類|連休|拍子"
_HARMLESS_KANJI = re.compile(
    "一緒|一番|一つ|一度|一瞬|一気|一言|一方|一層|一体|一息|一面|一定|一般|一部|一歩|一見|一晩|一生|一夜"
    "|一際|一切|一転|一味|一途|一段|一本|一音|一筋|一員|一新|一致|一点の|一目|唯一|統一|万一|万が一|均一|単一|逐一"
    "|二度と|二度寝|二胡|二の次|無二|二重|二つ返事|三味線|三角|三つ編み|三日坊主|四季|四六時中|四方|四つ葉|四つ角|五感|五線|六弦"
    "|七夕|七輪|七転び|八起き|八重|八方|八つ当たり|十分|十色|不十分|百合|百均|百花|千鳥|千代|千葉|千歳|千切|千里|九州|四国"
    "|万華鏡|万能|万全|万感|千一夜|百貨店|八百屋|万年筆|三重|四重奏|真っ二つ|十五夜|十六夜|千夜一夜|二人三脚|一石二鳥|四苦八苦"
    "|二転三転|三者三様|五里霧中|七転八倒|八面六臂|再三|第[一二三]|二次会|三次会|三輪車|三寒四温|三昧|双六|十字|十八番|五十音|八百万"
    "|三十路|千秋|六本木|三軒茶屋|四谷|三毛|五十嵐|百鬼|九官鳥|七面鳥|三面鏡|千本桜|百人一首|千変万化|百発百中|九死一生|百獣|百足|千尋|四角|六角|八角|三宮|八王子|九十九里|[百千万](?:年|夜|日|人|回|歳|輪|羽)"
    f"|(?:[一二三四五六七八九]?十[一二三四五六七八九]?|[一二三四五六七八九数何])(?:{_COUNTERS})|[〇一二三四五六七八九十]{{2,3}}年代"
    "|零[れしすさ]"
)
_KANA_DIGIT = "(?:いち|に|さん|よん|ご|ろく|なな|しち|はち|きゅう)"
_JAPANESE_NUMBER = re.compile(
    f"[{_DIGIT_KANJI}](?:ぱーせんと|ぽいんと|段階|以上|以下|程度|前後|くらい|ぐらい|点|割|倍|つ星)"
    f"|[{_DIGIT_KANJI}]{{2,}}|[〇二三四五六七八九十百千万零廿卅弐]"
    "|(?:れべる|すこあ|点数|数値)[はがをに]?(?:一|いち|さん|よん|ろく|なな|しち|はち|きゅう|じゅう)"
    f"|{_KANA_DIGIT}じゅ[うっ](?:点|てん|ぱーせんと|くらい|ぐらい|{_KANA_DIGIT})"
    "|(?:よん|ろく|なな|しち|はち|きゅう)じゅ[うっ]|(?:ひゃく|ぜろ|れい)(?:点|てん|ぱーせんと)|ぱーせんと|ぜろ(?!から)"
    "|(?:いち|さん|よん|ろく|なな|しち|はち|きゅう)(?:わり(?!と|かし|び|ば)|割)|(?:に|ご)わり(?:くらい|ぐらい|ほど|の|で|$)"
    "|[上下]から[二三四五六七八九]番目|くぉーたー(?:くらい|ぐらい|に|で)"
    "|(?:ふた|みっ|よっ|いつ|むっ|なな|やっ|ここの)つ(?:ぶん|くらい|ぐらい|ほど|のうち|ちゅう)|いちから(?:じゅう|ひゃく)"
    f"|{_KANA_DIGIT}ぶんの{_KANA_DIGIT}|{_KANA_DIGIT}(?:点|てん)(?:くらい|ぐらい|で|の|台)"
    "|(?:とぅえん|さー|ふぉー|ふぃふ|しっくす|せぶん|えい|ないん)てぃ|はんどれっど"
    "|(?:半分|はんぶん)(?:ずつ|くらい|ぐらい|ほど|程度|以上|以下|だけ|でいい|の(?:力|強さ|速さ|音量|量|勢い|てんしょん)|まで|に(?:上|下|抑|絞))|(?:目盛り?|つまみ|音量|範囲)の?(?:半分|真ん中|中央)|満点|半々|五分五分|(?:真ん中|中間)(?:くらい|ぐらい|あたり)"
)
_SPELLED_OUT = re.compile(r"(?<!\w)(?:\w(?: \w){2,}|\w{1,2}(?:([・.\-_*])\w{1,2})(?:\1\w{1,2})+)(?!\w)")
_INVISIBLE = re.compile("[\u00ad\u034f\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_LOOK_ALIKES = str.maketrans("аеорсухіѕіɑοαν", "aeopcyxisiaoav")
_HIRAGANA = {code: code - 0x60 for code in range(0x30A1, 0x30F7)}
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
    signs = _RATING_SIGNS.search(request) or _ROMAN_NUMERAL.search(normalize("NFKC", request))
    if signs:
        return signs.group()
    plain = _plain(request)
    found = _ENGLISH_NUMBER.search(plain)
    if found is None:
        found = _JAPANESE_NUMBER.search(_HARMLESS_KANJI.sub(" ", plain))
    return found.group() if found else None


def _plain(request: str) -> str:
    """NFKC, lower case, words spelled out ("s e v e n") and drawn out ("sooo") put together, katakana as hiragana."""
    visible = normalize("NFKC", _INVISIBLE.sub("", request)).lower()
    if re.search("[a-z]", visible):
        visible = visible.translate(_LOOK_ALIKES)
    text = _SPELLED_OUT.sub(lambda found: re.sub(r"[ ・.\-_*]", "", found.group()), visible)
    return re.sub(r"([a-z])\1{2,}", r"\1", text).translate(_HIRAGANA)


def find_key(request: str, task: ScoresTask) -> str | None:
    """The first word of a request that names a key of the task, or None.

    A key is named by itself (underscores as spaces or hyphens), by an alias, by its plural, and by the word it is
    made from and that word's own forms: `warmth` by warm, warmer, warmly. Keys of one or two letters are ordinary
    words, so they count only before `=` or `:`. Japanese aliases count anywhere, adjectives in any form.

    Example:
        >>> find_key("Something warmer", ScoresTask()), find_key("a warming stove", ScoresTask())
        ('warmer', None)
    """
    found = _key_pattern(_names(task)).search(_plain(request))
    return found.group() if found else None


def _names(task: ScoresTask) -> tuple[str, ...]:
    aliases = [name for names in task.aliases.values() for several in names.values() for name in several]
    return (*task.keys, *aliases)


@lru_cache(maxsize=64)
def _key_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    patterns = []
    for name in map(_plain, filter(str.strip, names)):
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
    forms = [f"{own}(?:'?s)?"]
    if own.endswith("y"):
        forms += [f"{own[:-1]}ies", f"{own[:-1]}i[sz](?:e|ed|er|es|ing)"]
    for suffix, ending in _SUFFIXES if len(words) == 1 else ():
        stem = name.removesuffix(suffix)
        if stem != name and len(stem) >= 4:
            forms.append(f"{re.escape(stem + ending)}(?:er|est|ly|ally|ish|en|ened|ens|ening|s|ed)?")
    return forms


def _japanese_forms(name: str) -> str:
    if len(name) >= 3 and name[-1] in "いさみ":
        return re.escape(name[:-1]) + "(?:い|く|さ|み|め|かっ|けれ|そう|げ|し|む|ん)"
    return re.escape(name)
