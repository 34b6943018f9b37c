"""YAML as plain data, with the place of every key and list item. Tags are refused, and aliases of what they stand in:
a recipe is mappings, lists and values."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from ppe_lora.cells import text_of

Keys = tuple[str | int, ...]


MOST_LEVELS = 32
"""Sections inside each other."""
MOST_BYTES = 200_000
"""Of a recipe: about fifty times the longest one. The reader takes seconds for them."""
_MOST_VALUES = 20_000
"""Keys, values and list items, those behind an alias counted each time: a few lines can stand for billions."""
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?|0x[0-9a-fA-F]+|0o[0-7]+")
_UNREADABLE = (ValueError, OverflowError, IndexError)
"""What the YAML reader raises by mistake: on 2001-13-45, 0x_ or "\\UFFFFFFFF"."""


class NotPlainError(MarkedYAMLError):
    """YAML that is more than plain data; its `problem` starts with the key."""


def load_yaml(text: str, keys: Keys = ()) -> Any:
    """Read a text that stands at `keys` in a recipe.

    Raises:
        YAMLError: It is not YAML; a NotPlainError if it has tags, or aliases of what they stand in, or is larger or
            deeper than a recipe can be.
    """
    check = _Check()
    if len(text) > MOST_BYTES:
        raise check.error(f"expected at most {MOST_BYTES:,} characters; got {len(text):,}", keys)
    try:
        check.events = YAML().parse(text)
        for event in check.events:
            if isinstance(event, DocumentStartEvent):
                check.node(keys)
        return YAML().load(text)
    except _UNREADABLE as error:
        check.place = next((place for value, place in check.scalars if not _is_readable(value)), check.place)
        raise check.error(
            f"expected a value; got what cannot be one ({error}); correct it, or put it in quotes"
        ) from None


def _is_readable(value: str) -> bool:
    try:
        YAML().load(value)
    except _UNREADABLE:
        return False
    except YAMLError:
        return True
    return True


class _Check:
    """One look over a document's events, before anything is built from them."""

    def __init__(self) -> None:
        self.events: Iterator[Event] = iter(())
        self.place: Any = None
        self.scalars: list[tuple[str, Any]] = []
        """Those without quotes, with their places."""
        self.values = 0
        self.behind: dict[str, int] = {}
        """Values behind each anchor."""

    def node(self, keys: Keys, above: tuple[str | None, ...] = ()) -> Event:
        """Take the events of the next node, which stands inside those of the anchors `above`; return the first."""
        event = next(self.events)
        self.place, before = event.start_mark, self.values
        anchor, tag = getattr(event, "anchor", None), getattr(event, "ctag", None)
        if isinstance(event, ScalarEvent) and not event.style:
            self.scalars.append((event.value, event.start_mark))
        self.values += self.behind.get(anchor or "", 1) if isinstance(event, AliasEvent) else 1
        if tag:
            raise self.error(f"tags such as {tag.handle or ''}{tag.suffix} are not read in recipes; delete it", keys)
        if isinstance(event, AliasEvent) and anchor in above:
            raise self.error(f"expected an alias of another place; got *{anchor} inside &{anchor}; delete it", keys)
        if self.values > _MOST_VALUES:
            raise self.error(f"expected at most {_MOST_VALUES:,} values, aliases written out; got more", keys)
        if len(above) >= MOST_LEVELS:
            raise self.error(f"expected at most {MOST_LEVELS} levels; got more", keys[:3])
        if isinstance(event, ScalarEvent):
            self.scalar(event, keys)
        if isinstance(event, MappingStartEvent):
            names: set[str] = set()
            while not isinstance(key := self.node(keys, (*above, anchor)), MappingEndEvent):
                if isinstance(key, ScalarEvent) and key.value in names:  # 1 and "1" are one key, too
                    raise self.error(f'found duplicate key "{key.value}"')
                names.add(getattr(key, "value", ""))
                self.node((*keys, getattr(key, "value", "?")), (*above, anchor))
        elif isinstance(event, SequenceStartEvent):
            index = 0
            while not isinstance(self.node((*keys, index), (*above, anchor)), SequenceEndEvent):
                index += 1
        if anchor and not isinstance(event, AliasEvent):
            self.behind[anchor] = self.values - before
        return event

    def scalar(self, event: ScalarEvent, keys: Keys) -> None:
        """Raise for a text that is none, and for a number that other readers take for a text."""
        try:
            text_of(event.value)
        except ValueError as error:
            raise self.error(str(error), keys) from None
        if not event.style and "_" in event.value and _NUMBER.fullmatch(event.value.replace("_", "")):
            raise self.error(f"expected a number without `_`, or a text in quotes; got {event.value}", keys)

    def error(self, problem: str, keys: Keys = ()) -> NotPlainError:
        """The problem at the place that was looked at last."""
        where = f"{'.'.join(map(str, keys))}: " if keys else ""
        return NotPlainError(problem=f"{where}{problem}", problem_mark=self.place)


def problem_of(error: YAMLError, text: str) -> str:
    """The line of a problem, and a word on it."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{line}: expected printable text; got the control character U+{error.character:04X}; delete it"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"{mark.line + 1 if mark else 1}: {(problem or 'not YAML').splitlines()[0]}"


def plain(node: Any) -> Any:
    """Mappings, lists and values without what the YAML reader keeps of their wording."""
    if isinstance(node, Mapping):
        return {str(key): plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, CommentedSeq) else node


def places(node: Any, file: Path, prefix: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """The place, `file:line`, of every key and list item."""
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            if key in (node.lc.data or ()):  # what `<<` merges in is written elsewhere
                yield (*prefix, str(key)), f"{file}:{node.lc.key(key)[0] + 1}"
            yield from places(value, file, (*prefix, str(key)))
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            yield (*prefix, index), f"{file}:{node.lc.item(index)[0] + 1}"
            yield from places(value, file, (*prefix, index))
