"""Checks of a generated row. Each is a pure function; a rejected row is kept with the rule and its evidence."""

import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from ppe_lora.cells import text_of
from ppe_lora.corpus.leaks import find_key, find_number
from ppe_lora.corpus.meta import find_meta
from ppe_lora.corpus.rows import Row
from ppe_lora.corpus.similarity import alike_pairs
from ppe_lora.recipe.schema import Filters
from ppe_lora.tasks.scores import Language, ScoresTask


class Evidence(NamedTuple):
    """Why a row is rejected: the rule's name, and what of the row broke it."""

    rule: str
    evidence: str


class Rejection(NamedTuple):
    """A rejected row with its evidence: one line of `rejected.jsonl`."""

    row: Row
    rule: str
    evidence: str


class Filtered(NamedTuple):
    """Rows that passed and rows that did not, each in their first order."""

    kept: list[Row]
    rejected: list[Rejection]

    def counts(self) -> dict[str, int]:
        """Rejected rows by rule, in the order of the rules' first rejections."""
        return dict(Counter(rejection.rule for rejection in self.rejected))


def empty(row: Row) -> Evidence | None:
    """Reject a request of blanks and punctuation only, and the words of a blank form; emoji alone can be a wish."""
    text = row.request.strip(string.whitespace + "　.。")
    says = any(unicodedata.category(sign)[0] in "LNS" for sign in text) and text.casefold() not in _BLANK_FORM
    return None if says else Evidence("empty", repr(row.request))


_BLANK_FORM = {"n/a", "na", "null", "none", "nil", "なし", "無し", "該当なし", "特になし"}


def no_text(row: Row) -> Evidence | None:
    """Reject what no reader of rows would take: control characters and halves of characters."""
    try:
        text_of(row.request)
    except ValueError as error:
        return Evidence("no text", str(error))
    return None


def meta_answer(row: Row) -> Evidence | None:
    """Reject a refusal, talk about the request, and a request in quotes, JSON or markup: people do not write so."""
    found = find_meta(row.request)
    return Evidence("meta answer", found) if found else None


def numeric_leak(row: Row) -> Evidence | None:
    """Reject a request that contains a number: the student must judge words, not copy digits."""
    found = find_number(row.request)
    return Evidence("numeric leak", found) if found else None


def key_leak(row: Row, task: ScoresTask) -> Evidence | None:
    """Reject a request that names a key of the task: the student must not match labels."""
    found = find_key(row.request, task)
    return Evidence("key-name leak", found) if found else None


def wrong_length(row: Row, length: Mapping[Language, tuple[int, int]]) -> Evidence | None:
    """Reject a request outside its language's (shortest, longest) in characters; other languages have no limits."""
    if row.language not in length:
        return None
    low, high = length[row.language]
    count = len(row.request)
    return None if low <= count <= high else Evidence("length", f"{count} characters; allowed {low} to {high}")


def wrong_language(row: Row) -> Evidence | None:
    """Reject a request that is not in the language it is labelled with."""
    found = detect_language(row.request)
    return None if found == row.language else Evidence("language", f"expected {row.language}; got {found}")


def detect_language(text: str) -> str:
    """ISO 639-1 code of a request's language, made for telling English from Japanese.

    Any kana decides for Japanese, and so do ideographs where they outnumber Latin letters (a request of kanji only
    reads the same in Chinese). Everything else is English unless lingua is surer than 0.7 of another language: a
    few words of English are easily taken for a cousin of it.

    Example:
        >>> detect_language("雨の夜"), detect_language("lo-fi beats"), detect_language("traurige Musik für den Abend")
        ('ja', 'en', 'de')
    """
    if is_japanese(text):
        return "ja"
    likeliest = _detector().compute_language_confidence_values(text)[0]
    return str(likeliest.language.iso_code_639_1.name).lower() if likeliest.value > _SURE else "en"


def is_japanese(text: str) -> bool:
    """Whether a request is Japanese rather than of another language; cheap, and all that a server needs to know."""
    if text.isascii():
        return False
    kana = any("ぁ" <= c <= "ヿ" and c not in "・ー" for c in text)
    ideographs = sum("一" <= c <= "鿿" for c in text)
    return kana or ideographs > sum(c.isascii() and c.isalpha() for c in text)


_SURE = 0.7


@cache
def _detector() -> Any:
    from lingua import Language as Lingua  # slow to import, and only builders of data need it
    from lingua import LanguageDetectorBuilder

    known = [
        Lingua.ENGLISH, Lingua.FRENCH, Lingua.GERMAN, Lingua.SPANISH, Lingua.ITALIAN,
        Lingua.PORTUGUESE, Lingua.DUTCH, Lingua.KOREAN, Lingua.RUSSIAN,
    ]  # fmt: skip
    return LanguageDetectorBuilder.from_languages(*known).build()


def filter_rows(rows: Sequence[Row], task: ScoresTask, filters: Filters) -> Filtered:
    """Apply every rule in order; a row is rejected by the first one it breaks.

    Rules: empty, no text, meta answer, numeric leak, key-name leak, length, language (unless off), duplicate id,
    near-duplicate.

    Args:
        rows: Generated rows. Of two that are alike the earlier one is kept.
        task: Names the keys that must not be said.
        filters: The recipe's limits.
    """
    rules: list[Callable[[Row], Evidence | None]] = [
        empty,
        no_text,
        meta_answer,
        numeric_leak,
        lambda row: key_leak(row, task),
        lambda row: wrong_length(row, filters.length),
    ]
    if filters.language:
        rules.append(wrong_language)
    kept: list[Row] = []
    rejected: list[Rejection] = []
    for row in rows:
        broken = next((evidence for rule in rules if (evidence := rule(row))), None)
        if broken:
            rejected.append(Rejection(row, *broken))
        else:
            kept.append(row)
    unique = drop_duplicate_ids(kept)
    distinct = drop_near_duplicates(unique.kept, filters.near_duplicate)
    return Filtered(distinct.kept, rejected + unique.rejected + distinct.rejected)


def drop_duplicate_ids(rows: Sequence[Row]) -> Filtered:
    """Keep the first row of each id: the same request with the same target, language and context."""
    kept: dict[str, Row] = {}
    rejected = []
    for row in rows:
        if row.id in kept:
            rejected.append(Rejection(row, "duplicate id", row.id))
        else:
            kept[row.id] = row
    return Filtered(list(kept.values()), rejected)


def drop_near_duplicates(rows: Sequence[Row], threshold: float) -> Filtered:
    """Keep the first of requests that are at least `threshold` alike (Jaccard of character 5-grams).

    A row is compared with kept rows only, so that a chain of small changes does not remove its far end. A row of
    similarity 1 shares its twin's fate: whatever the twin was dropped for is as much like this one.
    """
    dropped: dict[int, Rejection] = {}
    for earlier, later, similarity in alike_pairs([row.request for row in rows], threshold):
        if later not in dropped and (similarity == 1.0 or earlier not in dropped):
            evidence = f"{similarity:.2f} like {rows[earlier].id}: {rows[earlier].request}"
            dropped[later] = Rejection(rows[later], "near-duplicate", evidence)
    return Filtered([row for i, row in enumerate(rows) if i not in dropped], list(dropped.values()))
