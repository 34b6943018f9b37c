"""The base of every configuration section: frozen, and unknown keys are errors. And the numbers sections hold."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys and values of a neighbouring type (`"3"` for 3) are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Conflict(ValueError):
    """A problem that several keys of a section make together."""

    def __init__(self, problem: str, *keys: str) -> None:
        """
        Args:
            problem: The message.
            keys: The dotted keys, below the section that is checked. The problem is shown where one of them is written.
        """
        super().__init__(problem)
        self.keys = keys


def spelled(pattern: str, words: str) -> AfterValidator:
    """Accepts texts of a pattern, and says it in words to who writes others."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {words}; got {text!r}")
        return text

    return AfterValidator(check)


def by_kind(default: type[Section], *others: type[Section]) -> Discriminator:
    """Chooses among sections, tagged with their kinds, by `kind`. Without one it is the default, unless there is a key
    that only another one has: then `kind` has been forgotten."""
    elsewhere = {key for other in others for key in other.model_fields} - default.model_fields.keys()

    def kind_of(raw: Any) -> str | None:
        if not isinstance(raw, Mapping):
            return getattr(raw, "kind", None)
        if "kind" in raw:
            return str(raw["kind"])
        return None if elsewhere & raw.keys() else kind(default)

    return Discriminator(kind_of)


def kind(section: type[BaseModel]) -> str | None:
    """The kind that a section is; None where it is the only one at its place."""
    field = section.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field else None
