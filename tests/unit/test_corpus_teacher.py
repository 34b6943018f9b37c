"""The scripted teacher: what it must never say, how it varies, and that its words carry the numbers."""

import re
from collections import defaultdict

import numpy as np
import pytest

from ppe_lora.corpus.asks import make_asks
from ppe_lora.corpus.filters import drop_near_duplicates, filter_rows
from ppe_lora.corpus.leaks import find_key
from ppe_lora.corpus.rows import Row, row_id
from ppe_lora.corpus.teachers import Ask
from ppe_lora.corpus.teachers.base import extreme_tags
from ppe_lora.corpus.teachers.compose_ja import joined
from ppe_lora.corpus.teachers.phrasebook_en import PHRASES as ENGLISH
from ppe_lora.corpus.teachers.phrasebook_ja import PHRASES as JAPANESE
from ppe_lora.corpus.teachers.phrases import BANDS, Dice, Occasion
from ppe_lora.corpus.teachers.scripted import ScriptedTeacher, mentioned
from ppe_lora.errors import DataError
from ppe_lora.recipe.schema import Filters, GenerateSource
from ppe_lora.tasks.scores import Language, ScoresTask

TASK = ScoresTask()
JAPANESE_NAMES = "エネルギ|温か|暖か|あたたか|明る|あかる|アコースティック|複雑|懐かし|なつかし|ノスタル|郷愁"
POLITE_END = re.compile(r"(?:です|ます|ください|ますか|でしょうか|ませんか|こんにちは|ました)$")


def phrased(count: int, language: Language | None = None, seed: int = 0) -> list[Row]:
    languages: dict[Language, float] = {language: 1.0} if language else {"ja": 1.0, "en": 1.0}
    asks = [ask for ask, _ in make_asks(TASK, GenerateSource(rows=count, languages=languages), seed)]
    answers = ScriptedTeacher(TASK, 5.0, seed).phrase(asks)
    return [
        Row(
            id=row_id(answer.text, dict(ask.target), ask.language, None),
            request=answer.text,
            target=dict(ask.target),
            language=ask.language,
            style=ask.style,
            scenario=answer.scenario,
        )
        for ask, answer in zip(asks, answers, strict=True)
    ]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return phrased(1500)


def test_nothing_it_says_is_rejected(rows: list[Row]) -> None:
    """A phrase with a numeral, a key name or a wrong language would silently thin out one band of one key."""
    filtered = filter_rows(rows, TASK, Filters(near_duplicate=1.0))
    assert filtered.counts() == {}
    assert [row.request for row in rows if find_key(row.request, TASK)] == []
    assert [row.request for row in rows if re.search(JAPANESE_NAMES, row.request)] == []


def test_nearly_all_survive_near_duplicate_removal_in_every_style(rows: list[Row]) -> None:
    """A lookup table of templates would shrink to a few hundred rows."""
    kept = {row.id for row in drop_near_duplicates(rows, 0.8).kept}
    survived: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in rows:
        survived[row.language, str(row.style)].append(row.id in kept)
    assert len(survived) == 8
    assert min(np.mean(each) for each in survived.values()) >= 0.95


def test_a_text_does_not_depend_on_its_batch() -> None:
    """A stream shared by a batch would make a resumed or parallel build another data set."""
    asks = [ask for ask, _ in make_asks(TASK, GenerateSource(rows=30), 4)]
    teacher = ScriptedTeacher(TASK, 5.0, 4)
    backwards = [ScriptedTeacher(TASK, 5.0, 4).phrase([ask])[0] for ask in reversed(asks)]
    assert teacher.phrase(asks) == backwards[::-1]
    assert teacher.phrase(asks) != ScriptedTeacher(TASK, 5.0, 5).phrase(asks)


def test_unknown_keys_are_refused_by_name() -> None:
    """Phrasing the keys it knows and skipping the others would train noise without a word."""
    with pytest.raises(DataError) as error:
        ScriptedTeacher(ScoresTask(keys=("energy", "valence")), 5.0, 0)
    assert str(error.value) == (
        "task.keys: the scripted teacher only knows energy, warmth, brightness, acousticness, complexity, nostalgia; "
        "got valence; use an import or another teacher"
    )


