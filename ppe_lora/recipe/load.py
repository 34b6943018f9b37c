"""YAML to Recipe: one `extends`, `key=value` overrides, and every problem reported at once with `file:line`."""

import difflib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ppe_lora.boundary import check_file, naming, world_error
from ppe_lora.cells import shorten
from ppe_lora.errors import FileError, RecipeError
from ppe_lora.recipe.document import MOST_BYTES, MOST_LEVELS, Keys, NotPlainError, load_yaml, places, plain, problem_of
from ppe_lora.recipe.schema import Recipe
from ppe_lora.section import Conflict, kind


class _Source(NamedTuple):
    """A recipe file as plain data, with the place of every key and list item."""

    tree: dict[str, Any]
    places: dict[Keys, str]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe file.

    A recipe may name one other recipe in `extends`, relative to its own folder; that one may not extend a third.
    Sections are merged key by key; free mappings (languages, archetypes, column maps, ...), lists and values are
    replaced. Overrides come last.

    Args:
        path: The YAML file (YAML 1.2). Its stem is the recipe's name unless it sets one.
        overrides: `train.epochs=5` and the like; the value is read as YAML.

    Raises:
        RecipeError: Every problem found, one per line, each starting with `file:line` or with the override.
    """
    source = _read(path)
    if "extends" in source.tree:
        source = _extend(source, path)
    problems: list[str] = []
    for override in overrides:
        try:
            source = _override(source, override)
        except RecipeError as error:
            problems.append(str(error))
    source.tree.setdefault("name", path.stem)
    try:
        recipe = Recipe.model_validate_json(json.dumps(source.tree, default=str))
    except ValidationError as error:
        problems += _explain(error, source, path, overrides)
    if problems:
        raise RecipeError("\n".join(problems))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that loads to an equal recipe."""
    return dump_tree(recipe.model_dump(mode="json"))


def dump_tree(tree: Mapping[str, Any]) -> str:
    """Sections and values as YAML."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(tree, stream)
    return stream.getvalue()


_NOT_DECISIVE = (
    "export.",
    "track.",
    "train.checkpoint_minutes.",
    "train.keep_checkpoints.",
    "evaluate.latency_limit_ms.",
)
"""Sections and keys that may change while a training goes on: they decide none of its results."""


def is_decisive(key: str) -> bool:
    """Whether the value of a dotted key, or of a section, decides what a training makes."""
    return not f"{key}.".startswith(_NOT_DECISIVE)


def decisive_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe, section by section, without what decides nothing (`is_decisive`)."""
    return _pruned(recipe.model_dump(mode="json"), "")


