"""A recipe as others may see it: without places of this machine, names of its servers and accounts of its trackers."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppe_lora.recipe import Recipe
from ppe_lora.recipe.load import dump_tree
from ppe_lora.student.base import SMOLLM2, SMOLLM2_REPOSITORY, is_on_hub

_PLACES = {"path", "source_dir"}
_SERVER = "(a server)"


def public_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: of folders and files only their names, no addresses, no section `track`."""
    tree = {name: section for name, section in recipe.model_dump(mode="json").items() if name != "track"}
    tree["student"]["model"] = recipe.student.model if recipe.student.model == SMOLLM2 else public_base(recipe)
    return dump_tree(_public("", tree))


def public_base(recipe: Recipe) -> str:
    """The base model's repository, or its folder's name."""
    model = recipe.student.model
    if model == SMOLLM2:
        return SMOLLM2_REPOSITORY
    return model if is_public(model) else file_name(model)


def is_public(model: str) -> bool:
    """Whether others find a base model by this name: a repository on the Hub, and no folder here."""
    return model == SMOLLM2 or (is_on_hub(model) and not Path(model).is_dir())


def file_name(place: str) -> str:
    """The last part of a path of any system."""
    return re.split(r"[\\/]", place.rstrip("\\/"))[-1]


def _public(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _public(name, below) for name, below in value.items()}
    if isinstance(value, list):
        return [_public(key, below) for below in value]
    if not isinstance(value, str):
        return value
    if re.match(r"https?://", value):
        return _SERVER
    is_place = key in _PLACES or re.match(r"[/~\\]|[A-Za-z]:[\\/]", value)
    return file_name(value) if is_place and value else value
