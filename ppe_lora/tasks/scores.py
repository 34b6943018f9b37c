"""The named-scores task: a request in, one number per key out, as strict compact JSON.

Everything that turns numbers into text or text into numbers is here, once: the teacher, the trainer, the evaluator
and the server all call `instruction`, `user_text`, `render` and `parse`.
"""

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from ppe_lora.cells import digits, shown
from ppe_lora.section import Conflict, Section

Language = Literal["en", "ja"]

_INSTRUCTION: dict[Language, str] = {
    "en": "Read the request for a piece of music and score it from {low} to {high}. "
    "Answer only with JSON, with the keys {keys} in this order.",
    "ja": "音楽の依頼文を読み、{low}から{high}の数値で評価してください。"
    "{keys} をこの順のキーとするJSONだけで答えてください。",
}
_CONTEXT_LABEL: dict[Language, str] = {"en": "Context", "ja": "状況"}
_ALIASES: dict[str, dict[Language, tuple[str, ...]]] = {
    "energy": {"ja": ("エネルギ", "エナジ")},
    "warmth": {
        "ja": ("温か", "暖か", "あたた", "あったか", "あったま", "あっため", "温ま", "温め", "暖ま", "暖め", "ウォーム")
    },
    "brightness": {"ja": ("明る", "あかる", "ブライト")},
    "acousticness": {"ja": ("アコースティ",)},
    "complexity": {"ja": ("複雑", "ふくざつ", "コンプレキシティ")},
    "nostalgia": {"ja": ("懐かし", "懐し", "なつかし", "ノスタルジ"), "en": ("natsukashii",)},
}


class Reason(StrEnum):
    """Why a decoded text is not an answer."""

    NOT_JSON = "not JSON"
    TRAILING_TEXT = "trailing text"
    NOT_AN_OBJECT = "not an object"
    MISSING_KEY = "missing key"
    UNKNOWN_KEY = "unknown key"
    NOT_A_NUMBER = "not a number"
    OUT_OF_RANGE = "out of range"


class Answer(NamedTuple):
    """An accepted answer: one value per key of the task, in the task's key order, in task units."""

    values: tuple[float, ...]


class Rejected(NamedTuple):
    """A text that is no answer: the reason, what exactly was wrong, and the text itself, unchanged."""

    reason: Reason
    detail: str
    text: str

    @property
    def is_json(self) -> bool:
        """Whether the text was one whole JSON value, though not an answer."""
        return self.reason not in (Reason.NOT_JSON, Reason.TRAILING_TEXT)