def _pruned(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    kept = {key: value for key, value in tree.items() if is_decisive(f"{prefix}{key}")}
    return {
        key: _pruned(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value for key, value in kept.items()
    }


def differing_keys(first: Recipe, second: Recipe) -> list[str]:
    """Dotted names of the keys in which two recipes differ."""
    one, other = recipe_values(first), recipe_values(second)
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def changed_values(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of the keys that both have, with another value now. What a newer version adds is no change."""
    one, other = _flatten(before), _flatten(now)
    return sorted(key for key in one.keys() & other.keys() if one[key] != other[key])


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe by its dotted name, in the recipe's order."""
    return _flatten(recipe.model_dump(mode="json"))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# ------------------------------------------------------------------------------------------------- files and overrides


def _read(path: Path) -> _Source:
    try:
        check_file(path)
        if path.stat().st_size > MOST_BYTES:
            raise RecipeError(f"{path}: expected a recipe of at most {MOST_BYTES:,} bytes; got {path.stat().st_size:,}")
        with naming(path):
            text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        meant = Path("recipes") / f"{path.stem}.yaml"
        remedy = f"did you mean {meant}?" if meant.is_file() else "the shipped ones are in recipes/"
        raise RecipeError(f"{path}: no such recipe; {remedy}") from None
    except IsADirectoryError:
        remedy = f"name one of its files, or ppe-lora sweep {path}"
        raise RecipeError(f"{path}: expected a recipe file; got a folder; {remedy}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: expected UTF-8; save the file as UTF-8") from None
    except (OSError, FileError) as error:
        raise RecipeError(str(world_error(error) or error)) from None
    try:
        loaded = load_yaml(text)
    except YAMLError as error:
        raise RecipeError(f"{path}:{problem_of(error, text)}") from None
    if not isinstance(loaded, Mapping):
        found = "an empty file" if loaded is None else "a list" if isinstance(loaded, list) else repr(loaded)
        raise RecipeError(f"{path}:1: expected a mapping of recipe sections; got {found}")
    return _Source(plain(loaded), dict(places(loaded, path)))


def _extend(source: _Source, path: Path) -> _Source:
    base_name = source.tree.pop("extends")
    place = source.places.pop(("extends",))
    if not isinstance(base_name, str):
        raise RecipeError(f"{place}: extends: expected the file name of one recipe; got {base_name!r}")
    base_path = path.parent / base_name
    if not base_path.is_file():
        raise RecipeError(f"{place}: extends: no such recipe: {base_path}")
    base = _read(base_path)
    if "extends" in base.tree:
        raise RecipeError(f"{place}: extends: {base_path} extends another recipe itself; only one level is allowed")
    return _Source(_merge(base.tree, source.tree, base.tree), base.places | source.places)


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], root: Mapping[str, Any], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`over` merged into `base`, which stands at `path` in `root`: the kinds there say which keys hold sections."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        here = (*path, key)
        section = _section_at(here, root)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and section:
            same_kind = value.get("kind") in (None, below.get("kind", kind(section)))
            merged[key] = _merge(below, value, root, here) if same_kind else value
        else:
            merged[key] = value
    return merged


def _override(source: _Source, override: str) -> _Source:
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys) or len(keys) > MOST_LEVELS:
        raise RecipeError(f"{shorten(override)}: expected an override of the form train.epochs=5")
    try:
        value = plain(load_yaml(text, tuple(keys))) if text.strip() else None
    except NotPlainError as error:
        raise RecipeError(f"{shorten(override)}: {error.problem}") from None
    except YAMLError:
        raise RecipeError(f"{shorten(override)}: the value is not YAML") from None
    places = {path: place for path, place in source.places.items() if path[: len(keys)] != tuple(keys)}
    return _Source(_set(source.tree, keys, value), places | {tuple(keys): override})


def _set(tree: Any, keys: Sequence[str], value: Any) -> dict[str, Any]:
    changed = dict(tree) if isinstance(tree, Mapping) else {}
    changed[keys[0]] = value if len(keys) == 1 else _set(changed.get(keys[0]), keys[1:], value)
    return changed


# ------------------------------------------------------------------------------------------------------------- errors


def _explain(error: ValidationError, source: _Source, file: Path, overrides: Sequence[str]) -> list[str]:
    lines: dict[Keys, str] = {}
    for problem in error.errors():
        if problem["type"] == "default_factory_not_called":  # it only follows another problem
            continue
        path, rest = _path_in(source.tree, problem["loc"])
        cause = problem.get("ctx", {}).get("error")
        together = cause.keys if isinstance(cause, Conflict) else ()
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key{_suggestion(path, source.tree)}"
        elif problem["type"] == "missing":
            path = (*path, *rest)
            message = "missing; the recipe must set it"
        elif problem["type"] == "union_tag_invalid":
            path = (*path, "kind")
            message = f"expected one of {problem['ctx']['expected_tags']}; got {problem['ctx']['tag']!r}"
        elif problem["type"] == "union_tag_not_found":
            path = (*path, "kind")
            message = "missing; it says which keys this section has"
        elif problem["loc"][-1:] == ("[key]",):
            message = message.replace("Input should be", "expected the key") + f"; got {path[-1]!r}"
        elif problem["type"] != "value_error":
            value = _value_at(source.tree, path)
            message = re.sub(r"^\w+ should (be|have)", "expected", message).partition(" after validation")[0]
            message += f"; got {'nothing' if value is None else repr(value)}"
        dotted = ".".join(map(str, path)) + ": " if path else ""
        paths = [(*path, *key.split(".")) for key in together] or [path]
        lines.setdefault(path, f"{_place(paths, source.places, file, overrides)}: {dotted}{message}")
    return list(lines.values())


def _path_in(tree: Any, location: Sequence[str | int]) -> tuple[Keys, Keys]:
    """The part of a pydantic location that exists in the file (union tags skipped), and what is left of it."""
    path: Keys = ()
    node = tree
    skipped: Keys = ()
    for step in location:
        try:
            node = node[step]
        except (KeyError, IndexError, TypeError):
            skipped = (*skipped, step)
            continue
        path, skipped = (*path, step), ()
    named = node.get("kind") if isinstance(node, Mapping) else None
    return path, tuple(step for step in skipped if step != named)


def _value_at(tree: Any, path: Keys) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _place(paths: Sequence[Keys], places: Mapping[Keys, str], file: Path, overrides: Sequence[str]) -> str:
    """Where one of the keys is written, or the section that should hold the first of them, or the file."""
    written = [places[path] for path in paths if path in places]
    if written:  # the one that came last: an override, else the recipe and not the one it extends
        return min(written, key=lambda place: (place not in overrides, not place.startswith(f"{file}:")))
    for end in range(len(paths[0]), 0, -1):
        section = paths[0][:end]
        below = [place for path, place in places.items() if path[:end] == section]
        if below:  # only overrides write below a section that is not written
            return places.get(section, below[-1])
    return f"{file}:1"


def _suggestion(path: Keys, tree: Mapping[str, Any]) -> str:
    section = _section_at(tuple(map(str, path[:-1])), tree)
    known = list(section.model_fields) if section else []
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; the keys here are {', '.join(known)}" if known else ""


def _section_at(path: tuple[str, ...], tree: Any) -> type[BaseModel] | None:
    """The section class that a path of keys leads to, or None where it leads to a value or a free mapping."""
    section: Any = Recipe
    for key in path:
        in_list = isinstance(tree, list) and key.isdigit() and int(key) < len(tree)
        tree = tree[int(key)] if in_list else tree.get(key) if isinstance(tree, Mapping) else None
        is_section = isinstance(section, type) and issubclass(section, BaseModel)
        if is_section:
            field = section.model_fields.get(key)
            section = _choose(field.annotation, tree) if field else None
        elif get_origin(section) is dict:
            section = _choose(get_args(section)[1], tree)
        elif get_origin(section) is tuple:
            section = _choose(get_args(section)[0], tree)
        else:
            return None
    return section if isinstance(section, type) and issubclass(section, BaseModel) else None


def _choose(annotation: Any, tree: Any) -> Any:
    """The member of a union that `kind` names (the first where none is named), else the annotation itself."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    untagged = [get_args(member)[0] if get_origin(member) is Annotated else member for member in get_args(annotation)]
    members = [member for member in untagged if isinstance(member, type) and issubclass(member, BaseModel)]
    if not members or get_origin(annotation) in (dict, tuple):
        return annotation
    named = tree.get("kind") if isinstance(tree, Mapping) else None
    return next((member for member in members if kind(member) == named), members[0])
