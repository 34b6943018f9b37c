"""What stands behind a name: `[NAME=]FOLDER`, `[NAME=]FOLDER@URL[#ENGINE_MODEL]`, or a base model to be asked untuned.

checkpoints/demo                          a run: its merged weights, or else its selected adapter
checkpoints/demo/merged                   an exported folder; nothing else of the run is needed
base=smollm2-135m                         a model without tuning, asked the task of the first one
fast=checkpoints/demo@http://host:8000/v1#demo    the task of the folder, answered by vLLM, llama.cpp or Ollama
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ppe_lora.errors import ServeError
from ppe_lora.export.contract import FILE_NAME, Contract, contract_of, read_contract
from ppe_lora.recipe.load import load_recipe
from ppe_lora.serving.backend import Backend
from ppe_lora.serving.settings import Settings


class Source(NamedTuple):
    """One model to register, as the command line names it."""

    name: str | None
    place: str
    url: str | None
    engine_model: str | None


def parse_source(text: str) -> Source:
    """Read `[NAME=]PLACE[@URL[#ENGINE_MODEL]]`.

    Raises:
        ServeError: Nothing stands where a place is expected.
    """
    front, at, url = text.partition("@http")
    name, equals, place = front.rpartition("=")
    if not place or (equals and not name):
        raise ServeError(
            f"{text!r}: expected [NAME=]FOLDER or [NAME=]FOLDER@URL; got no {'name' if place else 'folder'}"
        )
    address, _, engine_model = f"http{url}".partition("#")
    return Source(name or None, place, address if at else None, engine_model or None)


class Named(NamedTuple):
    """A source under its name, with what it is asked."""

    source: Source
    contract: Contract | None
    """Its own; None for a base model."""
    asked: Contract
    """Its own, or that of the first model."""


def name_models(sources: Sequence[Source], settings: Settings) -> dict[str, Named]:
    """Everything that can be said about the models without loading them, which may take minutes.

    Raises:
        PpeError: The first is no folder with a task, two have the same name, or the default or the shadow model is
            none of them.
    """
    models: dict[str, Named] = {}
    first: Contract | None = None
    for source in sources:
        contract = _contract(Path(source.place))
        first = first or contract
        if first is None:
            raise ServeError(
                f"{source.place}: expected a run or an exported folder ({FILE_NAME} in it), whose task the others are "
                "asked; got neither; name one first"
            )
        name = source.name or (contract.name if contract else Path(source.place).name)
        if name in models:
            raise ServeError(f"{name}: expected a name of its own for each model; got two; use NAME={source.place}")
        models[name] = Named(source, contract, contract or first)
    for option, role in (("--default", settings.default), ("--shadow", settings.shadow)):
        if role is not None and role not in models:
            raise ServeError(f"{option}: expected one of {', '.join(models)}; got {role!r}")
    if settings.shadow is not None and settings.shadow == (settings.default or next(iter(models))):
        raise ServeError(f"--shadow: expected another model than the default one; got {settings.shadow!r} for both")
    return models


def open_models(
    named: Mapping[str, Named], settings: Settings, observe: Callable[[str, int], None]
) -> dict[str, Backend]:
    """Load every model.

    Args:
        named: From `name_models`.
        settings: Batches, queues and timeouts.
        observe: Called with a model's name and the size of each batch it decodes.

    Raises:
        PpeError: A model cannot be used, or an engine does not answer.
    """
    return {name: _open(one, settings, partial(observe, name)) for name, one in named.items()}


def _contract(place: Path) -> Contract | None:
    """The contract of a run or of an exported folder; None for anything else."""
    if (place / FILE_NAME).is_file():
        return read_contract(place)
    if (place / "merged" / FILE_NAME).is_file():
        return read_contract(place / "merged")
    if (place / "config.yaml").is_file():
        return contract_of(load_recipe(place / "config.yaml"))
    return None


def _open(named: Named, settings: Settings, observe: Callable[[int], None]) -> Backend:
    source, contract, asked = named
    if source.url:
        from ppe_lora.serving.engine import EngineBackend, check_engine

        model = source.engine_model or asked.name
        check_engine(source.url, model)
        return EngineBackend(asked, source.url, model, settings)

    from ppe_lora.serving import local

    place = Path(source.place)
    merged = next((folder for folder in (place, place / "merged") if (folder / FILE_NAME).is_file()), None)
    if contract is None:
        loaded = local.load_untuned(source.place, asked)
    elif merged is not None:
        loaded = local.load_merged(merged, contract)
    else:
        loaded = local.load_run(place, load_recipe(place / "config.yaml"), contract)
    return local.LocalBackend(loaded, settings, observe)