class ScoresTask(Section):
    """Named scores in a fixed order and range (recipe section `task`).

    The default is the six-key music profile. Any other keys, range and wording work by recipe alone.
    """

    kind: Literal["scores"] = "scores"
    keys: tuple[str, ...] = Field(
        default=("energy", "warmth", "brightness", "acousticness", "complexity", "nostalgia"), min_length=1
    )
    low: int = 0
    high: int = 100
    decimals: Literal[0, 1] = 0
    output_format_version: int = 1
    instruction: dict[Language, str] = Field(default_factory=lambda: dict(_INSTRUCTION), min_length=1)
    """Wording per language. `{keys}`, `{low}` and `{high}` are filled in; literal braces are `{{` and `}}`."""
    aliases: dict[str, dict[Language, tuple[str, ...]]] = Field(
        default_factory=lambda data: {key: _ALIASES[key] for key in data.get("keys", ()) if key in _ALIASES}
    )
    """Other names a person may give a key, per language; a request that contains one has leaked its key. Japanese ones
    are stems: they count inside longer words too. The keys of the music profile have theirs by default."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low >= self.high:
            raise Conflict(f"low must be below high; got low {self.low}, high {self.high}", "low", "high")
        if len(set(self.keys)) != len(self.keys):
            raise Conflict(f"keys must differ from each other; got {', '.join(self.keys)}", "keys")
        for key in self.keys:
            if not key or not all(c.isascii() and (c.isalnum() or c == "_") for c in key) or key[0].isdigit():
                raise Conflict(f"a key is ASCII letters, digits and underscores; got {key!r}", "keys")
        for language in self.instruction:
            try:
                self.instruction_text(language)
            except (LookupError, ValueError, AttributeError, TypeError):
                raise Conflict(
                    f"instruction.{language}: expected no braces but {{keys}}, {{low}} and {{high}}; got "
                    f"{self.instruction[language]!r}; write literal braces as {{{{ and }}}}",
                    f"instruction.{language}",
                ) from None
        unknown = [key for key in self.aliases if key not in self.keys]
        if unknown:
            problem = f"aliases name keys the task does not have: {', '.join(unknown)}"
            raise Conflict(problem, f"aliases.{unknown[0]}", "keys")
        return self

    @property
    def span(self) -> int:
        """Width of the range in task units: the distance that is 1.0 on the unit scale."""
        return self.high - self.low

    def figure(self, value: float, sign: bool = False) -> str:
        """A mean, a width or an error in task units for people: to about a thousandth of the range.

        Example:
            >>> ScoresTask().figure(12.345), ScoresTask(low=1, high=5).figure(-0.0512, sign=True)
            ('12.3', '-0.051')
        """
        return f"{value:{'+' if sign else ''}.{self.figure_decimals}f}"

    @property
    def figure_decimals(self) -> int:
        """Decimals of `figure`."""
        return max(self.decimals, 4 - len(str(self.span)))

    def instruction_text(self, language: Language) -> str:
        """The instruction in `language`, or in the recipe's first language where that one has none."""
        template = self.instruction.get(language) or next(iter(self.instruction.values()))
        return template.format(keys=", ".join(self.keys), low=self.low, high=self.high)

    def messages(
        self, request: str, language: Language, context: Mapping[str, str] | None = None
    ) -> list[dict[str, str]]:
        """The conversation whose next message is the answer: the instruction, then the request and its context.

        The context (weather, time of day, ...) follows the request on a line of its own, sorted by name, so that the
        same request always makes the same prompt.
        """
        user = request
        if context:
            stated = ", ".join(f"{name}={context[name]}" for name in sorted(context))
            user = f"{request}\n{_CONTEXT_LABEL[language]}: {stated}"
        return [
            {"role": "system", "content": self.instruction_text(language)},
            {"role": "user", "content": user},
        ]

    def read_user_text(self, user: str, language: Language) -> tuple[str, dict[str, str] | None]:
        """The request and the context of a user message: the inverse of `messages`.

        Example:
            >>> ScoresTask().read_user_text("Something soft\\nContext: time=night, weather=rain", "en")
            ('Something soft', {'time': 'night', 'weather': 'rain'})
        """
        request, _, stated = user.rpartition(f"\n{_CONTEXT_LABEL[language]}: ")
        context = dict(pair.partition("=")[::2] for pair in stated.split(", "))
        if request and self.messages(request, language, context)[-1]["content"] == user:
            return request, context
        return user, None

    def render(self, target: Mapping[str, float]) -> str:
        """The one text of an answer: compact JSON, keys in order, integers or one decimal.

        Raises:
            ValueError: A key is missing or unknown, or a value is outside the range or has too many decimals.

        Example:
            >>> ScoresTask(keys=("a", "b")).render({"b": 7, "a": 42})
            '{"a":42,"b":7}'
        """
        self.check_target(target)
        return "{" + ",".join(f'"{key}":{self.render_value(target[key])}' for key in self.keys) + "}"

    def render_value(self, value: float) -> str:
        """One score as it stands in the answer: `42`, or `42.0` for a task with one decimal."""
        return f"{round(value, self.decimals) + 0.0:.{self.decimals}f}"  # never -0.0

    def check_target(self, target: Mapping[str, float]) -> None:
        """Raise ValueError, naming every problem, unless `target` is a legal vector of this task."""
        low, high = self.low, self.high
        if tuple(target) == self.keys and all(type(value) is int and low <= value <= high for value in target.values()):
            return  # the usual case, told at once: data sets have a million of them
        problems = [f"missing key {key!r}" for key in self.keys if key not in target]
        problems += [f"unknown key {key!r}" for key in target if key not in self.keys]
        for key in self.keys:
            if key not in target:
                continue
            value = target[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
                problems.append(f"{key}: expected a number; got {value!r}")
            elif not self.low <= value <= self.high:
                problems.append(f"{key}: expected {self.low} to {self.high}; got {digits(value)}")
            elif round(value, self.decimals) != value:
                problems.append(f"{key}: expected {self.decimals} decimals; got {value!r}")
        if problems:
            raise ValueError("; ".join(problems))

    def without_noise(self, value: Any) -> Any:
        """A number that is off the task's grid by floating-point noise as the point of the grid; else the value.

        Example:
            >>> ScoresTask(keys=("a",), low=0, high=1, decimals=1).without_noise(0.30000000000000004)
            0.3
        """
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low - 1 <= value <= self.high + 1:
            return value
        rounded = self.round(value)
        return rounded if abs(rounded - value) <= 1e-9 * self.span else value

    def round(self, value: float) -> float:
        """`value` clipped to the range and rounded to the task's decimals, halves to even like Python's `round`."""
        rounded = round(min(max(value, self.low), self.high), self.decimals) + 0.0  # never -0.0
        return int(rounded) if self.decimals == 0 else rounded

    def fine(self, value: float) -> float:
        """What is no answer yet, such as a mean or an end of an interval, rounded to a ten-thousandth of the range or
        two decimals, whichever is finer.

        Example:
            >>> ScoresTask(keys=("a",)).fine(41.23456), ScoresTask(keys=("a",), low=1, high=5).fine(1.23456)
            (41.23, 1.2346)
        """
        return round(value, max(2, 5 - len(str(self.span)))) + 0.0  # never -0.0

    def parse(self, text: str) -> Answer | Rejected:
        """Read a decoded text as an answer, or say why it is none. Nothing is clipped or repaired.

        White space and key order are free, as in JSON. A key given twice counts as unknown the second time; a
        fraction in a task without decimals is not a number of that task.

        Example:
            >>> ScoresTask(keys=("a",)).parse('{"a":101}').reason
            <Reason.OUT_OF_RANGE: 'out of range'>
        """
        stripped = text.strip()
        try:
            found, end = _DECODER.raw_decode(stripped)
        except (ValueError, RecursionError) as error:
            return Rejected(Reason.NOT_JSON, str(error), text)
        if end != len(stripped):
            return Rejected(Reason.TRAILING_TEXT, stripped[end : end + 80], text)
        if not isinstance(found, _Pairs):
            return Rejected(Reason.NOT_AN_OBJECT, type(found).__name__, text)
        pairs = dict(found)
        for key in self.keys:
            if key not in pairs:
                return Rejected(Reason.MISSING_KEY, key, text)
        seen: set[str] = set()
        for key, _ in found:
            if key not in self.keys or key in seen:
                return Rejected(Reason.UNKNOWN_KEY, key.encode(errors="backslashreplace").decode(), text)
            seen.add(key)
        for key in self.keys:
            value = pairs[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or round(value, self.decimals) != value:
                return Rejected(Reason.NOT_A_NUMBER, f"{key}: {shown(value)}", text)
            if not self.low <= value <= self.high:
                return Rejected(Reason.OUT_OF_RANGE, f"{key}: {shown(value)}", text)
        return Answer(tuple(float(pairs[key]) for key in self.keys))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its key-value pairs, so that a repeated key is still visible."""


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_constant=_no_constant)
