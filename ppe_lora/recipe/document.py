"""YAML as plain data, with the place of every key and list item. Tags are refused, and aliases of what they stand in:
a recipe is mappings, lists and values."""

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
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

Keys = tuple[str | int, ...]


class NotPlainError(MarkedYAMLError):
    """YAML that is more than plain data; its `problem` starts with the key."""


def load_yaml(text: str, keys: Keys = ()) -> Any:
    """Read a text that stands at `keys` in a recipe.

    Raises:
        YAMLError: It is not YAML; a NotPlainError if it has tags, or aliases of what they stand in.
    """
    events: Iterator[Event] = YAML().parse(text)
    for event in events:
        if isinstance(event, DocumentStartEvent):
            _check_node(events, keys)
    return YAML().load(text)


def _check_node(events: Iterator[Event], keys: Keys, above: tuple[str | None, ...] = ()) -> Event:
    """Take the events of the next node, which stands inside those of the anchors `above`; return the first of them."""
    event = next(events)
    anchor, tag = getattr(event, "anchor", None), getattr(event, "ctag", None)
    problem = f"tags such as {tag.handle or ''}{tag.suffix} are not read in recipes; delete it" if tag else None
    if isinstance(event, AliasEvent) and anchor in above:
        problem = f"expected an alias of another place; got *{anchor} inside &{anchor}; delete it"
    if problem:
        where = f"{'.'.join(map(str, keys))}: " if keys else ""
        raise NotPlainError(problem=f"{where}{problem}", problem_mark=event.start_mark)
    if isinstance(event, MappingStartEvent):
        while not isinstance(key := _check_node(events, keys, (*above, anchor)), MappingEndEvent):
            _check_node(events, (*keys, getattr(key, "value", "?")), (*above, anchor))
    elif isinstance(event, SequenceStartEvent):
        index = 0
        while not isinstance(_check_node(events, (*keys, index), (*above, anchor)), SequenceEndEvent):
            index += 1
    return event


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