@pytest.mark.parametrize("book", [ENGLISH, JAPANESE])
def test_books_are_complete_and_unambiguous(book: dict) -> None:
    """A phrase in two bands, or a key with a band too few, gives a score a meaning nobody intended."""
    assert tuple(book) == TASK.keys
    seen: dict[str, tuple[str, int]] = {}
    for key, bands in book.items():
        assert len(bands) == BANDS
        for grade, band in enumerate(bands):
            assert sum(map(len, band.values())) >= 8
            for phrase in (phrase for phrases in band.values() for phrase in phrases):
                assert phrase.strip() == phrase != ""
                assert seen.setdefault(phrase, (key, grade)) == (key, grade), phrase


def test_every_japanese_modifier_can_be_joined() -> None:
    """A modifier without a joining form raises in the middle of a long build."""
    for bands in JAPANESE.values():
        for band in bands:
            for modifier in band["rentai"]:
                assert joined(modifier)[-1] in "てで"


def test_polite_japanese_is_polite_throughout() -> None:
    """One plain sentence among です and ます reads as two people talking."""
    polite = [row for row in phrased(300, "ja") if row.style == "polite"]
    for row in polite:
        for sentence in re.split(r"[。！？]", row.request):
            last = sentence.removeprefix("すみません、")
            assert last == "" or POLITE_END.search(last) or last.endswith(("恐れ入ります", "幸いです")), row.request


def test_short_says_what_stands_out_and_long_says_all() -> None:
    """Mentioning keys at random would hide the extreme scores a person would surely name."""
    read = {
        "energy": 0.02,
        "warmth": 0.5,
        "brightness": 0.45,
        "acousticness": 0.97,
        "complexity": 0.55,
        "nostalgia": 0.6,
    }
    for seed in range(20):
        dice = Dice(np.random.default_rng(seed))
        assert {"energy", "acousticness"} <= set(mentioned(read, "short", dice))
        assert len(mentioned(read, "short", dice)) <= 3
        assert set(mentioned(read, "long", dice)) == set(TASK.keys)
        assert {"energy", "acousticness"} <= set(mentioned(read, "casual", dice))


def test_the_middle_is_mentioned_about_half_the_time() -> None:
    """A fixed choice would tell nothing by leaving a key out; 0.5 + 0.5 * 0 is the chance in the middle."""
    read = {"energy": 0.0, "warmth": 1.0, "brightness": 0.5}
    count = sum("brightness" in mentioned(read, "polite", Dice(np.random.default_rng(s))) for s in range(400))
    assert count == pytest.approx(200, abs=45)


def test_misreading_has_the_recipes_deviation() -> None:
    """Noise that is ignored makes a teacher no human resembles, and every later figure too good."""
    ask = Ask(0, dict.fromkeys(TASK.keys, 50), "en", "long", None)
    still = {ScriptedTeacher(TASK, 0.0, s).phrase([ask._replace(number=1)])[0].text for s in (1, 2)}
    assert len(still) == 2  # the words still vary with the seed
    middle = {phrase for bands in ENGLISH.values() for phrases in bands[4].values() for phrase in phrases}
    text = ScriptedTeacher(TASK, 0.0, 1).phrase([ask])[0].text.lower()
    assert sum(phrase.lower() in text for phrase in middle) == 6
    noisy = ScriptedTeacher(TASK, 60.0, 1).phrase([ask])[0].text.lower()
    assert sum(phrase.lower() in noisy for phrase in middle) < 6


def test_extreme_scores_become_tags() -> None:
    """15 % of a range of 200 from -100: at most -70 is low, at least 70 is high."""
    assert extreme_tags({"a": -70, "b": -69, "c": 70, "d": 69}, -100, 100) == ["low_a", "high_c"]


def test_an_occasion_never_contradicts_the_context() -> None:
    """A rainy night asked for on a sunny morning makes the context worthless."""
    rain = Occasion("a rainy night", ("rainy",), 0.0, 0.7, "rain", "night")
    assert rain.fits(0.5, None)
    assert rain.fits(0.5, {"weather": "rain", "place": "home"})
    assert not rain.fits(0.5, {"weather": "sunny"})
    assert not rain.fits(0.5, {"time": "morning"})
    assert not rain.fits(0.9, None)
