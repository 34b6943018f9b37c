"""What a model's answer holds: one JSON object behind thoughts, fences and chatter; or why it is of no use.

One rule for texts and readings, asked in real time or by batch jobs, of any server.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ppe_lora.corpus.meta import find_meta
from ppe_lora.corpus.teachers.llm.chat_format import shortened
from ppe_lora.corpus.teachers.llm.exchange import Reply
from ppe_lora.corpus.teachers.llm.servers import AskingFailed

ENOUGH = 24
"""Answers after which asking stops where less than one in ten is of use."""
_LONGEST = 100_000
"""Characters from the end that are looked at, and `_MOST_STARTS` braces in them: what is longer is no answer."""
_MOST_STARTS = 1000
_TAG = re.compile(
    r"(?P<close></(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection)>|\[/THINK\]|<\|end_of_thought\|>|◁/think▷"
    r"|<\|channel\|>final(?:\s*<\|constrain\|>\w+)?<\|message\|>)"
    r"|<(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection)>|\[THINK\]|<\|begin_of_thought\|>|◁think▷"
    r"|<\|channel\|>analysis<\|message\|>",
    re.IGNORECASE,
)


def last_object(text: str) -> str:
    """The last whole JSON object of an answer, as it stands there; empty where there is none.

    Thoughts are left out: between their tags, before an end whose start the chat template wrote, and behind a start
    whose end the model did not reach.

    Example:
        >>> last_object('<think>{"request": ...}, or</think>```json\\n{"request": "rain"}\\n```')
        '{"request": "rain"}'
    """
    text = without_thoughts(text)[-_LONGEST:]
    found, place, decoder = "", text.find("{"), json.JSONDecoder()
    for _ in range(_MOST_STARTS):
        if place < 0:
            break
        try:
            _, end = decoder.raw_decode(text, place)
            found = text[place:end]
        except (ValueError, RecursionError):
            end = place + 1
        place = text.find("{", end)
    return found


def without_thoughts(text: str) -> str:
    """An answer without what a reasoning model thought before it."""
    said, start, thinking = "", 0, False
    for tag in _TAG.finditer(text):
        if tag["close"]:
            said = said if thinking else ""
            start, thinking = tag.end(), False
        elif not thinking:
            said += text[start : tag.start()]
            thinking = True
    return said if thinking else said + text[start:]


class Cause(NamedTuple):
    """Why an answer is of no use."""

    words: str
    remedy: str


_SCHEMA = (
    "use a server that holds answers to a JSON schema (`response_format`), or name a more capable model in {section}"
)
_CUT_OFF = Cause(
    "cut off at max_tokens",
    "raise {section}.max_tokens (now {max_tokens}): a model that reasons before it answers needs some thousands",
)
_THOUGHTS = Cause("thoughts without an answer", "switch the model's reasoning off, or name one that ends it")
_REFUSED = Cause("refused", "name another model in {section}")
_EMPTY = Cause(
    "empty",
    "look at the server's log: its chat template or its reasoning parser is not this model's, or it filters answers",
)
_NO_JSON = Cause("without a JSON object", _SCHEMA)
_OTHER_KEYS = Cause("a JSON object of other keys or values", _SCHEMA)


def cause_of(reply: Reply) -> Cause:
    """Why a reply is of no use, given that it is of none."""
    said = without_thoughts(reply.text)
    if reply.finish_reason in ("length", "model_length", "max_tokens"):
        return _CUT_OFF
    if reply.finish_reason in ("content_filter", "refusal", "safety"):
        return _REFUSED
    if not reply.text.strip():
        return _EMPTY
    if not said.strip():
        return _THOUGHTS
    if last_object(reply.text):
        return _OTHER_KEYS
    return _REFUSED if find_meta(said) else _NO_JSON


class Judge:
    """Stops asking when hardly any answer is of use, and names the cause.

    Args:
        section: Where the recipe names the model.
        max_tokens: Longest answer.
        usable: Whether a reply's text is what was asked for.
        kept: Where the answers are, for the message.
    """

    def __init__(self, section: str, max_tokens: int, usable: Callable[[str], bool], kept: Path) -> None:
        self._section, self._max_tokens, self._usable, self._kept = section, max_tokens, usable, kept
        self._seen = 0
        self._unusable: list[Reply] = []

    def look(self, reply: Reply) -> None:
        """Look at an answer as it comes.

        Raises:
            AskingFailed: Of `ENOUGH` or more, less than one in ten is of use.
        """
        self._seen += 1
        if not self._usable(reply.text):
            self._unusable.append(reply)
            if self._seen >= ENOUGH and self._hopeless:
                raise AskingFailed(self._message("asking stopped"))

    def conclude(self, replies: Iterable[Reply]) -> None:
        """Look at all answers there are.

        Raises:
            AskingFailed: None is of use, or less than one in ten of `ENOUGH` or more.
        """
        replies = list(replies)
        self._seen, self._unusable = len(replies), [one for one in replies if not self._usable(one.text)]
        if self._unusable and (len(self._unusable) == self._seen or (self._seen >= ENOUGH and self._hopeless)):
            raise AskingFailed(self._message("no data can be made of them"))

    @property
    def _hopeless(self) -> bool:
        return (self._seen - len(self._unusable)) * 10 < self._seen

    def _message(self, consequence: str) -> str:
        counts = Counter(map(cause_of, self._unusable)).most_common()
        first = counts[0][0]
        example = next(one.text for one in self._unusable if cause_of(one) == first)
        remedy = first.remedy.format(section=self._section, max_tokens=self._max_tokens)
        causes = ", ".join(f"{count:,} {cause.words}" for cause, count in counts)
        return (
            f"{self._section}: expected answers that hold what was asked for; got {len(self._unusable):,} of "
            f"{self._seen:,} that do not ({causes}), so {consequence}; {remedy}; one of them: {shortened(example)!r}; "
            f"all are kept in {self._kept}"
        )
