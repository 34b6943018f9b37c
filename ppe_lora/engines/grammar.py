"""The answer as a grammar: engines that are held to it can write nothing but a valid answer, byte for byte as trained.

GBNF is llama.cpp's notation, and vLLM reads it, too. A JSON schema would not do: it leaves white space and the order of
keys open, and other white space than the training text's makes answers worse.
"""

import json
from collections.abc import Collection

from ppe_lora.tasks.scores import ScoresTask


def answer_gbnf(task: ScoresTask) -> str:
    """The answers of a task, and nothing else, in GBNF.

    Example:
        >>> print(answer_gbnf(ScoresTask(keys=("a", "b"), high=12)))
        root ::= "{\\"a\\":" score ",\\"b\\":" score "}"
        score ::= [02-9] | "1" [0-2]?
    """
    factor = 10**task.decimals
    values = [task.render_value(step / factor) for step in range(task.low * factor, task.high * factor + 1)]
    parts = []
    for place, key in enumerate(task.keys):
        parts += [_quoted(f'{"," if place else "{"}"{key}":'), "score"]
    return f"root ::= {' '.join(parts)} {_quoted('}')}\nscore ::= {_alternatives(values)}"


def _alternatives(texts: Collection[str]) -> str:
    """Exactly these texts, as a tree over their characters; neighbours with the same continuations share a class."""
    following: dict[str, list[str]] = {}
    for text in texts:
        if text:
            following.setdefault(text[0], []).append(text[1:])
    rests: dict[frozenset[str], list[str]] = {}
    for character, rest in following.items():
        rests.setdefault(frozenset(rest), []).append(character)
    options = []
    for behind, characters in sorted(rests.items(), key=lambda item: min(item[1])):
        head = _quoted(characters[0]) if len(characters) == 1 else _class(characters)
        options.append(f"{head}{_continuation(behind)}")
    return " | ".join(options)


def _continuation(rests: frozenset[str]) -> str:
    longer = sorted(rest for rest in rests if rest)
    if not longer:
        return ""
    inner = _alternatives(longer)
    optional = "?" if "" in rests else ""
    bare = " " not in inner or (not optional and "|" not in inner)
    return f" {inner}{optional}" if bare else f" ({inner}){optional}"


def _class(characters: Collection[str]) -> str:
    """A character class; all are digits, since a sign or a point never shares its continuations with a digit."""
    ranges: list[list[str]] = []
    for character in sorted(characters):
        if ranges and ord(character) == ord(ranges[-1][1]) + 1:
            ranges[-1][1] = character
        else:
            ranges.append([character, character])
    return "[" + "".join(a if a == b else f"{a}-{b}" for a, b in ranges) + "]"


def _quoted(text: str) -> str:
    return json.dumps(text)  # GBNF escapes quotes and backslashes as JSON does
